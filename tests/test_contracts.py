"""What every registered method promises on every network of the zoo, and what every certificate does.

A method without a row here cannot exist: the rows come from the registry.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
import torch

from lipcert.attack import attack
from lipcert.capture.torch_export import capture
from lipcert.certificates.bound import Certificate
from lipcert.certificates.file import read
from lipcert.certificates.verify import verify
from lipcert.errors import CertificateError, MethodError
from lipcert.methods.base import Run, registered
from lipcert.network.graph import Network
from lipcert.numerics.chance import Chance
from lipcert.problem import Norm, Problem
from lipcert.result import Bound
from tests.certificates.forging import Genuine, spoilt_arrays, with_array
from tests.zoo import ZOO, zoo_case

NAMES = [name for name, _, _ in ZOO]

#: Methods that say themselves to which networks they apply; all others apply to every one.
SOME_ONLY = {"eclipse_fast", "hull"}


def rows(every: bool) -> list[tuple[str, str, Norm]]:
    """(method, network, norms): all of them, or each method on each network with its pairs of norms by turns."""
    result = []
    for kind in registered().values():
        for place, name in enumerate(NAMES):
            norms = kind.norms if every else (kind.norms[place % len(kind.norms)],)
            result += [(kind.name, name, norm) for norm in norms]
    return result


@functools.cache
def network(name: str) -> Network:
    case = zoo_case(name)
    return capture(case.model, case.example)


@functools.cache
def low(name: str, norm: Norm) -> float:
    """A value that an attack attains."""
    return attack(Problem(network(name), norm), None, 0.1, seed=0).value


@functools.cache
def bounded(method: str, name: str, norm: Norm) -> Bound:
    run = Run(torch.Generator().manual_seed(0), torch.device("cpu"), budget=1.0)
    return registered()[method]().bound(Problem(network(name), norm), run, Chance())


def keeps_its_promises(method: str, name: str, norm: Norm, path: Path) -> None:
    """A bound, at or above what an attack attains; its file proves the same, and no lower claim."""
    try:
        bound = bounded(method, name, norm)
    except MethodError:
        assert method in SOME_ONLY, "an error where a bound should be"
        return
    assert math.isfinite(bound.value)
    assert low(name, norm) <= bound.value
    assert (bound.norm, bound.domain) == (norm, None)
    assert bound.delta == 0.0 or bound.guarantee != "rigorous"
    bound.save(path)
    again = verify(path, network(name))
    assert (again.value, again.log10, again.guarantee) == (bound.value, bound.log10, bound.guarantee)
    record = read(path)
    case = Genuine(record, network(name), low(name, norm))
    if case.low > 0:
        case.refused()
        for place, (key, array) in enumerate(sorted(record.witness.arrays.items())):
            forgeries = list(spoilt_arrays(array))
            case.refused(witness=with_array(record.witness, key, forgeries[(7 * place + len(name)) % len(forgeries)]))


@pytest.mark.few(14)
@pytest.mark.parametrize(("method", "name", "norm"), rows(every=False))
def test_each_method_on_each_network(method: str, name: str, norm: Norm, tmp_path: Path) -> None:
    keeps_its_promises(method, name, norm, tmp_path / "c.lipcert")


@pytest.mark.slow
@pytest.mark.parametrize(("method", "name", "norm"), rows(every=True))
def test_each_method_on_each_network_in_each_norm(method: str, name: str, norm: Norm, tmp_path: Path) -> None:
    keeps_its_promises(method, name, norm, tmp_path / "c.lipcert")


@pytest.mark.parametrize("name", ["relu 4-6-3", "residual"])
def test_one_changed_byte_is_noticed(name: str, tmp_path: Path) -> None:
    path = tmp_path / "c.lipcert"
    for method in registered():
        try:
            bounded(method, name, (2.0, 2.0)).save(path)
        except MethodError:
            continue
        content = path.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 7)):
            path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            with pytest.raises(CertificateError):
                verify(path, network(name))


def test_every_registered_method_is_tried() -> None:
    assert {method for method, _, _ in rows(every=False)} == set(registered())
    assert isinstance(bounded("autolip", "residual", (2.0, 2.0)).certificate, Certificate)
