"""The trusted core stays small enough to read: the limits of docs/trusted.txt hold, and nothing is left out of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from docs import trusted
from lipcert.certificates import kinds  # noqa: F401  (registers every check)
from lipcert.certificates.base import _CHECKS


def test_the_checks_have_not_outgrown_their_limits() -> None:
    assert trusted.main(["--check"]) == 0


def test_every_kind_of_certificate_has_a_limit_near_its_length() -> None:
    assert set(trusted.kinds()) == set(_CHECKS)
    assert set(_CHECKS) | set(trusted.PARTS) == set(trusted.limits())
    for kind, count in trusted.lines().items():
        assert count <= trusted.limits()[kind] < 1.15 * count, kind


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", list(trusted.kinds()))
def test_the_list_is_what_a_check_really_imports(kind: str) -> None:
    """In a process of its own; ``lipcert`` itself is an empty package there, as it would import everything."""
    start = trusted.kinds()[kind]
    listed = {str(path.relative_to(trusted.SOURCE)) for path in trusted.closure(start)}
    script = f"""
import importlib, sys, types
package = types.ModuleType("lipcert")
package.__path__ = [{str(trusted.SOURCE)!r}]
sys.modules["lipcert"] = package
importlib.import_module("lipcert.certificates.{start.stem}")
print(*[m.__file__ for name, m in sys.modules.items() if name.startswith("lipcert.")], sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    loaded = {str(Path(line).relative_to(trusted.SOURCE)) for line in done.stdout.splitlines()}
    assert loaded <= listed
    assert not any(name.startswith(("search/", "methods/", "attack/", "capture/", "ops/")) for name in listed)


def test_kinds_and_parts_are_all_that_a_bound_rests_on() -> None:
    """No trusted package has a file that nobody is told to read, and no searching one is among them."""
    listed = {path for found in trusted.parts().values() for path in found}
    listed |= {path for start in trusted.kinds().values() for path in trusted.closure(start)}
    names = {str(path.relative_to(trusted.SOURCE)) for path in listed}
    assert not any(name.startswith(("search/", "methods/", "attack/", "cli/")) for name in names)
    trusted_rooms = ("numerics", "network", "increments", "certificates", "ops", "capture")
    held = {
        str(path.relative_to(trusted.SOURCE))
        for room in trusted_rooms
        for path in (trusted.SOURCE / room).rglob("*.py")
    }
    assert held <= names


def test_kinds_alone_registers_every_check() -> None:
    """In a process of its own: a verifier imports no method."""
    script = "import lipcert.certificates.kinds, lipcert.certificates.base as b; print(*sorted(b._CHECKS))"
    bare = f"import sys, types; p = types.ModuleType('lipcert'); p.__path__ = [{str(trusted.SOURCE)!r}]; "
    bare += "sys.modules['lipcert'] = p; " + script
    done = subprocess.run([sys.executable, "-c", bare], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == sorted(trusted.kinds())
