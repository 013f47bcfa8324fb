"""A page that explains a bound: one HTML file that loads nothing (``lipcert report``, ``Bound.report``)."""

from lipcert.report.findings import Findings
from lipcert.report.gather import Wanted, gather
from lipcert.report.page import page
from lipcert.report.write import report_of, write

__all__ = ["Findings", "Wanted", "gather", "page", "report_of", "write"]
