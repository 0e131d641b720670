"""What lies where: sums, the paper's priority order, and what does not fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmoe.errors import CapacityError
from elmoe.sim.memory_map import MemoryMap, draft_of, memory_map
from elmoe.sim.model import MODELS, load_model
from elmoe.sim.profile import scheme_specs
from elmoe.sim.spec import SCHEMES, SYSTEMS, Machine, load_machine

Float64 = npt.NDArray[np.float64]
CONTEXTS = np.array([1.0, 1024.0, 16384.0, 65536.0, 131072.0])


def array(*values: float) -> Float64:
    return np.array(values, dtype=np.float64)


def roomy(machine: Machine) -> Machine:
    """With so much external memory that everything fits."""
    return replace(machine, ext=replace(machine.ext, capacity_gb=1e6))


def placed(system: str, model: str, scheme: str, batch: float, context: Float64 = CONTEXTS) -> MemoryMap:
    machine = roomy(load_machine(system))
    return memory_map(machine, load_model(model), scheme, np.full_like(context, batch), context, scheme_specs())


cases = given(st.sampled_from(SYSTEMS), st.sampled_from(MODELS), st.sampled_from(SCHEMES), st.integers(1, 64))


@cases
def test_everything_lies_somewhere_and_hb_is_not_overfull(system: str, name: str, scheme: str, batch: int) -> None:
    """KV, draft and pool in HB beside the static weights; the rest outside; nothing is lost."""
    model, machine, places = load_model(name), load_machine(system), placed(system, name, scheme, batch)
    np.testing.assert_allclose(places.kv_hb + places.kv_ext, batch * model.kv_bytes(CONTEXTS))
    draft = draft_of(model, scheme, scheme_specs())
    whole = draft.weight_bytes + batch * CONTEXTS * draft.kv_bytes_per_token
    np.testing.assert_allclose(places.draft_hb + places.draft_ext, whole, atol=1e-3)
    capacity = machine.hb.capacity_gb * 1e9 if machine.hb else 0.0
    static = places.dense if places.in_hb else 0.0
    inside = static + places.kv_hb + places.draft_hb + places.pool_hb
    assert (inside <= capacity * (1 + 1e-12)).all()
    experts = model.moe_layers * model.experts
    copy = experts * model.expert_draft_bytes * (scheme == "quant" and not model.mxfp4_experts)
    dense = model.dense_bytes + model.embedding_bytes
    expected = experts * model.expert_bytes + copy + places.kv_ext + places.draft_ext + dense - static
    np.testing.assert_allclose(places.ext, expected)
    for part in (places.kv_hb, places.kv_ext, places.draft_hb, places.draft_ext, places.pool_hb, places.ext):
        assert (part >= 0).all()


@cases
def test_priority_is_static_kv_draft_pool(system: str, name: str, scheme: str, batch: int) -> None:
    """Nothing has room while something before it lies outside."""
    places = placed(system, name, scheme, batch)
    assert ((places.kv_ext == 0) | (places.draft_hb + places.pool_hb <= 1e-3)).all()
    assert ((places.draft_ext <= 1e-3) | (places.pool_hb <= 1e-3)).all()
    assert (np.diff(places.pool_hb) <= 1e-3).all(), "a longer context leaves less for experts"
    assert (places.whole_experts <= places.draft_experts).all()
    assert (places.draft_experts <= load_model(name).experts).all()


def test_qwen3_on_4_gb_by_hand() -> None:
    """1.34 GB of dense weights, 0.33 of embedding, 4 x 1024 tokens of 96 KiB; the rest are experts."""
    places = placed("elmoe-3d", "qwen3-30b-a3b", "elastic", 4, array(1024))
    dense = (48 * 2048 * 128 * 72 + 2 * 151936 * 2048) * 34 / 32 + 48 * 2048 * 128 * 4
    assert places.dense == dense
    left = 4e9 - dense - 4 * 96 * 2**20
    assert places.pool_hb[0] == pytest.approx(left)
    assert places.whole_experts[0] == pytest.approx(left / 48 / (3 * 2048 * 768 * 34 / 32))
    assert places.draft_experts[0] == pytest.approx(left / 48 / (3 * 2048 * 768 * 18 / 32))
    assert places.ext[0] == 48 * 128 * 3 * 2048 * 768 * 34 / 32
    found = {name: values[0] for name, values in places.columns().items()}
    assert found["hb_kv"] == 4 * 96 * 2**20
    assert found["hb_dense"] + found["hb_kv"] + found["hb_draft"] + found["hb_experts"] == pytest.approx(4e9)
    assert found["ext_kv"] == found["ext_draft"] == 0


def test_a_pool_larger_than_all_experts_is_all_experts() -> None:
    machine = roomy(load_machine("elmoe-3d").with_hb_gb(64))
    model = load_model("deepseek-v2-lite")
    places = memory_map(machine, model, "none", array(1), array(1024), scheme_specs())
    assert places.pool_hb[0] == model.moe_layers * model.experts * model.expert_bytes
    assert places.whole_experts[0] == places.draft_experts[0] == 64


def test_machines_without_hb_keep_everything_outside() -> None:
    places, model = placed("xpu", "gpt-oss-20b", "none", 2), load_model("gpt-oss-20b")
    assert not places.in_hb
    assert places.kv_hb.sum() + places.draft_hb.sum() + places.pool_hb.sum() + places.whole_experts.sum() == 0
    np.testing.assert_allclose(places.ext, model.total_bytes + 2 * model.kv_bytes(CONTEXTS))
    assert places.columns()["hb_dense"][0] == 0


def test_the_embedding_may_stay_outside() -> None:
    specs, machine, model = scheme_specs(), load_machine("elmoe-3d"), load_model("qwen3-30b-a3b")
    outside = replace(specs, placement=replace(specs.placement, embedding="ext"))
    one = memory_map(machine, model, "none", array(1), array(1024), specs)
    other = memory_map(machine, model, "none", array(1), array(1024), outside)
    assert other.pool_hb[0] - one.pool_hb[0] == pytest.approx(model.embedding_bytes)
    assert other.ext[0] - one.ext[0] == pytest.approx(model.embedding_bytes)


def test_what_drafts_add() -> None:
    specs, qwen, oss = scheme_specs(), load_model("qwen3-30b-a3b"), load_model("gpt-oss-20b")
    assert draft_of(qwen, "none", specs) == draft_of(qwen, "elastic", specs) == draft_of(oss, "quant", specs)
    assert draft_of(qwen, "elastic", specs).weight_bytes == 0
    assert draft_of(qwen, "quant", specs).weight_bytes == qwen.dense_params * 18 / 32
    slm = draft_of(qwen, "slm", specs)
    assert slm.weight_bytes == 1543714304 * 1.0625
    assert slm.kv_bytes_per_token == 28 * 1024
    eagle = draft_of(qwen, "eagle", specs)
    h = 2048
    params = 3 * h * h + 2 * h * (h + 2 * h // 4) + h * h + 9 * h * h + 151936 * h
    assert eagle.params == params
    assert eagle.weight_bytes == params * 1.0625
    assert eagle.kv_bytes_per_token == 2 * 2 * h // 4
    narrow = replace(specs, eagle=replace(specs.eagle, vocabulary="32k"))
    assert params - draft_of(qwen, "eagle", narrow).params == (151936 - 32000) * h


def test_hb_too_small_for_the_dense_weights() -> None:
    machine = load_machine("elmoe-3d").with_hb_gb(1)
    message = r"qwen3-30b-a3b: dense weights of 1.67 GB do not fit 1 GB of HB; give --hb-gb at least 1.75"
    with pytest.raises(CapacityError, match=message):
        memory_map(machine, load_model("qwen3-30b-a3b"), "none", array(1), array(1024), scheme_specs())
    enough = load_machine("elmoe-3d").with_hb_gb(1.75)
    memory_map(enough, load_model("qwen3-30b-a3b"), "none", array(1), array(1024), scheme_specs())


def test_external_memory_too_small() -> None:
    """The worst point is the one that is named."""
    message = r"qwen3-30b-a3b: 440.8 GB at batch 4096 and context 1024 do not fit 64 GB of external memory; lower one"
    with pytest.raises(CapacityError, match=message):
        memory_map(
            load_machine("elmoe-3d"),
            load_model("qwen3-30b-a3b"),
            "elastic",
            array(1, 4096, 2),
            array(1024, 1024, 1024),
            scheme_specs(),
        )
