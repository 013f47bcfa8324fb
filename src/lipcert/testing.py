"""For test suites: an assertion that a model's Lipschitz constant is at most a given number."""

from __future__ import annotations

import math
from typing import Any

from lipcert.api.constants import bound, lower_bound
from lipcert.arguments import real
from lipcert.capture.adapter import Example
from lipcert.capture.load import Model
from lipcert.errors import InputError
from lipcert.result import Bound

#: Options of ``bound`` that are ones of ``lower_bound``, too.
_SHARED = ("norm", "domain", "select", "seed", "device", "anchor", "wrt", "output")


def assert_lipschitz(
    model: Model, example_input: Example, at_most: float, *, lower_budget: float = 5.0, **options: Any
) -> Bound:
    """Assert that a certified bound of the model's Lipschitz constant is at most a number.

        def test_the_controller_is_gentle():
            lipcert.testing.assert_lipschitz(controller, torch.zeros(1, 4), at_most=12.0, domain=lipcert.Box(-1, 1))

    Args:
        model, example_input: as for ``lipcert.bound``.
        at_most: the number, in output units per input unit.
        lower_budget: seconds of search, where the bound is larger, for how steep the model is at least: the message
            then says whether the constant itself is above ``at_most`` or only what was proved of it.
        options: what else ``lipcert.bound`` takes, for one domain.

    Returns:
        The ``Bound``, to save its certificate for instance.

    Raises:
        AssertionError: the bound is larger.
        LipcertError: as ``lipcert.bound``: a model without a bound fails a test by an error.
    """
    __tracebackhide__ = True
    limit = real(at_most)
    if math.isnan(limit):
        raise InputError(f"at_most must be a number, what the constant may be, not {at_most!r:.60}.")
    if isinstance(options.get("domain"), (list, tuple)):
        raise InputError("assert_lipschitz takes one domain: assert on each of several by itself.")
    found = bound(model, example_input, **options)
    if found.value <= limit:
        return found
    shared = {name: value for name, value in options.items() if name in _SHARED}
    least = lower_bound(model, example_input, budget=lower_budget, **shared)
    if least.value > limit:
        verdict = "and the constant itself is larger: the model is that steep at the witness of this lower bound"
    else:
        verdict = "but the constant itself may be smaller: it is not proved; a larger budget= or a domain= may do"
    raise AssertionError(f"the Lipschitz constant is not proved to be ≤ {limit:.7g}, {verdict}.\n  {found}\n  {least}")
