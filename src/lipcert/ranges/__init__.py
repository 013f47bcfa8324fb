"""What values are known to lie in: enclosures of numbers and ranges of nodes on a domain."""
