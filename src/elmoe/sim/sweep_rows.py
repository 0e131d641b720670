"""From a chunk of a sweep to rows, and the Pareto front of rows. Columns are those of `elmoe simulate -o`, less phases
and `speedup_vs_ar`.

Beside them: one column per varied field (empty for systems that lack it), `acceptance` as the sweep gives it, and
`problem`, which says why a point cannot be (it may name a smaller one that cannot be either); its results are then
empty. `speedup_vs_xpu` compares with the built-in xPU with as many PEs, whatever is varied, and is empty where a batch
does not fit that. Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from elmoe.errors import CapacityError, ConfigError
from elmoe.sim.profile import SchemeSpecs, named_profile, scheme_specs
from elmoe.sim.run import Outcome, Query, baseline, evaluate, result_columns
from elmoe.sim.sweep import Case, Chunk, Sweep
from elmoe.sim.write_rows import flatten

if TYPE_CHECKING:
    import pyarrow as pa

Floats = npt.NDArray[np.float64]
Columns = dict[str, npt.NDArray[Any]]
Ask = Callable[[tuple[int, ...], tuple[int, ...]], Query]

SCENARIO = ("model", "workload", "acceptance", "batch", "context")
"""What designs are compared under."""
MINIMISE = ("latency_ms_per_token", "energy_mj_per_token.total")
RESULTS = (
    *("acceptance_rate", "mean_accepted_length", "latency_ms_per_token", "tokens_per_s", "speedup_vs_xpu"),
    *(f"energy_mj_per_token.{name}" for name in ("compute", "ext", "hb", "comm", "static", "total")),
    *(f"cost_usd_per_million_tokens.{name}" for name in ("energy", "hardware", "total")),
    *("bottleneck", "unique_experts", "miss_rate"),
    *(f"memory_bytes.{name}" for name in ("hb_dense", "hb_kv", "hb_draft", "hb_experts")),
    *(f"memory_bytes.{name}" for name in ("ext_kv", "ext_draft", "ext_total")),
    *("cached_experts_per_layer", "pool_experts_per_layer", "problem"),
)
TEXTS = ("bottleneck", "problem")


def evaluate_chunk(sweep: Sweep, chunk: Chunk) -> pa.Table:
    """The rows of a chunk."""
    import pyarrow as pa

    specs = scheme_specs()
    baselines: dict[Hashable, Floats] = {}
    parts = [_case_columns(sweep, case, specs, baselines) for case in chunk.cases]
    kinds = _schema(sweep)
    arrays = {
        name: pa.array(np.concatenate([part[name] for part in parts]), type=kind, from_pandas=True)
        for name, kind in kinds.items()
    }
    return pa.table(arrays)


def pareto(rows: Sequence[Mapping[str, Any]], minimise: Sequence[str] = MINIMISE) -> list[bool]:
    """Whether each row is on the Pareto front of its scenario: no other is as good in all of `minimise`, better in one.

    rows: with flat names. Equal rows stay together; rows without a result are on no front.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, row in enumerate(rows):
        if all(row.get(name) is not None for name in minimise):
            groups.setdefault(tuple(row.get(name) for name in SCENARIO), []).append(index)
    marks = [False] * len(rows)
    for members in groups.values():
        goals = np.array([[rows[index][name] for name in minimise] for index in members], dtype=np.float64)
        for index, best in zip(members, _front(goals), strict=True):
            marks[index] = bool(best)
    return marks


def _front(goals: Floats) -> npt.NDArray[np.bool_]:
    """[N, K] -> [N]. In lexicographic order a row can only be dominated by an earlier one of the front."""
    marks = np.zeros(len(goals), dtype=bool)
    front = np.empty((0, goals.shape[1]))
    for index in np.lexsort(goals.T[::-1]):
        row = goals[index]
        if not np.any(np.all(front <= row, axis=1) & np.any(front < row, axis=1)):
            marks[index] = True
            front = np.vstack((front, row))
    return marks


