"""The Network: immutable graph, linear-map algebra, nonlinear nodes and transformations."""
