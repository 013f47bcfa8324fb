"""What values are known to lie in: enclosures of numbers and ranges of nodes on a domain."""

from lipcert.ranges.build import Ranges
from lipcert.ranges.intervals import Interval

__all__ = ["Interval", "Ranges"]
