"""Rounding, verified definiteness, certified norms and Lanczos: the lowest layer.

Nothing here knows networks. ``spectral`` and ``psd`` prove (rounding included), ``lanczos`` bounds
with a probability, or estimates; every docstring says which.
"""

from lipcert.numerics.lanczos import (
    certify_sigma_max_probabilistic,
    kuczynski_wozniakowski_epsilon,
    lambda_max_ritz,
    power_method,
    sigma_max_probabilistic,
    top_singular_triplets,
)
from lipcert.numerics.psd import is_positive_definite, is_positive_definite_scaled
from lipcert.numerics.rounding import (
    UNIT,
    add_up,
    div_up,
    down,
    gamma,
    mul_up,
    norm_up,
    sqrt_up,
    up,
)
from lipcert.numerics.spectral import (
    certify_sigma_max,
    gram_radius,
    norm_1_upper,
    norm_inf_upper,
    sigma_max_upper,
)

__all__ = [
    "UNIT",
    "add_up",
    "certify_sigma_max",
    "certify_sigma_max_probabilistic",
    "div_up",
    "down",
    "gamma",
    "gram_radius",
    "is_positive_definite",
    "is_positive_definite_scaled",
    "kuczynski_wozniakowski_epsilon",
    "lambda_max_ritz",
    "mul_up",
    "norm_1_upper",
    "norm_inf_upper",
    "norm_up",
    "power_method",
    "sigma_max_probabilistic",
    "sigma_max_upper",
    "sqrt_up",
    "top_singular_triplets",
    "up",
]
