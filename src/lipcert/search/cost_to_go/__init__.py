"""Search of the quadratic cost-to-go: multipliers for lower bounds of outputs on domains."""
