"""Command line: ``lipcert bound | certify | lower | verify | methods | ops``. Exit code 0 ok, 1 not as asked, 2 error."""

from lipcert.cli.main import main

__all__ = ["main"]
