"""All arms in turn, round after round, and what the medians say.

The machine's memory bandwidth drifts, so arms are compared inside a round, where they follow each other, and the
ratio of a row is the median of its rounds' ratios. Knows nothing about how an arm works.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from elmoe.bench.arms import Arm, Sample
from elmoe.bench.workload import Decoding, RacePlan
from elmoe.models.shape import ModelShape

Progress = Callable[[int, int], None]
WARM_UP_STEPS = 2


@dataclass
class Timings:
    """What was measured, in the order of the rounds."""

    decode: dict[tuple[str, int], list[Sample]] = field(default_factory=dict)
    """By arm and batch."""
    prefill: dict[str, list[float]] = field(default_factory=dict)
    """Tokens/s by arm."""
    probe: dict[int, list[float]] = field(default_factory=dict)
    """GB/s read by the bandwidth probe, by the batch that it preceded."""


def race(
    arms: Sequence[Arm], plan: RacePlan, shape: ModelShape, probe: Callable[[], float], progress: Progress | None = None
) -> Timings:
    """Run all arms `plan.rounds` times at every batch, interleaved: each round begins with another arm.

    Raises ConfigError when a sequence would outgrow the model's context. `progress` gets (turns done, turns in all).
    """
    plan.check_fit(shape)
    warm_up(arms, plan, shape)
    timings = Timings()
    done, total = 0, plan.rounds * len(arms) * (len(plan.batches) + 1)

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    for turn in range(plan.rounds):
        first = turn % len(arms)
        order = [*arms[first:], *arms[:first]]
        prompt = plan.prompt(shape, turn)
        for arm in order:
            timings.prefill.setdefault(arm.name, []).append(arm.prefill(prompt))
            tick()
        for batch in plan.batches:
            work = plan.decoding(shape, batch, turn)
            timings.probe.setdefault(batch, []).append(probe())
            for arm in order:
                timings.decode.setdefault((arm.name, batch), []).append(arm.decode(work))
                tick()
    return timings


def warm_up(arms: Sequence[Arm], plan: RacePlan, shape: ModelShape) -> None:
    """Every arm once, untimed: weights are read from disk and decoded, buffers made."""
    work = plan.decoding(shape, max(plan.batches), 0)
    for arm in arms:
        arm.prefill(plan.prompt(shape, 0))
        arm.decode(Decoding(work.contexts, work.steps[:WARM_UP_STEPS]))


def rows(arms: Sequence[Arm], plan: RacePlan, timings: Timings, peer: str | None) -> list[dict[str, Any]]:
    """One row per arm and batch, for JSON.

    `ratio_to_ar`: decoding speed over that of the AR arm timed in the same way (`Arm.baseline`); `ratio_to_peer`: over
    the arm named `peer`, None without one. `fraction_of_bandwidth`: bytes read per second of decoding over what the
    probe read just before, None where the bytes are not known. `prefill_tok_s` does not depend on the batch.
    """
    return [_row(arm, batch, timings, peer) for batch in plan.batches for arm in arms]


def _row(arm: Arm, batch: int, timings: Timings, peer: str | None) -> dict[str, Any]:
    samples = timings.decode[arm.name, batch]
    speeds = [sample.tok_s for sample in samples]
    fractions = [
        sample.bytes_per_s / 1e9 / rate
        for sample, rate in zip(samples, timings.probe[batch], strict=True)
        if sample.bytes_per_s is not None
    ]

    def ratio_to(other: str) -> float:
        others = timings.decode[other, batch]
        return statistics.median(mine / sample.tok_s for mine, sample in zip(speeds, others, strict=True))

    return {
        "arm": arm.name,
        "batch": batch,
        "decode_tok_s": statistics.median(speeds),
        "prefill_tok_s": statistics.median(timings.prefill[arm.name]),
        "ratio_to_ar": ratio_to(arm.baseline),
        "ratio_to_peer": ratio_to(peer) if peer is not None else None,
        "fraction_of_bandwidth": statistics.median(fractions) if fractions else None,
        "decode_tok_s_by_round": speeds,
        "read_gb_per_s_by_round": timings.probe[batch],
    } | _mean_counters(samples)


def _mean_counters(samples: Sequence[Sample]) -> dict[str, float]:
    kept = [sample.counters for sample in samples if sample.counters]
    return {name: statistics.fmean(counters[name] for counters in kept) for name in kept[0]} if kept else {}
