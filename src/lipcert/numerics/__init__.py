"""Rounding, verified definiteness, certified norms and Lanczos: the lowest layer.

Nothing here knows networks. ``spectral`` and ``psd`` prove (rounding included), ``lanczos`` bounds
with a probability, or estimates; every docstring says which.
"""
