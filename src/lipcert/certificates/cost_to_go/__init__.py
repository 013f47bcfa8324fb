"""Lower bounds of outputs on a domain by the quadratic cost-to-go: multipliers, one-dimensional minima, the proof."""
