"""Rules that turn ATen operations into nodes of the Network, one file per op family."""
