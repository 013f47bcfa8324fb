"""A page that explains a bound: one HTML file that loads nothing (``lipcert report``, ``Bound.report``)."""

from lipcert.report.findings import Findings, LayerTable
from lipcert.report.gather import Wanted, gather, layers
from lipcert.report.page import page
from lipcert.report.write import report_of, write

__all__ = ["Findings", "LayerTable", "Wanted", "gather", "layers", "page", "report_of", "write"]
