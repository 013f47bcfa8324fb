"""Expressions written by hand that have a Lipschitz constant although their parts have none.

A match is a proof by algebra: coefficients are exact rationals (or enclosed between two), maps are read from their
structure, and nothing is decided by evaluating at chosen points. ``expression`` reads what acts entry by entry,
``sums`` what adds entries up, ``facts`` what is known of an activation; every other file is patterns, which register
themselves in ``registry`` for the op they start at.
"""
