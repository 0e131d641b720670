"""One DRAM channel under an FR-FCFS controller, command by command: the numba kernel of `dram.py`.

The controller issues one command per clock. In order of preference: a read whose row was opened for it; a due refresh,
which holds back everything after it; a read that hits an open row; the oldest ready activation or precharge; and, where
activation takes two commands, the second one, which takes whatever slot is left but no later than `aad` clocks after
the first. A precharge waits while a queued request still hits the row. A request leaves its queue when its row is
opened for it, so rows in opening do not count against the queue's depth.

The structure is that of Ramulator 2's generic controller with its row-hit-first scheduler, as observed from its
results; none of its code is used. Times are clocks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Int64 = npt.NDArray[np.int64]

ACTIVATE, PRECHARGE, READ, REFRESH = 0, 1, 2, 3
"""Commands in a log."""
NO_REFRESH, ALL_BANK, PER_BANK = 0, 1, 2
NONE = -1
LONG_AGO = -(10**6)
FAW_WINDOW = 4


class Timing(NamedTuple):
    """Clocks between commands; names as in JEDEC standards, without the leading t."""

    bl: int
    """Data of one burst on the bus; also read to read in different bank groups."""
    ccd_l: int
    rcd: int
    rp: int
    ras: int
    rc: int
    rtp: int
    rrd: int
    faw: int
    cl: int
    rfc_ab: int
    rfc_pb: int
    refi: int
    refi_pb: int
    rank_switch: int
    """Added to `bl` between reads of different ranks."""
    aad: int
    """Second activation command at most this long after the first; 0 where there is none."""


class Requests(NamedTuple):
    """[N] where each read goes."""

    rank: Int64
    lane: Int64
    """Bank group, counted over ranks."""
    bank: Int64
    """Bank, counted over ranks and groups."""
    row: Int64


class State(NamedTuple):
    """What the channel remembers: clocks from which commands may come, by bank, bank group and rank."""

    open_row: Int64
    may_activate: Int64
    may_precharge: Int64
    may_read: Int64
    group_read: Int64
    rank_read: Int64
    rank_activate: Int64
    window: Int64
    """[ranks, 4] the last four activations, a ring."""
    oldest: Int64
    due: Int64
    """Refreshes that wait, by rank."""
    next_due: Int64
    next_bank: Int64
    """For per-bank refresh."""


@njit(cache=True)
def serve(  # noqa: PLR0912, PLR0915  one clock, command by command; the steps are functions below
    requests: Requests,
    sizes: tuple[int, int, int],
    timing: Timing,
    queue: int,
    gap: int,
    refresh: int,
    log: Int64,
) -> tuple[int, int, int, int, int, int]:
    """Serve reads in order of arrival, one offered every `gap` clocks as long as the queue has room.

    sizes: ranks, groups, banks per group. log: [M, 3] receives (clock, command, bank) of the first M commands; M may
    be 0. Returns clocks, row hits, misses (closed row), conflicts (other row), summed latency, logged commands.
    """
    total = len(requests.row)
    state = _fresh(sizes, timing, refresh)
    banks = len(state.open_row)
    waiting, opened = np.zeros(queue, np.int64), np.zeros(banks, np.int64)
    second = np.zeros(timing.aad + 1, np.int64)  # an overdue one lets no activation pass, so there is room
    arrival, touched = np.zeros(total, np.int64), np.zeros(total, np.int64)
    queued = active = seconds = sent = done = logged = 0
    latency = clock = next_offer = 0
    counts = np.zeros(3, np.int64)
    while done < total:
        if sent < total and queued < queue and clock >= next_offer:
            waiting[queued], arrival[sent] = sent, clock
            queued, sent, next_offer = queued + 1, sent + 1, clock + gap
        command, where, chosen, request = NONE, NONE, NONE, NONE
        if active > 0:
            chosen = _first_readable(requests, state, opened, active, clock)
            if chosen != NONE:
                command, request = READ, opened[chosen]
        held, from_queue = False, command == NONE
        if refresh != NO_REFRESH and from_queue:
            held, command, where = _refresh(state, requests, opened, active, sizes, timing, refresh, clock)
        if command == NONE and not held:
            if seconds > 0 and clock >= second[0] + timing.aad:
                seconds = _remove(second, seconds, 0)
            else:
                command, chosen = _pick(requests, state, waiting, queued, opened, active, timing, clock)
                if command != NONE:
                    request = waiting[chosen]
                elif seconds > 0 and clock > second[0]:
                    seconds = _remove(second, seconds, 0)
        if request != NONE:
            where = requests.bank[request]
            if touched[request] == 0 and from_queue:
                touched[request] = 1
                counts[READ - command] += 1
        if command == ACTIVATE and request != NONE:
            _activate(state, where, requests.rank[request], requests.row[request], timing, clock)
            opened[active] = request
            active += 1
            queued = _remove(waiting, queued, chosen)
            if timing.aad > 0:
                second[seconds] = clock
                seconds += 1
        elif command == PRECHARGE and request != NONE:
            _precharge(state, where, timing, clock)
        elif command == READ:
            _read(state, requests, request, timing, clock)
            latency += clock + timing.cl + timing.bl + 1 - arrival[request]
            done += 1
            if from_queue:
                queued = _remove(waiting, queued, chosen)
            else:
                active = _remove(opened, active, chosen)
        if command != NONE and logged < len(log):
            log[logged, 0], log[logged, 1], log[logged, 2] = clock, command, where
            logged += 1
        clock += 1
    return clock, counts[0], counts[READ - ACTIVATE], counts[READ - PRECHARGE], latency, logged


@njit(cache=True)
def _fresh(sizes: tuple[int, int, int], timing: Timing, refresh: int) -> State:
    """All banks closed and ready."""
    ranks, groups, per_group = sizes
    banks = ranks * groups * per_group
    period = timing.refi if refresh == ALL_BANK else timing.refi_pb
    return State(
        np.full(banks, NONE, np.int64),
        np.zeros(banks, np.int64),
        np.zeros(banks, np.int64),
        np.zeros(banks, np.int64),
        np.zeros(ranks * groups, np.int64),
        np.zeros(ranks, np.int64),
        np.zeros(ranks, np.int64),
        np.full((ranks, FAW_WINDOW), LONG_AGO, np.int64),
        np.zeros(ranks, np.int64),
        np.zeros(ranks, np.int64),
        np.full(ranks, period, np.int64),
        np.zeros(ranks, np.int64),
    )


@njit(cache=True)
def _remove(items: Int64, count: int, position: int) -> int:
    """Close the gap; returns the new count."""
    for k in range(position, count - 1):
        items[k] = items[k + 1]
    return count - 1


@njit(cache=True)
def _first_readable(requests: Requests, state: State, items: Int64, count: int, clock: int) -> int:
    """Place of the oldest request whose row is open while the bus and its bank group are free; NONE without one."""
    for k in range(count):
        request = items[k]
        bank = requests.bank[request]
        if (
            state.open_row[bank] == requests.row[request]
            and clock >= state.may_read[bank]
            and clock >= state.group_read[requests.lane[request]]
            and clock >= state.rank_read[requests.rank[request]]
        ):
            return k
    return NONE


@njit(cache=True)
def _refresh(
    state: State,
    requests: Requests,
    opened: Int64,
    active: int,
    sizes: tuple[int, int, int],
    timing: Timing,
    refresh: int,
    clock: int,
) -> tuple[bool, int, int]:
    """(a refresh waits, command, bank): the precharge or refresh that is due, carried out if it can be.

    Ranks are refreshed one after another, the one that waits for most first: the controller's queue of refreshes is
    first come, first served.
    """
    per_rank = sizes[1] * sizes[2]
    longest = 0
    for r in range(sizes[0]):
        while clock >= state.next_due[r]:
            state.due[r] += 1
            state.next_due[r] += timing.refi if refresh == ALL_BANK else timing.refi_pb
        if state.due[r] > state.due[longest]:
            longest = r
    if state.due[longest] == 0:
        return False, NONE, NONE
    first = longest * per_rank if refresh == ALL_BANK else longest * per_rank + state.next_bank[longest]
    last = (longest + 1) * per_rank if refresh == ALL_BANK else first + 1
    is_open, closable, idle = False, True, True
    for b in range(first, last):
        if state.open_row[b] != NONE:
            is_open = True
            closable = closable and clock >= state.may_precharge[b]
            for k in range(active):
                closable = closable and requests.bank[opened[k]] != b
        idle = idle and clock >= state.may_activate[b]
    if is_open and closable:
        for b in range(first, last):
            if state.open_row[b] != NONE:
                _precharge(state, b, timing, clock)
        return True, PRECHARGE, first
    if not is_open and idle:
        for b in range(first, last):
            state.may_activate[b] = clock + (timing.rfc_ab if refresh == ALL_BANK else timing.rfc_pb)
        state.due[longest] -= 1
        state.next_bank[longest] = (state.next_bank[longest] + 1) % per_rank
        return True, REFRESH, first
    return True, NONE, NONE


@njit(cache=True)
def _pick(
    requests: Requests,
    state: State,
    waiting: Int64,
    queued: int,
    opened: Int64,
    active: int,
    timing: Timing,
    clock: int,
) -> tuple[int, int]:
    """(command, place in the queue): the oldest ready row hit, or else the oldest ready activation or precharge."""
    hit = _first_readable(requests, state, waiting, queued, clock)
    if hit != NONE:
        return READ, hit
    for k in range(queued):
        request = waiting[k]
        bank = requests.bank[request]
        if state.open_row[bank] == NONE:
            r = requests.rank[request]
            if (
                clock >= state.may_activate[bank]
                and clock >= state.rank_activate[r]
                and clock >= state.window[r, state.oldest[r]] + timing.faw
            ):
                return ACTIVATE, k
        elif (
            clock >= state.may_precharge[bank]
            and state.open_row[bank] != requests.row[request]
            and not _wanted(requests, state, waiting, queued, opened, active, bank)
        ):
            return PRECHARGE, k
    return NONE, NONE


@njit(cache=True)
def _wanted(
    requests: Requests, state: State, waiting: Int64, queued: int, opened: Int64, active: int, bank: int
) -> bool:
    """Some request still needs the open row of a bank."""
    for k in range(queued):
        request = waiting[k]
        if requests.bank[request] == bank and requests.row[request] == state.open_row[bank]:
            return True
    for k in range(active):  # noqa: SIM110  numba knows no generators
        if requests.bank[opened[k]] == bank:
            return True
    return False


@njit(cache=True)
def _activate(state: State, bank: int, rank: int, row: int, timing: Timing, clock: int) -> None:
    state.open_row[bank] = row
    state.may_read[bank] = clock + timing.rcd
    state.may_precharge[bank] = clock + timing.ras
    state.may_activate[bank] = clock + timing.rc
    state.rank_activate[rank] = clock + timing.rrd
    state.window[rank, state.oldest[rank]] = clock
    state.oldest[rank] = (state.oldest[rank] + 1) % FAW_WINDOW


@njit(cache=True)
def _precharge(state: State, bank: int, timing: Timing, clock: int) -> None:
    state.open_row[bank] = NONE
    state.may_activate[bank] = max(state.may_activate[bank], clock + timing.rp)


@njit(cache=True)
def _read(state: State, requests: Requests, request: int, timing: Timing, clock: int) -> None:
    bank, rank = requests.bank[request], requests.rank[request]
    for r in range(len(state.rank_read)):
        switch = 0 if r == rank else timing.rank_switch
        state.rank_read[r] = max(state.rank_read[r], clock + timing.bl + switch)
    state.group_read[requests.lane[request]] = clock + timing.ccd_l
    state.may_precharge[bank] = max(state.may_precharge[bank], clock + timing.rtp)
