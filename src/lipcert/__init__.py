"""lipcert: certified upper bounds on the Lipschitz constant of trained neural networks."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lipcert.version import __version__ as __version__

if TYPE_CHECKING:
    from lipcert.api import *  # noqa: F403
    from lipcert.api import __all__ as __all__


class _Package(ModuleType):
    """The package: its names are in ``lipcert.api``, imported with the first of them that is asked for.

    torch takes seconds to import, which nobody need wait for who asks the command line for help.
    """

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") or name == "__all__":
            public = import_module("lipcert.api")
            if name == "__all__" or name in public.__all__:
                value = getattr(public, name)
                self.__dict__[name] = value
                return value
            if name in ("plot", "report", "testing", "theory", "training"):  # modules that people use by name
                return import_module(f"lipcert.{name}")
            if name in self.__dict__:  # a module that came with it
                return self.__dict__[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        """``lipcert.methods`` and ``lipcert.ranges`` are functions, not the packages that are imported as these."""
        if not (name in ("methods", "ranges") and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *import_module("lipcert.api").__all__})


sys.modules[__name__].__class__ = _Package
