"""Rounding, verified definiteness, certified norms and Lanczos: the lowest layer.

Nothing here knows networks. ``spectral`` and ``psd`` prove (rounding included), ``probabilistic`` bounds
with a probability, ``lanczos`` and ``triplets`` estimate; every docstring says which.
"""
