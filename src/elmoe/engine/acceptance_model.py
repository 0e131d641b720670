"""How likely the draft's next level is accepted, from the verdicts so far.

One chance per level: that it is accepted, given that the levels before it were. Recent verdicts count more, and what
was not tested for a while is believed less firmly, not forgotten. Knows nothing about costs.
"""

from __future__ import annotations

from collections.abc import Iterable

PRIOR = 0.7
"""Chance before the first verdict."""
PRIOR_TESTS = 2.0
"""What the first guess of a level (the level before it) counts for, in tests."""
MEMORY = 96.0
"""Tests that a chance is the mean of, at most."""
LEAST = 4.0
"""Tests that a chance still counts for, however long ago they were made."""
FADE = 0.99
"""Share of the confidence that survives a step without a test."""


class AcceptanceModel:
    """Chances by level, from 0 for the first."""

    def __init__(self) -> None:
        self.chances: list[float] = []
        self._tests: list[float] = []
        self._tested_at: list[int] = []

    def observe(self, step: int, levels: int, accepted: int) -> None:
        """Take the verdict on a tree of `levels` levels of which `accepted` held; step: number of the decode step."""
        for level in range(min(levels, accepted + 1)):
            if level == len(self.chances):
                self.chances.append(self.chance(level))
                self._tests.append(PRIOR_TESTS)
                self._tested_at.append(step)
            tests = min(self._weight(level, step) + 1, MEMORY)
            self._tests[level], self._tested_at[level] = tests, step
            self.chances[level] += ((level < accepted) - self.chances[level]) / tests

    def chance(self, level: int) -> float:
        """That `level` is accepted if those before it are; an untested level is like the deepest tested one."""
        return self.chances[min(level, len(self.chances) - 1)] if self.chances else PRIOR

    def expected_tokens(self, depth: int) -> list[float]:
        """Tokens that a verify step is expected to give a sequence, the bonus token included, by depth from 0 on."""
        return tokens_by(self.chance(level) for level in range(depth))

    def most_tokens(self, depth: int, step: int) -> list[float]:
        """The same with the chances that are still possible at `step`: higher, the less was tested lately."""
        if not self.chances:
            return tokens_by([1.0] * depth)
        tested = range(min(depth, len(self.chances)))
        highest = [min(1.0, self.chances[i] + 0.5 / max(self._weight(i, step), LEAST) ** 0.5) for i in tested]
        return tokens_by([*highest, *highest[-1:] * (depth - len(highest))])

    def _weight(self, level: int, step: int) -> float:
        """What the chance of a level counts for, in tests."""
        tests, idle = self._tests[level], step - self._tested_at[level] - 1
        return max(tests * FADE**idle, min(tests, LEAST)) if idle > 0 else tests


def tokens_by(chances: Iterable[float]) -> list[float]:
    """Expected tokens of a verify step by depth, from 0 on, whose levels have these chances."""
    tokens, reached = [1.0], 1.0
    for chance in chances:
        reached *= chance
        tokens.append(tokens[-1] + reached)
    return tokens
