"""One DRAM channel, command by command, and four questions.

Does it run (smoke)? Does it take the time that one computes by hand (closed form)? Is every gate between two commands
kept, and tight: blocked at t - 1, ready at t? Who goes first (order)?
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elmoe.sim.dram import load_device, timing
from elmoe.sim.frfcfs import (
    ACTIVATE,
    ALL_BANK,
    NO_REFRESH,
    PER_BANK,
    PRECHARGE,
    READ,
    REFRESH,
    Requests,
    Timing,
    serve,
)

pytestmark = pytest.mark.timeout(120)

LPDDR5, HB = timing(load_device("lpddr5-6400-x16")), timing(load_device("hb-bank"))
DEVICES = [pytest.param(LPDDR5, id="lpddr5"), pytest.param(HB, id="hb")]
QUICK = Timing(
    bl=1, ccd_l=1, rcd=1, rp=1, ras=1, rc=1, rtp=1, rrd=1, faw=1, cl=1,
    rfc_ab=1, rfc_pb=1, refi=200, refi_pb=100, rank_switch=0, aad=0,
)  # fmt: skip
"""No gate longer than a clock: whatever is raised is the only bound."""
Read = tuple[int, int]
"""(bank, counted over ranks and groups; row)."""


class Command(NamedTuple):
    clock: int
    kind: int
    bank: int


class Served(NamedTuple):
    clocks: int
    hits: int
    misses: int
    conflicts: int
    latency: int
    log: list[Command]

    def of(self, kind: int) -> list[Command]:
        return [command for command in self.log if command.kind == kind]


def served(
    reads: Sequence[Read],
    limits: Timing,
    *,
    sizes: tuple[int, int, int] = (1, 4, 4),
    queue: int = 32,
    gap: int = 1,
    refresh: int = NO_REFRESH,
) -> Served:
    """Serve and keep the whole log."""
    bank, row = np.array(reads, dtype=np.int64).reshape(-1, 2).T.copy()
    requests = Requests(bank // (sizes[1] * sizes[2]), bank // sizes[2], bank, row)
    room = np.full((8 * len(reads) + 20_000, 3), -1, np.int64)
    *found, logged = serve(requests, sizes, limits, queue, gap, refresh, room)
    assert logged < len(room), "the log is cut off"
    return Served(*map(int, found), [Command(*line) for line in room[:logged].tolist()])


def random_reads(count: int, banks: int, rows: int = 1000, seed: int = 1) -> list[Read]:
    rng = np.random.default_rng(seed)
    return list(zip(rng.integers(0, banks, count).tolist(), rng.integers(0, rows, count).tolist(), strict=True))


def gaps(found: Served, sizes: tuple[int, int, int], refresh: int = NO_REFRESH) -> dict[str, list[int]]:
    """Clocks between the commands that each gate keeps apart, from the log alone; also asserts that the commands make
    sense: one per clock, reads in open rows, activations and refreshes of closed banks.
    """
    ranks, groups, per_group = sizes
    per_rank = groups * per_group
    seen: dict[str, list[int]] = defaultdict(list)
    last: dict[tuple[int, str, int], int] = {}
    activations: dict[int, list[int]] = defaultdict(list)
    is_open: set[int] = set()

    def since(gate: str, clock: int, *event: int | str) -> None:
        if event in last:
            seen[gate].append(clock - last[event])

    for place, (clock, kind, bank) in enumerate(found.log):
        rank, lane = bank // per_rank, bank // per_group
        assert place == 0 or clock > found.log[place - 1].clock
        whole_rank = refresh == ALL_BANK and (kind == REFRESH or _closes_all(found.log, place, rank, per_rank))
        banks = range(rank * per_rank, (rank + 1) * per_rank) if whole_rank else [bank]
        if kind == READ:
            assert bank in is_open
            since("rcd", clock, ACTIVATE, "bank", bank)
            since("ccd_l", clock, READ, "lane", lane)
            for other in range(ranks):
                since("bl" if other == rank else "switch", clock, READ, "rank", other)
        elif kind == PRECHARGE:
            assert is_open.intersection(banks)
            for b in is_open.intersection(banks):
                since("ras", clock, ACTIVATE, "bank", b)
                since("rtp", clock, READ, "bank", b)
        else:
            assert not is_open.intersection(banks)
            for b in banks:
                since("rp", clock, PRECHARGE, "bank", b)
                since("rc", clock, ACTIVATE, "bank", b)
                since("rfc", clock, REFRESH, "bank", b)
        if kind == ACTIVATE:
            since("rrd", clock, ACTIVATE, "rank", rank)
            seen["faw"] += [clock - activations[rank][-4]] if len(activations[rank]) >= 4 else []
            activations[rank].append(clock)
            is_open.add(bank)
        elif kind == PRECHARGE:
            for b in is_open.intersection(banks):
                last[PRECHARGE, "bank", b] = clock
            is_open.difference_update(banks)
        for b in banks if kind != PRECHARGE else ():
            last[kind, "bank", b] = clock
        last[kind, "lane", lane] = last[kind, "rank", rank] = clock
    return seen


def _closes_all(log: list[Command], place: int, rank: int, per_rank: int) -> bool:
    """A precharge is one of a whole rank if the rank's next command is a refresh."""
    if log[place].kind != PRECHARGE:
        return False
    later = islice(log, place + 1, None)
    return next((command.kind == REFRESH for command in later if command.bank // per_rank == rank), False)


def bounds(limits: Timing, refresh: int) -> dict[str, int]:
    """What the gaps must reach."""
    names = ("rcd", "ccd_l", "bl", "ras", "rtp", "rp", "rc", "rrd", "faw")
    rest = {"switch": limits.bl + limits.rank_switch, "rfc": limits.rfc_ab if refresh == ALL_BANK else limits.rfc_pb}
    return {name: getattr(limits, name) for name in names} | rest


def assert_kept(found: Served, sizes: tuple[int, int, int], limits: Timing, refresh: int = NO_REFRESH) -> None:
    least = {gate: min(seen) for gate, seen in gaps(found, sizes, refresh).items() if seen}
    allowed = bounds(limits, refresh)
    assert {gate: gap for gate, gap in least.items() if gap < allowed[gate]} == {}


def assert_conserved(found: Served, reads: Sequence[Read]) -> None:
    """Every request is read once, in its bank; rows are opened once per request that found its row not open."""
    assert found.hits + found.misses + found.conflicts == len(reads)
    assert Counter(command.bank for command in found.of(READ)) == Counter(bank for bank, _ in reads)
    assert len(found.of(ACTIVATE)) == len(reads) - found.hits
    assert found.clocks == found.of(READ)[-1].clock + 1


# --- smoke ---


@pytest.mark.parametrize("limits", DEVICES)
@pytest.mark.parametrize("refresh", [NO_REFRESH, ALL_BANK, PER_BANK])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 4, 1), (1, 1, 4), (1, 4, 4), (2, 1, 1), (2, 4, 4), (4, 2, 2)])
def test_random_streams_end_and_keep_all_gates(limits: Timing, refresh: int, sizes: tuple[int, int, int]) -> None:
    reads = random_reads(200, int(np.prod(sizes)), rows=3)
    for queue, gap in ((1, 1), (1, 50), (32, 1), (3, 50), (1024, 1)):
        found = served(reads, limits, sizes=sizes, queue=queue, gap=gap, refresh=refresh)
        assert_conserved(found, reads)
        assert_kept(found, sizes, limits, refresh)


