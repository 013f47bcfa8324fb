"""Hypothesis draws the same examples in every run, so that a change is judged by what it changes.

``HYPOTHESIS_PROFILE=random make test`` looks for new ones.
"""

import os
import time
from collections import defaultdict

import pytest
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

# budgets count the seconds of this process, so that what a search reaches does not depend on what else runs
time.perf_counter = time.process_time


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``few(n)``: of a test's many cases about n, spread evenly, are fast ones; the others are marked slow."""
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("few"):
            cases[item.nodeid.split("[")[0]].append(item)
    for same in cases.values():
        marker = same[0].get_closest_marker("few")
        step = max(1, round(len(same) / marker.args[0])) if marker else 1
        for number, item in enumerate(same):
            if number % step:
                item.add_marker(pytest.mark.slow)
