"""The public functions: glue between capture, methods, certificates and attack."""

from lipcert.api.constants import bound, compare, estimate, lower_bound, methods, supported_ops, verify
from lipcert.api.outputs import execution_error, margin, output_bounds, ranges
from lipcert.api.variation import derivative_signs, inverse_lipschitz_bound, one_sided_lipschitz_bound

__all__ = [
    "bound",
    "compare",
    "derivative_signs",
    "estimate",
    "execution_error",
    "inverse_lipschitz_bound",
    "lower_bound",
    "margin",
    "methods",
    "one_sided_lipschitz_bound",
    "output_bounds",
    "ranges",
    "supported_ops",
    "verify",
]
