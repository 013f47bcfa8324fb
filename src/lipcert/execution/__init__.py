"""How far the network that runs, in float32, may be from the network that is meant: a forward walk over executed ops."""