@pytest.mark.parametrize("refresh", [ALL_BANK, PER_BANK])
def test_refreshes_that_leave_little_time_starve_nobody(refresh: int) -> None:
    """Refreshing takes all but one clock of the interval, on a single bank."""
    limits = HB._replace(rfc_ab=389, refi=390, rfc_pb=389, refi_pb=390)
    reads = random_reads(20, 1)
    found = served(reads, limits, sizes=(1, 1, 1), refresh=refresh)
    assert_conserved(found, reads)
    assert_kept(found, (1, 1, 1), limits, refresh)


def test_no_reads_take_no_time() -> None:
    assert served([], LPDDR5) == Served(0, 0, 0, 0, 0, [])


@st.composite
def channels(draw: st.DrawFn) -> tuple[list[Read], Timing, tuple[int, int, int], int]:
    """Reads, limits, sizes and a kind of refresh: whatever a device's file may hold, and worse."""
    sizes = tuple(draw(st.sampled_from([1, 2, 4])) for _ in range(3))
    banks = int(np.prod(sizes))
    clocks = {name: draw(st.integers(1, 40)) for name in Timing._fields}
    clocks["rank_switch"], clocks["aad"] = draw(st.integers(0, 9)), draw(st.integers(0, 12))
    clocks["refi"], clocks["refi_pb"] = clocks["rfc_ab"] + draw(st.integers(1, 99)), draw(st.integers(41, 99))
    reads = draw(st.lists(st.tuples(st.integers(0, banks - 1), st.integers(0, 2)), min_size=1, max_size=60))
    return reads, Timing(**clocks), (sizes[0], sizes[1], sizes[2]), draw(st.sampled_from([NO_REFRESH, ALL_BANK, 2]))


