"""Command line: ``lipcert bound | certify | lower | verify | …``. Exit code 0 ok, 1 not as good as asked, 2 error."""

from lipcert.cli.main import main

__all__ = ["main"]
