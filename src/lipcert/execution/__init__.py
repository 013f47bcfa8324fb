"""How far the network that runs in float32 may be from the one that is meant: a walk over the executed ops."""
