from __future__ import annotations

import pytest

from elmoe.errors import ConfigError
from elmoe.sim.model import load_model
from elmoe.sim.play_layer import play_layer
from elmoe.sim.profile import named_profile, scheme_specs
from elmoe.sim.run import Query, rows
from elmoe.sim.spec import load_machine


def query(system: str, scheme: str, mode: str, batch: int = 4) -> Query:
    model = load_model("qwen3-30b-a3b")
    profile = named_profile(model, "mt-bench", scheme_specs())
    return Query(load_machine(system), model, profile, scheme=scheme, mode=mode, batches=(batch, 64))


@pytest.mark.parametrize(
    ("system", "scheme", "mode", "tokens"),
    [("xpu", "none", "ar", 4), ("hb-xpu", "eagle", "sd", 52), ("elmoe-3d", "elastic", "sd", 52)],
)
def test_the_first_point_is_played_and_the_fast_formula_agrees(
    system: str, scheme: str, mode: str, tokens: int
) -> None:
    played = play_layer(query(system, scheme, mode), scheme_specs())
    assert played.layer.tokens == tokens
    assert played.fast_ns == pytest.approx(played.timing.total_ns, rel=0.02)
    assert played.as_dict()["cycle_us"] == played.timing.total_ns * 1e-3
    assert (played.as_dict()["hits"] == 0) == (system == "xpu")
    row = rows([query(system, scheme, mode)])[0]
    assert played.as_dict()["experts"] == pytest.approx(row["unique_experts"], abs=0.5)
    assert played.as_dict()["hits"] == pytest.approx(row["unique_experts"] * (1 - row["miss_rate"]), abs=0.5)
    assert sum(played.layer.rows) == 8 * tokens


def test_only_elastic_sd_splits_experts() -> None:
    assert play_layer(query("elmoe-3d", "elastic", "sd"), scheme_specs()).layer.split
    assert not play_layer(query("elmoe-3d", "elastic", "ar"), scheme_specs()).layer.split


def test_near_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match="not the near memory of xpu-pim"):
        play_layer(query("xpu-pim", "none", "ar"), scheme_specs())
