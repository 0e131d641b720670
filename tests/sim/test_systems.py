"""Time of single operators on the machines, by hand, and that no operator beats any of its resources."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmoe.sim.layer import ExpertWork
from elmoe.sim.schemes import Dense, Experts, Operator
from elmoe.sim.spec import SYSTEMS, Machine, load_machine
from elmoe.sim.systems import BOUNDS, Bandwidth, Cost, cost, effective_bandwidth

Float64 = npt.NDArray[np.float64]
PEAK = Bandwidth(ext=102.4, hb=819.2)
ALL = np.ones(1)
BOUNDED = 1 - 1e-9


def array(*values: float) -> Float64:
    return np.array(values, dtype=np.float64)


def dense(hb: float = 0, ext: float = 0, rows: float = 1, macs: float = 0, bits: int = 8, exchanges: int = 0) -> Dense:
    return Dense("x", array(hb), array(ext), array(rows), array(macs), bits, exchanges, hidden=1024)


def experts(
    hits: float, misses: float, tokens: float, *, split: bool = False, bits: int = 8, layers: int = 3
) -> Experts:
    """Experts of 2048 x 768, 4 per token; `split`: MSB planes of hits in HB, LSB planes outside."""
    weights = 3 * 2048 * 768
    work = ExpertWork(
        hits=array(hits),
        misses=array(misses),
        rows=array(4 * tokens),
        tokens=array(tokens),
        hidden=2048,
        expert_hidden=768,
        hb_bytes=weights * (18 / 32 if split or bits == 4 else 34 / 32),
        hit_ext_bytes=weights / 2 if split else 0.0,
        miss_bytes=weights * (18 if bits == 4 else 34) / 32,
        hb_bits=4 if split else bits,
        miss_bits=bits,
    )
    return Experts("experts", work, layers)


def bound(spent: Cost) -> str:
    """The resource that set the pace."""
    return BOUNDS[int(spent.bound_ns[0].argmax())]


# --- bandwidth ---


def test_effective_bandwidth_is_a_little_below_the_peak() -> None:
    """1 % for LPDDR5, 3 % for HB (paper)."""
    found = effective_bandwidth(load_machine("elmoe-3d"))
    assert 0.97 * 102.4 < found.ext < 102.4
    assert 0.95 * 819.2 < found.hb < 819.2
    large = effective_bandwidth(load_machine("elmoe-3d").with_hb_gb(8))
    assert [large.ext, large.hb] == pytest.approx([found.ext, 2 * found.hb])
    assert effective_bandwidth(load_machine("xpu")).ext == found.ext


# --- dense operators ---


def test_weights_from_external_memory() -> None:
    """1 GB over 102.4 GB/s."""
    spent = cost(load_machine("xpu"), PEAK, dense(ext=1e9, macs=1e6), ALL)
    assert spent.total_ns[0] == pytest.approx(1e9 / 102.4)
    assert (spent.ext_bytes[0], spent.hb_bytes[0], spent.link_bytes[0], bound(spent)) == (1e9, 0, 0, "ext")


def test_memories_work_at_the_same_time() -> None:
    """Eight times as much in HB as outside takes as long as either."""
    machine = load_machine("hb-xpu")
    both = cost(machine, PEAK, dense(hb=8e9, ext=1e9), ALL)
    assert both.total_ns[0] == pytest.approx(1e9 / 102.4)
    assert both.hb_ns[0] == pytest.approx(8e9 / 819.2)
    assert bound(cost(machine, PEAK, dense(hb=8.1e9, ext=1e9), ALL)) == "hb"


@pytest.mark.parametrize(
    ("system", "bits", "rows", "cycles"),
    [
        ("elmoe-3d", 8, 16, 2),
        ("elmoe-3d", 4, 16, 1),
        ("hb-xpu", 4, 16, 2),
        ("elmoe-3d", 8, 1, 32),
        ("elmoe-3d", 8, 17, 64 / 17),
    ],
)
def test_compute_by_hand(system: str, bits: int, rows: int, cycles: float) -> None:
    """16 PEs of 16 x 32 x 32 at 1 GHz: two passes for 8 bits, one for 4 where sliced; rows fill up to 16."""
    macs = 1e9
    spent = cost(load_machine(system), PEAK, dense(ext=1, rows=rows, macs=macs, bits=bits), ALL)
    assert spent.pe_ns[0] == pytest.approx(macs * cycles / (16 * 16 * 32 * 32))
    assert (bound(spent), spent.total_ns[0]) == ("pe", spent.pe_ns[0])
    assert (spent.macs_w8[0], spent.macs_w4[0]) == ((macs, 0) if bits == 8 else (0, macs))


def test_attention_counts_fp16_products_twice() -> None:
    spent = cost(load_machine("xpu"), PEAK, dense(ext=1, macs=1e6, bits=16), ALL)
    assert spent.pe_ns[0] == pytest.approx(2 * 1e6 * 2 / (16 * 16 * 32 * 32))
    assert spent.macs_w8[0] == 2e6


def test_exchanges_between_pes() -> None:
    """Per layer two gathers of a byte per element and row, over each port of 32 GB/s; a PE has its own share."""
    spent = cost(load_machine("elmoe-3d"), PEAK, dense(hb=1, rows=5, exchanges=7), ALL)
    port = 7 * 5 * 1024 * 2 * 15 / 16
    assert spent.link_ns[0] == pytest.approx(port / 32)
    assert spent.link_bytes[0] == pytest.approx(16 * port)
    assert bound(spent) == "link"
    assert cost(load_machine("xpu"), PEAK, dense(ext=1, rows=5, exchanges=7), ALL).link_bytes[0] == 0


# --- near memory ---


def test_near_memory_reads_faster() -> None:
    """At one row the PIM reads 8 times as fast, less the turnover of rows, and computes as fast as it reads."""
    spent = cost(load_machine("xpu-pim"), PEAK, dense(ext=1e9, macs=1e9), ALL)
    assert spent.total_ns[0] == pytest.approx(1e9 / (819.2 * 0.87))
    assert (spent.near_bytes[0], spent.ext_bytes[0], spent.near_macs[0], spent.macs_w8[0]) == (1e9, 0, 1e9, 0)
    assert spent.ext_ns[0] == spent.pe_ns[0] == 0
    assert bound(spent) == "near"


def test_operators_with_many_rows_go_to_the_xpu() -> None:
    """16 rows take the PIM 16 times as long, more than the bus."""
    few = cost(load_machine("xpu-pim"), PEAK, dense(ext=1e9, rows=4, macs=4e9), ALL)
    many = cost(load_machine("xpu-pim"), PEAK, dense(ext=1e9, rows=16, macs=16e9), ALL)
    assert (bound(few), few.total_ns[0]) == ("near", pytest.approx(2e-3 * 4e9 / 1.6384))
    assert (bound(many), many.total_ns[0]) == ("ext", pytest.approx(1e9 / 102.4))
    assert (many.near_bytes[0], many.near_macs[0], many.near_ns[0], many.ext_bytes[0]) == (0, 0, 0, 1e9)


def test_logic_pim_works_for_more_rows() -> None:
    spent = cost(load_machine("xpu-logicpim"), PEAK, dense(ext=1e9, rows=8, macs=8e9), ALL)
    assert (bound(spent), spent.total_ns[0]) == ("near", pytest.approx(1e9 / (409.6 * 0.87)))


def test_near_memory_and_xpu_share_the_work() -> None:
    """97 % of 409.6 GB/s near and 6/8 of 102.4 GB/s outside finish together."""
    spent = cost(load_machine("xpu-nmp"), PEAK, dense(ext=1e9, macs=1e9), ALL)
    near = 409.6 * 0.97
    assert spent.total_ns[0] == pytest.approx(1e9 / (near + 76.8))
    assert spent.near_bytes[0] == pytest.approx(1e9 * near / (near + 76.8))
    assert spent.near_bytes[0] + spent.ext_bytes[0] == pytest.approx(1e9)
    assert spent.ext_ns[0] == pytest.approx(spent.total_ns[0]), "over three quarters of the bus"


def test_the_part_that_near_memory_does_not_hold_sets_the_pace() -> None:
    """Half of the weights are out of its reach: the bus has 0.5 GB to carry."""
    spent = cost(load_machine("xpu-nmp"), PEAK, dense(ext=1e9, macs=1e9), array(0.5))
    assert spent.total_ns[0] == pytest.approx(0.5e9 / 76.8)
    assert (spent.near_bytes[0], spent.ext_bytes[0], bound(spent)) == (0.5e9, 0.5e9, "ext")
    assert spent.bound_ns.sum() == pytest.approx(spent.total_ns[0])


def test_without_a_bus_of_its_own_the_xpu_waits_for_near_memory() -> None:
    spent = cost(load_machine("xpu-pim"), PEAK, dense(ext=1e9, macs=1e9), array(0.75))
    assert spent.total_ns[0] == pytest.approx(0.75e9 / (819.2 * 0.87) + 0.25e9 / 102.4)
    assert spent.bound_ns[0].tolist() == pytest.approx([0.25e9 / 102.4, 0, 0, 0, 0.75e9 / (819.2 * 0.87)])


# --- what must hold everywhere ---


sizes = st.floats(0, 1e9)
operators: st.SearchStrategy[Operator] = st.one_of(
    st.builds(
        lambda size, inside, rows, macs, bits, exchanges: (size, inside, rows, macs, bits, exchanges),
        sizes,
        st.floats(0, 1),
        st.integers(1, 300),
        st.floats(0, 1e11),
        st.sampled_from((4, 8, 16)),
        st.integers(0, 60),
    ).map(lambda a: dense(a[0] * a[1], a[0] * (1 - a[1]), a[2], a[3], a[4], a[5])),
    st.builds(
        lambda unique, hit, tokens, split, bits: experts(
            max(4, unique) * hit, max(4, unique) * (1 - hit), tokens, split=split and bits == 8, bits=bits
        ),
        st.floats(4, 64),
        st.floats(0, 1),
        st.integers(1, 300),
        st.booleans(),
        st.sampled_from((4, 8)),
    ),
)


def outside(operator: Operator) -> Operator:
    """The same with all bytes in external memory, for machines without HB."""
    if isinstance(operator, Dense):
        return replace(operator, hb_bytes=array(0), ext_bytes=operator.hb_bytes + operator.ext_bytes)
    work = operator.work
    return replace(
        operator, work=replace(work, hits=array(0), misses=work.hits + work.misses, hit_ext_bytes=0.0, hb_bits=8)
    )


def placed(machine: Machine, operator: Operator) -> Operator:
    return operator if machine.hb is not None else outside(operator)


@given(st.sampled_from(SYSTEMS), operators, st.floats(0, 1))
def test_no_operator_beats_a_roofline(system: str, operator: Operator, reach: float) -> None:
    machine = load_machine(system)
    spent = cost(machine, PEAK, placed(machine, operator), array(reach))
    total, compute = spent.total_ns[0], machine.compute
    assert total >= spent.ext_bytes[0] / PEAK.ext * BOUNDED
    assert total >= spent.hb_bytes[0] / PEAK.hb * BOUNDED
    peak_ns = spent.macs_w8[0] / compute.macs_per_ns(8) + spent.macs_w4[0] / compute.macs_per_ns(4)
    assert total >= peak_ns * BOUNDED
    if machine.links is not None:
        assert total >= spent.link_bytes[0] / compute.pes / machine.links.aggregation_gb_per_s * BOUNDED
    if machine.near is not None:
        assert total >= spent.near_bytes[0] / machine.near.gb_per_s * BOUNDED
        assert total >= 2e-3 * spent.near_macs[0] / machine.near.tops * BOUNDED
    for name in BOUNDS:
        assert 0 <= getattr(spent, f"{name}_ns")[0] <= total * (1 + 1e-9)
    assert spent.bound_ns[0].sum() == pytest.approx(total)
    assert (spent.bound_ns >= 0).all()


@given(st.sampled_from(SYSTEMS), operators, st.floats(0, 1))
def test_work_is_conserved(system: str, operator: Operator, reach: float) -> None:
    """Bytes and multiply-accumulates are the same wherever they are read and done."""
    machine = load_machine(system)
    operator = placed(machine, operator)
    spent = cost(machine, PEAK, operator, array(reach))
    macs = spent.macs_w8[0] + spent.macs_w4[0] + spent.near_macs[0]
    read = spent.ext_bytes[0] + spent.near_bytes[0]
    if isinstance(operator, Dense):
        assert macs == pytest.approx(operator.macs[0] * (2 if operator.bits == 16 else 1))
        assert (read, spent.hb_bytes[0]) == (pytest.approx(operator.ext_bytes[0]), operator.hb_bytes[0])
        return
    work = operator.work
    share = work.hits[0] / (work.hits[0] + work.misses[0]) if work.hit_ext_bytes else 0.0
    expected = work.rows[0] * 3 * 2048 * 768 * (1 + share)  # both halves of a split expert are a product each
    assert macs == pytest.approx(operator.layers * expected)
    external = work.hits[0] * work.hit_ext_bytes + work.misses[0] * work.miss_bytes
    assert read == pytest.approx(operator.layers * external)
    assert spent.hb_bytes[0] == pytest.approx(operator.layers * work.hits[0] * work.hb_bytes)


@given(st.sampled_from(SYSTEMS), operators, st.floats(0, 1), st.floats(1, 8))
def test_more_bandwidth_is_never_slower(system: str, operator: Operator, reach: float, factor: float) -> None:
    """Whole hits beside misses may lose 5 %: a faster stream can take the array from the one that sets the pace, as in
    the cycle mode (test_cycle.py).
    """
    machine = load_machine(system)
    operator = placed(machine, operator)
    base = cost(machine, PEAK, operator, array(reach)).total_ns[0]
    beside = isinstance(operator, Experts) and machine.hb is not None
    for faster in (replace(PEAK, ext=PEAK.ext * factor), replace(PEAK, hb=PEAK.hb * factor)):
        assert cost(machine, faster, operator, array(reach)).total_ns[0] <= base * (1.05 if beside else 1 + 1e-9)
    if machine.near is not None:
        near = replace(machine.near, gb_per_s=machine.near.gb_per_s * factor, tops=machine.near.tops * factor)
        assert cost(replace(machine, near=near), PEAK, operator, array(reach)).total_ns[0] <= base * (1 + 1e-9)
    if machine.links is not None:
        links = replace(machine.links, aggregation_gb_per_s=machine.links.aggregation_gb_per_s * factor)
        assert cost(replace(machine, links=links), PEAK, operator, array(reach)).total_ns[0] <= base * (1 + 1e-9)


@given(st.sampled_from(("xpu-pim", "xpu-logicpim", "xpu-nmp")), operators, st.floats(0, 1), st.floats(0, 1))
def test_near_memory_never_hurts(system: str, operator: Operator, reach: float, more: float) -> None:
    """A scheduler would leave it aside; the more it holds the better."""
    machine, operator = load_machine(system), outside(operator)
    plain = cost(load_machine("xpu"), PEAK, operator, ALL).total_ns[0]
    little = cost(machine, PEAK, operator, array(min(reach, more))).total_ns[0]
    much = cost(machine, PEAK, operator, array(max(reach, more))).total_ns[0]
    assert much <= little * (1 + 1e-9) <= plain * (1 + 2e-9)


def test_costs_add_up() -> None:
    machine = load_machine("elmoe-3d")
    one, other = cost(machine, PEAK, dense(hb=1e6), ALL), cost(machine, PEAK, experts(2, 4, 3, split=True), ALL)
    both = one + other.times(3)
    assert both.total_ns[0] == pytest.approx(one.total_ns[0] + 3 * other.total_ns[0])
    assert both.bound_ns.sum() == pytest.approx(both.total_ns[0])
    assert both.ext_bytes[0] == 3 * other.ext_bytes[0]


def test_points_are_independent() -> None:
    """An array of points gives what each point gives alone."""
    rows, ext = array(1, 40, 400), array(1e8, 1e9, 1e7)
    macs = 1e7 * rows
    for system in SYSTEMS:
        machine, none = load_machine(system), np.zeros(3)
        together = cost(machine, PEAK, Dense("x", none, ext, rows, macs, 8), array(1, 0.2, 0.7))
        for i in range(3):
            one = Dense("x", none[[i]], ext[[i]], rows[[i]], macs[[i]], 8)
            alone = cost(machine, PEAK, one, array(1, 0.2, 0.7)[[i]])
            assert alone.total_ns[0] == together.total_ns[i]
            np.testing.assert_array_equal(alone.bound_ns[0], together.bound_ns[i])
