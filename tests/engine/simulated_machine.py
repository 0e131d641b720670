"""A machine whose passes take known times, for the controller: no model, no clock, no sleeping.

Seconds are in units of an AR step of one sequence. What a run is judged by is free of luck: true seconds and expected
tokens of the depths that were chosen. The controller sees noisy seconds and drawn verdicts.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from elmoe.engine.controller import Controller, Plan, Speculation
from elmoe.engine.cost_model import Pass, StepLog
from elmoe.trace.schema import PassKind

Curve = Callable[[int], float]


def linear(growth: float) -> Curve:
    """Each further row costs this share of the first."""
    return lambda rows: 1 + growth * (rows - 1)


def moe(rows: int) -> float:
    """Memory-bound: dense weights once, and the distinct ones of 32 experts, of which each row takes 4."""
    return 0.35 + 0.65 * (1 - (1 - 4 / 32) ** rows) / (4 / 32)


@dataclass
class Machine:
    """Cost of passes, chances of acceptance, and noise; all but the seed may change in mid-run."""

    curve: Curve
    draft: float
    """Cost of a draft pass against a target pass of as many rows."""
    chance: float
    """That a level is accepted, given that those before it were."""
    noise: float = 0.1
    spikes: float = 0.01
    """Share of passes that take five times as long."""
    speed: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def seconds(self, one: Pass) -> float:
        return self.curve(one.rows) * (self.draft if one.kind is PassKind.DRAFT else 1.0) / self.speed

    def measured(self, one: Pass) -> float:
        spike = 5 if self._random.random() < self.spikes else 1
        return self.seconds(one) * math.exp(self._random.gauss(0, self.noise)) * spike

    def accepted(self, depth: int) -> int:
        levels = 0
        while levels < depth and self._random.random() < self.chance:
            levels += 1
        return levels

    def tokens(self, depth: int) -> float:
        """Expected tokens per sequence and step."""
        return sum(self.chance**level for level in range(depth + 1))

    def step_seconds(self, speculation: Speculation, plan: Plan, batch: int) -> float:
        return sum(self.seconds(one) for one in passes(speculation, plan, batch))

    def rate(self, speculation: Speculation, depth: int, batch: int) -> float:
        """Expected tokens per second of a fixed depth."""
        plan = Plan(depth, speculation.verify_at(depth))
        return self.tokens(depth) / self.step_seconds(speculation, plan, batch)

    def best(self, speculation: Speculation, batch: int) -> tuple[float, int]:
        """The rate of the best fixed depth, and that depth."""
        return max((self.rate(speculation, depth, batch), depth) for depth in range(speculation.depth + 1))


@dataclass
class Run:
    """A part of a generation with one controller."""

    seconds: float = 0.0
    tokens: float = 0.0
    """Expected, per sequence."""
    depths: list[int] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    @property
    def steps_by_depth(self) -> Counter[int]:
        return Counter(self.depths)


def passes(speculation: Speculation, plan: Plan, batch: int) -> list[Pass]:
    """The passes of a step in which every sequence drafts a full tree."""
    if plan.depth == 0:
        return [Pass(PassKind.AR, batch)]
    width, quality = speculation.width, speculation.quality
    nodes = min(plan.verify, width + (plan.depth - 1) * width**2)
    drafts = [Pass(PassKind.DRAFT, batch * (width if level else 1), quality) for level in range(plan.depth)]
    return [*drafts, Pass(PassKind.VERIFY, batch * (1 + nodes))]


def decode(
    controller: Controller, machine: Machine, speculation: Speculation, batches: Iterable[int], tokens: float = math.inf
) -> Run:
    """Steps over these batch sizes, until there are so many tokens per sequence."""
    run = Run()
    for batch in batches:
        if run.tokens >= tokens:
            break
        plan = controller.plan(speculation, batch)
        log = StepLog(batch)
        log.passes = [(one, machine.measured(one)) for one in passes(speculation, plan, batch)]
        if plan.depth:
            log.trees = [(plan.depth, machine.accepted(plan.depth)) for _ in range(batch)]
        controller.learn(speculation, log)
        run.seconds += machine.step_seconds(speculation, plan, batch)
        run.tokens += machine.tokens(plan.depth)
        run.depths.append(plan.depth)
    return run
