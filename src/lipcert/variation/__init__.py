"""What else derivatives say: their signs, how little a map contracts, and how fast a flow can spread."""
