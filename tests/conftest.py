"""Hypothesis draws the same examples in every run, so that a change is judged by what it changes.

``HYPOTHESIS_PROFILE=random make test`` looks for new ones.
"""

import os

from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
