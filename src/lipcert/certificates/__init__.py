"""Checks: the only code that makes a ``Bound``. Small, and independent of every method."""
