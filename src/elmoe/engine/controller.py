"""Decides, step by step, between plain decoding and Elastic-SD, and the shape of the tree.

With `Mode.AUTO` the controller takes what promises the most tokens per second, by what passes cost (`cost_model.py`)
and what was accepted (`acceptance_model.py`) so far. Plain decoding is home: an account of the time that speculation
lost against it bounds what trying costs (`trials.py`). `docs/speculation.md` has the rules and their limits. Knows
nothing about models.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from elmoe.backend.protocol import DraftQuality
from elmoe.engine.acceptance_model import AcceptanceModel, tokens_by
from elmoe.engine.cost_model import CostModel, Pass, Quote, StepLog
from elmoe.engine.trials import Account, Pause
from elmoe.errors import ConfigError
from elmoe.trace.schema import PassKind


class Mode(Enum):
    """How to decode."""

    AR = "ar"
    """One token per sequence and pass."""
    SD = "sd"
    """Elastic-SD at every step."""
    AUTO = "auto"
    """The controller decides."""


LIMITS = {"width": (1, 64), "depth": (0, 64), "verify": (1, 1024), "tau": (1, 1024)}
"""Beyond these a tree costs more than any acceptance gives back; they also bound the scratch cells of a sequence."""


@dataclass(frozen=True)
class Speculation:
    """Settings of Elastic-SD. With Mode.AUTO depth and verify are upper bounds."""

    mode: Mode = Mode.AUTO
    """Speculate at every step, never, or where it promises more tokens per second."""
    width: int = 2
    """Nodes expanded per level, and candidates per node."""
    depth: int = 4
    """Draft passes per step."""
    verify: int = 8
    """Draft tokens verified per sequence and step."""
    quality: DraftQuality = field(default_factory=DraftQuality)
    """Bits and experts per token of the draft."""
    tau: int | None = None
    """With Mode.AUTO: the smallest batch that speculates, always at full depth (the paper's rule). None: measured costs
    decide."""
    routing_aware: bool = True
    """Where experts must be read from a slow tier: verify what gives most tokens per second of reading, not what scores
    best (`verify_set.py`)."""

    def __post_init__(self) -> None:
        if not isinstance(self.mode, Mode):
            raise ConfigError(f"speculation mode must be Mode.AR, Mode.SD or Mode.AUTO, not {self.mode!r}")
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            if name == "tau" and value is None:
                continue
            if not isinstance(value, int) or not least <= value <= most:
                raise ConfigError(f"speculation {name} must be a whole number from {least} to {most}, not {value}")

    def fixed_depth(self, batch: int) -> int | None:
        """Draft levels for a step over `batch` sequences, 0 for plain decoding; None where measurements decide."""
        if self.mode is Mode.AR or self.depth == 0:
            return 0
        if self.mode is Mode.SD:
            return self.depth
        if self.tau is not None:
            return self.depth if batch >= self.tau else 0
        return None

    def verify_at(self, depth: int) -> int:
        """Tokens to verify with a tree of `depth` levels: a shallower tree verifies in proportion."""
        return -(-self.verify * depth // max(self.depth, 1))


@dataclass(frozen=True)
class Plan:
    """Shape of a step's trees."""

    depth: int
    """0 is plain decoding."""
    verify: int


ENTER, LEAVE, CHANGE = 1.04, 1.0, 1.03
"""Speed against AR from which it speculates and below which it stops; speed against the present depth for another."""
HOLD_AR, HOLD_SD, LONGEST_HOLD = 8, 4, 32
"""Steps from one decision to the next: deciding takes time too. Plain decoding is held on to until a trial is due."""
AR_MEASUREMENTS = 2
"""AR steps of a batch size before anything is compared with them."""
AR_SHARE, AR_INTERVAL = 0.005, 8
"""While it speculates: share of the time for AR steps that keep the comparison fresh, and the steps between two."""
DOUBTFUL = 1.5
"""How many times as long as its rows one by one a first pass may take before it is not believed."""
COVERAGE_EXPONENT = 0.9
"""Acceptance goes as this power of the share of routing that the pool covers: 0.88 to 1.0 with random pools of a
quarter to three quarters, whose share is their size (bench/results/elasticity.json)."""
DEPTHS = (*range(1, 9), 12, 16, 24, 32, 48)
"""Depths that are considered, and the deepest allowed."""


class Estimate(NamedTuple):
    """What a step at one depth promises."""

    tokens: float
    """Per sequence, the bonus token included."""
    seconds: float
    risk: float
    """Seconds to reckon a trial with; see `_risk`."""
    most: float
    """Tokens per second, at the best that nothing measured rules out."""
    known: bool
    """Whether its passes are measured, or not above all measured sizes: only then it is taken into use."""


class Controller:
    """Learns from every step of an engine, in every mode; decides with `Mode.AUTO`."""

    def __init__(self) -> None:
        self.costs = CostModel()
        self.switches = 0
        """Changes of the depth in use."""
        self.trials = 0
        """Single steps at another depth than the one in use, to learn about it."""
        self._acceptance: dict[tuple[int, DraftQuality], AcceptanceModel] = {}
        self._gains: dict[int, dict[int, float]] = {}
        self._account = Account()
        self._pauses: dict[tuple[int, bool], Pause] = {}
        self._tried: Pause | None = None
        self._unsettled: list[StepLog] = []
        self._steps, self._seconds = 0, 0.0
        self._ar_step, self._ar_seconds = 0, 0.0
        self._depth, self._held = 0, 0
        self._plan, self._batch = Plan(0, 1), 0
        self._speculation: Speculation | None = None

    def plan(self, speculation: Speculation, batch: int) -> Plan:
        """The shape of the next step over `batch` sequences."""
        fixed = speculation.fixed_depth(batch)
        if fixed is not None:
            return Plan(fixed, speculation.verify)
        if self._held and self._batch == batch and self._speculation is speculation:
            self._held -= 1
            return self._plan
        self._speculation, self._batch = speculation, batch
        depth, self._held = self._decide(speculation, batch)
        self._plan = Plan(depth, speculation.verify_at(depth))
        return self._plan

    def learn(self, speculation: Speculation, log: StepLog) -> None:
        """Take the costs and verdicts of a step."""
        self._steps += 1
        for one, seconds in log.passes:
            self._seconds += seconds
            self.costs.observe(one, seconds)
        if log.trees:
            acceptance = self._acceptance_of(speculation)
            for levels, accepted in log.trees:
                acceptance.observe(self._steps, levels, accepted)
        elif log.chosen:
            self._ar_step, self._ar_seconds = self._steps, self._seconds
        if log.chosen and speculation.fixed_depth(log.batch) is None and self._account.is_open:
            self._unsettled.append(log)

    def draft_elasticity(self, speculation: Speculation, depth: int) -> float:
        """Percent more tokens per step of `depth` levels for one percent more routing that the draft's pool covers."""
        if depth == 0:
            return 0.0
        model = self._acceptance_of(speculation)
        chances = [model.chance(level) for level in range(depth)]
        tokens, more = tokens_by(chances)[-1], tokens_by([min(1.01 * chance, 1.0) for chance in chances])[-1]
        return COVERAGE_EXPONENT * 100 * (more / tokens - 1)

    def as_dict(self) -> dict[str, Any]:
        """What it knows and did, for JSON: measured costs, chances of acceptance by level, and by batch size the speed
        against AR that each depth promised at the last decision.
        """
        acceptance = [
            {"width": width, "quality": quality.as_dict(), "chances": model.chances}
            for (width, quality), model in self._acceptance.items()
        ]
        decisions = {"gains": self._gains, "switches": self.switches, "trials": self.trials}
        return {"costs": self.costs.table(), "acceptance": acceptance} | decisions

    def _acceptance_of(self, speculation: Speculation) -> AcceptanceModel:
        return self._acceptance.setdefault((speculation.width, speculation.quality), AcceptanceModel())

    def _decide(self, speculation: Speculation, batch: int) -> tuple[int, int]:
        """Depth of the next step, and for how many further steps the decision holds."""
        self._settle()
        self._depth = min(self._depth, speculation.depth)
        if self.costs.measured(Pass(PassKind.AR, batch)) < AR_MEASUREMENTS:
            return 0, 0
        ar = self.costs.quote(Pass(PassKind.AR, batch)).seconds
        self._account.open(ar)
        if not self.costs.knows(PassKind.DRAFT, speculation.quality):
            return self._try(1, self._pause(batch)) if self._account.affords(0.0) else (0, HOLD_AR - 1)
        estimates = self._estimates(speculation, batch, ar)
        gains = {depth: each.tokens * ar / each.seconds for depth, each in estimates.items()}
        best = max(gains, key=gains.__getitem__)
        if self._tried is not None:
            self._tried.after(self._steps, gains[best])
            self._tried = None
        self._gains[batch] = gains
        self._switch({depth: gain for depth, gain in gains.items() if estimates[depth].known}, ar)
        hope = max(estimates, key=lambda depth: estimates[depth].most)
        if self._depth == 0:
            return self._while_plain(estimates, (hope, best), batch, ar)
        return self._while_speculating(gains[self._depth], hope, estimates[hope].most * ar, batch, ar)

    def _switch(self, gains: dict[int, float], ar: float) -> None:
        """Take another depth into use if it promises enough more than the present one; gains: of the known ones."""
        before, best = self._depth, max(gains, key=gains.__getitem__, default=0)
        if before == 0:
            if best and gains[best] > ENTER and self._account.affords(0.0):
                self._depth = best
        elif not best or gains[best] < LEAVE or self._account.overdrawn(ar):
            self._depth = 0
        elif before not in gains or gains[before] < LEAVE or gains[best] > gains[before] * CHANGE:
            self._depth = best
        self.switches += self._depth != before

    def _while_plain(
        self, estimates: dict[int, Estimate], wanted: tuple[int, int], batch: int, ar: float
    ) -> tuple[int, int]:
        """Plain decoding, or a step at the first of the wanted depths that the account affords."""
        pause = self._pause(batch)
        if self._steps < pause.due:
            return 0, min(max(pause.due - self._steps, HOLD_AR), LONGEST_HOLD) - 1
        for depth in wanted:
            if self._account.affords(estimates[depth].risk - estimates[depth].tokens * ar):
                return self._try(depth, pause)
        return 0, LONGEST_HOLD - 1

    def _while_speculating(self, gain: float, hope: int, most: float, batch: int, ar: float) -> tuple[int, int]:
        """The depth in use, or an AR step, or a step at the depth `hope` that might reach the gain `most`."""
        idle = self._seconds - self._ar_seconds
        if self._steps - self._ar_step >= AR_INTERVAL and idle * AR_SHARE >= ar * (1 - 1 / gain):
            return 0, 0
        pause = self._pause(batch)
        if hope != self._depth and most > gain * CHANGE and self._steps >= pause.due:
            return self._try(hope, pause)
        return self._depth, HOLD_SD - 1

    def _try(self, depth: int, pause: Pause) -> tuple[int, int]:
        self.trials += 1
        self._tried = pause
        return depth, 0

    def _pause(self, batch: int) -> Pause:
        """Trials are counted by class of batch sizes (1, 2-3, 4-7, ...), apart while it speculates."""
        return self._pauses.setdefault((batch.bit_length(), self._depth > 0), Pause())

    def _estimates(self, speculation: Speculation, batch: int, ar: float) -> dict[int, Estimate]:
        """By depth."""
        acceptance, most, width = self._acceptance_of(speculation), speculation.depth, speculation.width
        expected, highest = acceptance.expected_tokens(most), acceptance.most_tokens(most, self._steps)
        first = self.costs.quote(Pass(PassKind.DRAFT, batch, speculation.quality))
        later = self.costs.quote(Pass(PassKind.DRAFT, batch * width, speculation.quality))
        first_risk, later_risk = _risk(first, 1, ar), _risk(later, width, ar)
        estimates = {}
        for depth in (*(each for each in DEPTHS if each < most), most):
            rows, more = 1 + min(speculation.verify_at(depth), width + (depth - 1) * width * width), depth - 1
            verify = self.costs.quote(Pass(PassKind.VERIFY, batch * rows))
            estimates[depth] = Estimate(
                tokens=expected[depth],
                seconds=first.seconds + more * later.seconds + verify.seconds,
                risk=first_risk + more * later_risk + _risk(verify, rows, ar),
                most=highest[depth] / (first.least + more * later.least + verify.least),
                known=first.known and verify.known and (later.known or not more),
            )
        return estimates

    def _settle(self) -> None:
        """Charge what the steps since the last decision lost against plain decoding.

        By the usual costs of their passes: noise hits both alike.
        """
        if not self._unsettled:
            return
        batch = self._unsettled[0].batch
        ar = self.costs.quote(Pass(PassKind.AR, batch)).seconds
        spent = 0.0
        for one, count in Counter(one for log in self._unsettled for one, _ in log.passes).items():
            spent += count * _risk(self.costs.quote(one), one.rows / batch, ar)
        tokens = sum(batch + sum(accepted for _, accepted in log.trees) for log in self._unsettled)
        self._account.settle(spent, spent - tokens * ar / batch, ar)
        self._unsettled.clear()


def _risk(quote: Quote, rows: float, ar: float) -> float:
    """Seconds of a pass to reckon with, where an AR step takes `ar` for one of its `rows` times the batch.

    A first pass that took longer than its rows one by one is not believed: weights may have been fetched, memory
    touched. It must not forbid a second one, and is reckoned as an AR step.
    """
    return ar if quote.measured < 2 and quote.seconds > DOUBTFUL * rows * ar else quote.most
