"""Hypothesis settings of the property tests: the same examples on every machine, no time limit per example."""

from hypothesis import settings

settings.register_profile("elmoe", deadline=None, derandomize=True, database=None)
settings.load_profile("elmoe")
