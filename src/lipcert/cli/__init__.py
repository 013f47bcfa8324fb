"""Command line: ``lipcert bound | lower | verify | methods | ops``. Exit code 0 ok, 1 bound above --max, 2 error."""

from lipcert.cli.main import main

__all__ = ["main"]
