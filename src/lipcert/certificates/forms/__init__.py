"""Quadratic forms of increments: multipliers, elimination and linear matrix inequalities, each proved."""
