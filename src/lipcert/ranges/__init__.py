"""What values are known to lie in: enclosures of numbers and ranges of nodes on a domain."""

from lipcert.numerics.interval import Interval
from lipcert.ranges.build import Ranges

__all__ = ["Interval", "Ranges"]