def _schema(sweep: Sweep) -> dict[str, Any]:
    """Column names and Arrow types, the same for every chunk."""
    import pyarrow as pa

    text, real, whole = pa.string(), pa.float64(), pa.int64()
    of = {str: text, float: real, int: whole}
    return {
        **{"model": text, "system": text, "scheme": text, "mode": text, "hb_gb": real},
        **{item.name: of[type(item.values[0])] for item in sweep.vary},
        **{"batch": whole, "context": whole, "workload": text, "acceptance": real},
        **{name: text if name in TEXTS else real for name in RESULTS},
    }


def _case_columns(sweep: Sweep, case: Case, specs: SchemeSpecs, baselines: dict[Hashable, Floats]) -> Columns:
    model, design, machine = sweep.models[case.model], case.design, sweep.machine(case.design)
    profile = named_profile(model, case.workload, specs)

    def ask(batches: tuple[int, ...], contexts: tuple[int, ...]) -> Query:
        return Query(
            machine, model, profile, case.workload, design.scheme, design.mode, batches, contexts, case.acceptance
        )

    found = [
        _results(outcome) if isinstance(outcome, Outcome) else _impossible(outcome)
        for outcome in _outcomes(ask, case.batches, sweep.contexts, specs)
    ]
    results = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    key = (case.model, case.workload, machine.compute.pes, case.batches)
    if key not in baselines:
        baselines[key] = _baseline_ms(ask, case.batches, sweep.contexts, specs)
    results["speedup_vs_xpu"] = baselines[key] / results["latency_ms_per_token"]
    settings = dict(design.settings)
    same = {
        "model": case.model,
        "system": design.system,
        "scheme": design.scheme,
        "mode": design.mode,
        "hb_gb": machine.hb_equivalent_gb,
        **{item.name: settings.get(item.name) for item in sweep.vary},
        "workload": case.workload,
        "acceptance": case.acceptance,
    }
    count = len(case.batches) * len(sweep.contexts)
    return results | {
        **{name: np.full(count, value, dtype=object) for name, value in same.items()},
        "batch": np.repeat(case.batches, len(sweep.contexts)),
        "context": np.tile(sweep.contexts, len(case.batches)),
    }


def _outcomes(
    ask: Ask, batches: tuple[int, ...], contexts: tuple[int, ...], specs: SchemeSpecs
) -> Iterator[Outcome | str]:
    """All points at once if they can be; otherwise in halves. What cannot be is one message per point.

    Every limit is one of size: what the smallest batch and context cannot, none can.
    """
    try:
        outcome = evaluate(ask(batches, contexts), specs)
    except (CapacityError, ConfigError) as error:
        why = str(error)
    else:
        yield outcome
        return
    if len(batches) == len(contexts) == 1:
        yield why
        return
    smallest = next(_outcomes(ask, (min(batches),), (min(contexts),), specs))
    if isinstance(smallest, str):
        yield from [smallest] * (len(batches) * len(contexts))
    elif len(batches) > 1:
        half = len(batches) // 2
        yield from _outcomes(ask, batches[:half], contexts, specs)
        yield from _outcomes(ask, batches[half:], contexts, specs)
    else:
        half = len(contexts) // 2
        yield from _outcomes(ask, batches, contexts[:half], specs)
        yield from _outcomes(ask, batches, contexts[half:], specs)


def _baseline_ms(ask: Ask, batches: tuple[int, ...], contexts: tuple[int, ...], specs: SchemeSpecs) -> Floats:
    def plain(some: tuple[int, ...], others: tuple[int, ...]) -> Query:
        return baseline(ask(some, others))

    found = _outcomes(plain, batches, contexts, specs)
    return np.concatenate([one.latency_ms if isinstance(one, Outcome) else np.array([np.nan]) for one in found])


def _results(outcome: Outcome) -> Columns:
    """What `run.rows` says of each point, less its phases."""
    columns = result_columns(outcome)
    del columns["phases"]
    return flatten(columns) | {"problem": np.full(len(outcome.latency_ms), None, dtype=object)}


def _impossible(why: str) -> Columns:
    """One point without results."""
    absent: Columns = {name: np.array([None if name in TEXTS else np.nan]) for name in RESULTS}
    return absent | {"problem": np.array([why], dtype=object)}