@settings(max_examples=150)
@given(channels(), st.integers(1, 9), st.integers(1, 9))
def test_any_channel_keeps_its_gates_and_its_requests(
    channel: tuple[list[Read], Timing, tuple[int, int, int], int], queue: int, gap: int
) -> None:
    reads, limits, sizes, refresh = channel
    found = served(reads, limits, sizes=sizes, queue=queue, gap=gap, refresh=refresh)
    assert_conserved(found, reads)
    assert_kept(found, sizes, limits, refresh)
    assert found.clocks >= (len(reads) - 1) * limits.bl + limits.rcd
    assert found == served(reads, limits, sizes=sizes, queue=queue, gap=gap, refresh=refresh), "not deterministic"


def test_a_log_may_be_short_or_absent() -> None:
    reads = random_reads(50, 16)
    whole = served(reads, LPDDR5)
    bank, row = np.array(reads).T.copy()
    for room in (0, 7):
        log = np.zeros((room, 3), np.int64)
        *found, logged = serve(Requests(bank // 16, bank // 4, bank, row), (1, 4, 4), LPDDR5, 32, 1, NO_REFRESH, log)
        assert (tuple(found), logged) == (whole[:5], room)
        assert log.tolist() == [list(command) for command in whole.log[:room]]


# --- closed form ---


@pytest.mark.parametrize("limits", DEVICES)
def test_one_read(limits: Timing) -> None:
    """It arrives at clock 0, where its row is opened; the extra clock of latency is the one in which data has come."""
    found = served([(5, 7)], limits)
    assert found.log == [(0, ACTIVATE, 5), (limits.rcd, READ, 5)]
    latency = limits.rcd + limits.cl + limits.bl + 1
    assert found[:5] == (limits.rcd + 1, 0, 1, 0, latency)


@pytest.mark.parametrize("limits", DEVICES)
@pytest.mark.parametrize("count", [2, 500])
def test_one_open_row_streams_at_its_bank_groups_pace(limits: Timing, count: int) -> None:
    found = served([(0, 0)] * count, limits)
    assert found.clocks == limits.rcd + (count - 1) * limits.ccd_l + 1
    assert (found.hits, found.misses) == (count - 1, 1)


@pytest.mark.parametrize("limits", DEVICES)
def test_open_rows_in_all_bank_groups_fill_the_bus(limits: Timing) -> None:
    """From the fourth activation on; until then reads of fewer groups are ccd_l apart."""
    count = 2000
    found = served([(4 * (i % 4), 0) for i in range(count)], limits)
    assert found.clocks == pytest.approx(count * limits.bl, abs=limits.rcd + 3 * limits.rrd)
    assert found.clocks > limits.rcd + (count - 1) * limits.bl


@pytest.mark.parametrize("limits", DEVICES)
@pytest.mark.parametrize("change", [{}, {"rc": 200}, {"rtp": 60}, {"ras": 90}])
def test_one_bank_with_a_row_per_read(limits: Timing, change: dict[str, int]) -> None:
    """From row to row: rc, or activation, read, precharge one after another where that is longer."""
    limits = limits._replace(**change)
    period = max(limits.rc, max(limits.ras, limits.rcd + limits.rtp) + limits.rp)
    found = served([(0, i) for i in range(200)], limits)
    assert found.clocks == 199 * period + limits.rcd + 1
    assert (found.hits, found.misses, found.conflicts) == (0, 1, 199)


@pytest.mark.parametrize("limits", DEVICES)
@pytest.mark.parametrize("change", [{}, {"rrd": 12, "faw": 16}, {"rrd": 4, "faw": 40}])
def test_many_banks_with_a_row_per_read(limits: Timing, change: dict[str, int]) -> None:
    """rrd or a quarter of faw between activations, whichever is longer."""
    limits = limits._replace(**change)
    found = served([(i % 16, i) for i in range(2000)], limits)
    assert found.clocks == pytest.approx(2000 * max(limits.rrd, limits.faw / 4), rel=0.01)


@pytest.mark.parametrize("limits", DEVICES)
def test_reads_far_apart_wait_for_nobody(limits: Timing) -> None:
    found = served([(0, i) for i in range(50)], limits, gap=500)
    empty = limits.rcd + limits.cl + limits.bl + 1
    assert found.latency == empty + 49 * (limits.rp + empty)
    found = served([(0, 0)] * 50, limits, gap=500)
    assert found.latency == empty + 49 * (limits.cl + limits.bl + 1)
    assert found.clocks == 49 * 500 + 1


@pytest.mark.parametrize("limits", DEVICES)
def test_all_bank_refresh_takes_its_share(limits: Timing) -> None:
    """Per interval: the last read's rtp, rp, rfc, and the first activation's rcd."""
    sizes, count = (1, 4, 4), 30_000
    reads = [(4 * (i % 4), i // 256) for i in range(count)]
    plain, refreshed = served(reads, limits, sizes=sizes), served(reads, limits, sizes=sizes, refresh=ALL_BANK)
    lost = (limits.rtp + limits.rp + limits.rfc_ab + limits.rcd) / limits.refi
    assert plain.clocks / refreshed.clocks == pytest.approx(1 - lost, abs=0.003)


@pytest.mark.parametrize("limits", DEVICES)
@pytest.mark.parametrize("refresh", [NO_REFRESH, ALL_BANK, PER_BANK])
@pytest.mark.parametrize("gap", [1, 7])
def test_latencies_are_those_of_the_log(limits: Timing, refresh: int, gap: int) -> None:
    """With room for all, requests arrive every `gap` clocks."""
    reads = random_reads(400, 16, rows=4)
    found = served(reads, limits, queue=1024, gap=gap, refresh=refresh)
    arrivals = sum(gap * i for i in range(len(reads)))
    ends = sum(command.clock + limits.cl + limits.bl + 1 for command in found.of(READ))
    assert found.latency == ends - arrivals


@pytest.mark.parametrize("limits", DEVICES)
@pytest.mark.parametrize("queue", [1, 8, 32, 128])
def test_littles_law(limits: Timing, queue: int) -> None:
    """Requests under way = throughput x time under way: the queue, plus at most a row in opening for each bank."""
    wait = limits.cl + limits.bl + 1
    for reads, opening in (([(0, 0)] * 10_000, 0), (random_reads(4000, 16), 16)):
        found = served(reads, limits, queue=queue)
        under_way = (found.latency - wait * len(reads)) / found.clocks
        assert 0.97 * (queue - 1) <= under_way <= queue + opening


# --- tight gates ---

TIGHT = {
    "rcd": {}, "rp": {}, "ras": {}, "rc": {}, "rtp": {}, "rrd": {}, "faw": {}, "ccd_l": {}, "bl": {},
    "rfc_ab": {"refresh": ALL_BANK}, "rfc_pb": {"refresh": PER_BANK}, "rank_switch": {},
}  # fmt: skip


@pytest.mark.parametrize("clocks", [13, 40])
@pytest.mark.parametrize("gate", TIGHT)
def test_a_gate_blocks_until_its_last_clock_and_not_longer(gate: str, clocks: int) -> None:
    """Where nothing else takes time, the closest two commands come are the gate's clocks."""
    limits, sizes = QUICK._replace(**{gate: clocks}), (2, 2, 2)
    refresh = TIGHT[gate].get("refresh", NO_REFRESH)
    name = {"rfc_ab": "rfc", "rfc_pb": "rfc", "rank_switch": "switch"}.get(gate, gate)
    seen = []
    for rows, space in ((2, 1), (1000, 1), (1000, 9)):  # hits, conflicts, conflicts with slots to spare
        found = served(random_reads(500, 8, rows), limits, sizes=sizes, refresh=refresh, gap=space)
        seen += gaps(found, sizes, refresh)[name]
        assert_kept(found, sizes, limits, refresh)
    assert min(seen) == bounds(limits, refresh)[name]


@pytest.mark.parametrize("limits", DEVICES)
def test_gates_of_real_devices_are_met_exactly(limits: Timing) -> None:
    """rc follows from ras and rp; rtp and the refreshes' gates need streams of their own, above."""
    sizes = (2, 4, 4)
    found = served(random_reads(3000, 32, rows=2), limits, sizes=sizes)
    seen = gaps(found, sizes)
    expected = bounds(limits, NO_REFRESH) | {"faw": max(limits.faw, 4 * limits.rrd)}
    for gate in ("rcd", "ccd_l", "bl", "ras", "rp", "rrd", "faw", "switch"):
        assert min(seen[gate]) == expected[gate], gate


def schedule(log: Iterable[Command], kind: int) -> list[int]:
    return [command.clock for command in log if command.kind == kind]


def test_schedules_by_hand() -> None:
    """LPDDR5: rcd 15, ras 34, rp 15, rc 49, rtp 8, rrd 4, faw 16, ccd_l 4, bl 2."""
    two_rows = served([(0, 0), (0, 1)], LPDDR5).log
    assert two_rows == [(0, 0, 0), (15, 2, 0), (34, 1, 0), (49, 0, 0), (64, 2, 0)]
    late_read = served([(0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 1)], LPDDR5).log
    assert schedule(late_read, READ) == [15, 19, 23, 27, 31, 35, 73]
    assert schedule(late_read, PRECHARGE) == [35 + 8]
    five_banks = served([(4 * i % 16 + i // 4, 0) for i in range(5)], LPDDR5._replace(faw=30)).log
    assert schedule(five_banks, ACTIVATE) == [0, 4, 8, 12, 30]
    groups = served([(0, 0), (1, 0), (4, 0)], LPDDR5._replace(rrd=1)).log
    assert [(command.clock, command.bank) for command in groups if command.kind == READ] == [(15, 0), (17, 4), (19, 1)]
    ranks = served([(0, 0), (16, 0), (0, 0)], LPDDR5, sizes=(2, 4, 4)).log
    assert schedule(ranks, ACTIVATE) == [0, 1], "rrd and faw are a rank's"
    assert schedule(ranks, READ) == [15, 15 + 2 + 2, 15 + 2 * (2 + 2)]


def test_second_activation_commands_take_slots() -> None:
    """Two activations at clocks 0 and 1; reads of opened rows at 2 and 3; then no slot is free, but the second commands
    are due 4 clocks after the first ones.
    """
    reads = [(0, 0), (1, 0), *[(0, 0)] * 20]
    limits = QUICK._replace(rcd=2)
    assert schedule(served(reads, limits).log, READ) == list(range(2, 24))
    assert schedule(served(reads, limits._replace(aad=4)).log, READ) == [2, 3, *range(6, 26)]
    spare = limits._replace(bl=2, ccd_l=2)
    assert schedule(served(reads, spare).log, READ) == schedule(served(reads, spare._replace(aad=4)).log, READ)


def test_second_commands_of_one_bank_do_not_pile_up() -> None:
    """Rows that open and close faster than `aad`; one bank, many second commands."""
    limits = QUICK._replace(aad=30)
    reads = [(0, i) for i in range(500)]
    found = served(reads, limits, sizes=(1, 1, 1))
    assert_conserved(found, reads)
    assert found.clocks < 500 * 5


# --- who goes first ---


def test_ranks_are_refreshed_one_after_another() -> None:
    """Both are due at the same clock: the second precharges only when the first has been refreshed."""
    reads = [(16 * (i % 2), 0) for i in range(400)]
    log = served(reads, LPDDR5._replace(refi=300, rfc_ab=50), sizes=(2, 4, 4), refresh=ALL_BANK).log
    kinds = [(command.kind, command.bank // 16) for command in log if command.kind in (PRECHARGE, REFRESH)]
    assert kinds[:4] == [(PRECHARGE, 0), (REFRESH, 0), (PRECHARGE, 1), (REFRESH, 1)]


def test_row_hits_first_and_a_precharge_waits_for_them() -> None:
    found = served([(0, 0), (0, 1), (0, 0), (0, 0), (0, 1)], HB)
    kinds = [command.kind for command in found.log]
    assert kinds == [ACTIVATE, READ, READ, READ, PRECHARGE, ACTIVATE, READ, READ]
    assert (found.hits, found.misses, found.conflicts) == (3, 1, 1)


def test_a_precharge_waits_only_for_requests_in_the_queue() -> None:
    """The third read would hit, but the queue of one does not hold it."""
    found = served([(0, 0), (0, 1), (0, 0)], HB, queue=1)
    assert [command.kind for command in found.log] == [0, 2, 1, 0, 2, 1, 0, 2]
    assert found.conflicts == 2


def test_a_hit_overtakes_older_activations_and_precharges() -> None:
    """At clock 51, and 101, both become ready; the hit is the younger one."""
    limits = QUICK._replace(bl=50, ccd_l=50)
    found = served([(0, 0), (1, 5), (0, 0)], limits._replace(rrd=51))
    assert found.log == [(0, ACTIVATE, 0), (1, READ, 0), (51, READ, 0), (52, ACTIVATE, 1), (101, READ, 1)]
    found = served([(0, 0), (1, 0), (1, 5), (0, 0)], limits._replace(rtp=50))
    assert found.log[3:] == [(51, READ, 1), (101, READ, 0), (102, PRECHARGE, 1), (103, ACTIVATE, 1), (151, READ, 1)]


@pytest.mark.parametrize("order", [(3, 1, 2), (0, 4, 8, 12), (15, 0, 7, 3)])
def test_the_oldest_activation_first(order: tuple[int, ...]) -> None:
    found = served([(bank, 0) for bank in order], LPDDR5)
    assert [command.bank for command in found.of(ACTIVATE)] == list(order)
    assert [command.bank for command in found.of(READ)] == list(order)


def test_the_oldest_hit_first() -> None:
    """All rows are open and the bus is the bound: reads leave in order of arrival."""
    limits = QUICK._replace(bl=9, ccd_l=9)
    banks = np.random.default_rng(3).integers(0, 16, 300).tolist()
    reads = [(bank, 0) for bank in [*range(16), *banks]]
    assert [command.bank for command in served(reads, limits).of(READ)] == [bank for bank, _ in reads]


def test_an_opened_row_is_read_before_older_hits() -> None:
    found = served([*[(0, 0)] * 6, (1, 0)], QUICK._replace(bl=10, ccd_l=10))
    assert [command.bank for command in found.of(READ)] == [0, 1, 0, 0, 0, 0, 0]


def test_a_request_in_opening_leaves_room_in_the_queue() -> None:
    """Banks are opened one after another although the queue holds a single request."""
    found = served([(bank, 0) for bank in range(4)], HB, queue=1)
    assert schedule(found.log, ACTIVATE) == [0, 7, 14, 21]


@pytest.mark.parametrize("limits", DEVICES)
@pytest.mark.parametrize("sizes", [(1, 4, 4), (2, 4, 4), (1, 1, 1)])
@pytest.mark.parametrize(("refresh", "interval"), [(ALL_BANK, "refi"), (PER_BANK, "refi_pb")])
def test_a_due_refresh_holds_back_everything(
    limits: Timing, sizes: tuple[int, int, int], refresh: int, interval: str
) -> None:
    """From its due time on no row is opened, and only rows in opening are read, one read each; none is forgotten."""
    per_rank, period = sizes[1] * sizes[2], getattr(limits, interval)
    found = served(random_reads(3000, sizes[0] * per_rank, rows=20), limits, sizes=sizes, refresh=refresh)
    for rank in range(sizes[0]):
        mine = [command for command in found.of(REFRESH) if command.bank // per_rank == rank]
        assert len(mine) in {(found.clocks - 1) // period, (found.clocks - 1) // period - 1}
        assert len(mine) >= 2
        for number, (clock, _, bank) in enumerate(mine):
            due = (number + 1) * period
            assert clock >= due
            held = [command for command in found.log if due <= command.clock < clock]
            assert not [command for command in held if command.kind == ACTIVATE]
            assert max(Counter(command.bank for command in held if command.kind == READ).values(), default=1) == 1
            assert bank == rank * per_rank + (number % per_rank if refresh == PER_BANK else 0)


def test_a_refresh_comes_at_its_time_on_an_idle_channel() -> None:
    """Nothing is open, all banks have rested: the refresh is the first command of its clock."""
    found = served([(0, 0), (0, 0)], QUICK._replace(rcd=300, refi=1000), refresh=ALL_BANK, gap=5000)
    assert schedule(found.log, PRECHARGE) == [1000]
    assert schedule(found.log, REFRESH) == [1001, 2000, 3000, 4000, 5000]
    assert schedule(found.log, ACTIVATE) == [0, 5001]


def test_without_refresh_there_is_one_precharge_per_conflict() -> None:
    reads = random_reads(3000, 16, rows=3)
    found = served(reads, LPDDR5)
    assert len(found.of(PRECHARGE)) == found.conflicts
    assert not found.of(REFRESH)
    assert min(found.hits, found.misses, found.conflicts) > 0
