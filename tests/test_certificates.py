"""Certificates: what is saved is what is verified, and nothing else passes; only checks make a Bound."""

import ast
import copy
import dataclasses
import functools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates import file as certificate_file
from lipcert.certificates.base import Witness
from lipcert.certificates.bound import Certificate, check
from lipcert.certificates.file import read, save
from lipcert.certificates.verify import verify
from lipcert.errors import CertificateError
from lipcert.markup import Shown
from lipcert.network.graph import Network
from lipcert.numerics.chance import Chance
from lipcert.problem import Problem
from tests.zoo import Residual, mlp, zoo_case

INF = math.inf
SOURCE = Path(lipcert.__file__).parent
X = torch.zeros(2, 4)


def model() -> nn.Module:
    return nn.Sequential(mlp((4, 5), 1), nn.GELU(), Residual(mlp((5, 6, 5), 2)), mlp((5, 3), 3)).eval()


def made(**options: Any) -> lipcert.Bound:
    return lipcert.bound(model(), X, **{"method": "autolip", **options})


DOMAINS: list[Any] = [
    None,
    lipcert.Ball(torch.ones(4), 0.5, p=INF),
    lipcert.Ball(torch.ones(4, dtype=torch.float32), 2, p=1),
    lipcert.Box(-torch.ones(4), torch.arange(4.0)),
    lipcert.Box(torch.zeros(4, dtype=torch.float64).expand(4), torch.zeros(4, dtype=torch.float64)),
    lipcert.Box(-INF, 0.5),
    lipcert.Intersection(lipcert.Ball(0.5, 0.75, p=2), lipcert.Box(0, 1)),
]


MARGIN, SOME = torch.tensor([[1.0, -1.0, 0.0]]), torch.eye(3)[::2]


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("norm", "domain", "select"),
    [
        ((2, 2), None, None),
        ((1, 1), DOMAINS[1], MARGIN),
        ((INF, INF), DOMAINS[2], SOME),
        ((2, 2), DOMAINS[3], SOME),
        ((1, 1), DOMAINS[4], None),
        ((INF, INF), None, MARGIN),
        ((2, 2), DOMAINS[5], None),
        ((2, 2), DOMAINS[6], None),
    ],
)
def test_save_and_verify(norm: tuple[float, float], domain: Any, select: Tensor | None, tmp_path: Path) -> None:
    found = made(norm=norm, domain=domain, select=select)
    found.save(tmp_path / "m.lipcert")
    again = lipcert.verify(tmp_path / "m.lipcert", model(), torch.ones(3, 4))
    assert again.value == found.value
    assert (again.guarantee, again.norm, again.method, again.log10) == (
        found.guarantee,
        found.norm,
        "autolip",
        found.log10,
    )
    assert type(again.domain) is type(domain)
    assert str(again).split(";")[0] == str(found).split(";")[0]
    assert len(again.breakdown) == len(found.breakdown)
    if isinstance(domain, lipcert.Ball):
        assert (again.domain.radius, again.domain.p) == (domain.radius, domain.p)  # type: ignore[union-attr]
        assert torch.equal(again.domain.center[0], domain.center)  # type: ignore[union-attr]
    again.save(tmp_path / "n.lipcert")
    assert (tmp_path / "n.lipcert").read_bytes() == (tmp_path / "m.lipcert").read_bytes()


@pytest.mark.parametrize("name", ["small cnn", "residual", "concatenation", "shared layer", "max-min 4-6-6-3"])
def test_zoo_round_trips(name: str, tmp_path: Path) -> None:
    case = zoo_case(name)
    found = lipcert.bound(case.model, case.example, method="autolip")
    found.save(tmp_path / "m.lipcert")
    assert lipcert.verify(tmp_path / "m.lipcert", copy.deepcopy(case.model), case.example).value == found.value


@pytest.mark.parametrize("scale", [1e6, 1e-6])
def test_values_outside_floats_round_trip(scale: float, tmp_path: Path) -> None:
    layers: list[nn.Module] = []
    for _ in range(60):
        layers += [nn.Linear(2, 2, bias=False, dtype=torch.float64), nn.ReLU()]
        layers[-2].weight.data.copy_(scale * torch.eye(2))  # type: ignore[union-attr, operator]
    deep = nn.Sequential(*layers).eval()
    found = lipcert.bound(deep, torch.zeros(1, 2), method="autolip")
    path = tmp_path / "m.lipcert"
    found.save(path)
    assert lipcert.verify(path, deep, torch.zeros(1, 2)).log10 == found.log10
    record = read(path)
    assert found.log10 is not None
    forged(record, path, log10=found.log10 - 1.0)
    with pytest.raises(CertificateError, match="log10"):
        lipcert.verify(path, deep, torch.zeros(1, 2))
    forged(record, path, log10=None)
    if scale > 1:
        with pytest.raises(CertificateError, match="proves"):
            lipcert.verify(path, deep, torch.zeros(1, 2))


# -- forgeries with a proper SHA-256 ------------------------------------------------------------------------------


def forged(record: Certificate, path: Path, **changes: Any) -> None:
    """Write a certificate with changed fields; its checksum is right."""
    save(dataclasses.replace(record, **changes), path)


def forged_header(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """The same below the level of the dataclass: any header, any arrays."""
    content = path.read_bytes()
    arrays = certificate_file.load(content)
    header = certificate_file._header(content)
    header.pop("sha256")
    change(header, arrays)
    path.write_bytes(certificate_file._to_bytes(header, arrays))


@functools.cache
def network() -> Network:
    return capture(model(), X)


def refused(path: Path, words: str = ".") -> None:
    with pytest.raises(CertificateError, match=words):
        verify(path, network())


@functools.cache
def genuine() -> lipcert.Bound:
    return made(select=torch.eye(3), domain=DOMAINS[1])


@pytest.fixture
def record(tmp_path: Path) -> tuple[Certificate, Path]:
    path = tmp_path / "m.lipcert"
    genuine().save(path)
    return read(path), path


@pytest.mark.parametrize("factor", [0.999999, 0.5, 0.0, -1.0, math.nan])
def test_a_lowered_value(factor: float, record: tuple[Certificate, Path]) -> None:
    forged(record[0], record[1], value=record[0].value * factor)
    refused(record[1], "claims")


def test_a_lowered_value_with_lowered_norms(record: tuple[Certificate, Path]) -> None:
    """Norms that cannot be proved are found again, so the lowered claim fails."""
    old, path = record
    for factor in (0.5, 0.99999, 0.0, -1.0):
        witness = Witness(old.witness.kind, {"norms": old.witness.arrays["norms"] * factor}, old.witness.settings)
        forged(old, path, witness=witness, value=old.value * min(0.999, abs(factor)) ** 4, log10=None)
        refused(path, "claims")


def test_raised_norms_are_valid_at_their_own_value_only(record: tuple[Certificate, Path]) -> None:
    old, path = record
    witness = Witness(old.witness.kind, {"norms": old.witness.arrays["norms"] * 1.01}, old.witness.settings)
    forged(old, path, witness=witness)
    refused(path, "claims")
    assert old.log10 is not None
    forged(old, path, witness=witness, value=old.value * 1.2, log10=old.log10 + 0.1)
    assert lipcert.verify(path, model(), X).value == old.value * 1.2
    forged(old, path, witness=witness, value=old.value * 1.2)
    refused(path, "log10")


@pytest.mark.parametrize("norms", [
    torch.full((1,), 1.0), torch.zeros(0), torch.zeros(99), torch.zeros(2, 2), torch.tensor(1.0),
    torch.ones(7, dtype=torch.complex64),
])  # fmt: skip
def test_norms_of_a_wrong_form(norms: Tensor, record: tuple[Certificate, Path]) -> None:
    old, path = record
    forged(old, path, witness=Witness(old.witness.kind, {"norms": norms}, old.witness.settings), value=1e-3, log10=None)
    refused(path)


@pytest.mark.parametrize("claims", [math.nan, INF, -INF, 0.0, 5e-324])
def test_absurd_norms_prove_nothing_below_the_truth(claims: float, record: tuple[Certificate, Path]) -> None:
    old, path = record
    norms = torch.full_like(old.witness.arrays["norms"], claims)
    forged(old, path, witness=Witness(old.witness.kind, {"norms": norms}, old.witness.settings), value=old.value * 0.99)
    refused(path, "claims")


@pytest.mark.parametrize("changes", [
    {"guarantee": "proved"}, {"fingerprint": "0" * 64}, {"fingerprint": ""}, {"norm": (1.0, 1.0)}, {"norm": (INF, INF)},
    {"norm": (1.0, 2.0)}, {"norm": (3.0, 3.0)}, {"select": torch.ones(1, 5)}, {"select": torch.full((1, 3), math.nan)},
    {"select": 100.0 * torch.eye(3)}, {"witness": Witness("magic", {}, {})}, {"witness": Witness("", {}, {})},
])  # fmt: skip
def test_other_changed_fields(changes: dict[str, Any], record: tuple[Certificate, Path]) -> None:
    old, path = record
    value = {"value": old.value * 0.5} if "norm" in changes else {}
    forged(old, path, **changes, **value)
    refused(path)


def _set(key: str, value: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    return lambda header, arrays: header.__setitem__(key, value)


@pytest.mark.parametrize("change", [
    _set("format", "lipcert-certificate-2"), _set("format", None), _set("settings", []), _set("settings", None),
    _set("settings", "x"), _set("norm", []), _set("norm", [2.0]), _set("norm", ["2", "x"]), _set("norm", None),
    _set("value", None), _set("value", "much"), _set("value", "nan"), _set("value", []), _set("log10", "x"),
    _set("kind", 7), _set("kind", None), _set("kind", ["layer_product"]), _set("domain", {"type": "sphere"}),
    _set("domain", {}), _set("domain", []), _set("domain", {"type": "ball", "radius": -1, "p": 2}),
    _set("domain", {"type": "ball", "radius": "nan", "p": 2}), _set("domain", {"type": "ball", "radius": 1, "p": 5}),
    _set("domain", {"type": "box"}), _set("guarantee", None),
    lambda header, arrays: header.pop("value"), lambda header, arrays: header.clear(),
    lambda header, arrays: arrays.clear(),
    lambda header, arrays: arrays.update({"domain.center": torch.zeros(3)}),
    lambda header, arrays: arrays.update({"domain.center": torch.full((4,), math.nan)}),
    lambda header, arrays: arrays.update({"select": torch.zeros(3)}),
])  # fmt: skip
def test_malformed_headers_with_a_proper_checksum(
    change: Callable[[dict[str, Any], dict[str, Tensor]], None], record: tuple[Certificate, Path]
) -> None:
    forged_header(record[1], change)
    refused(record[1])


def test_a_weaker_guarantee_is_never_sold_as_a_stronger_one(
    record: tuple[Certificate, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check falls back to a probabilistic norm here: the rigorous claim of the file is refused."""
    import lipcert.certificates.norms.operator_norm as map_norm

    monkeypatch.setattr(map_norm, "MAX_ENTRIES", 0)
    forged(record[0], record[1], value=record[0].value * 10, log10=record[0].log10 + 1)  # type: ignore[operator]
    refused(record[1], "probabilistic")


def test_probabilistic_certificates_verify_with_fresh_randomness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lipcert.certificates.norms.operator_norm as map_norm

    monkeypatch.setattr(map_norm, "MAX_ENTRIES", 0)
    exact = mlp((30, 40, 20), 3)
    found = lipcert.bound(exact, torch.zeros(1, 30), method="autolip")
    assert found.guarantee == "probabilistic"
    found.save(tmp_path / "m.lipcert")
    for _ in range(5):
        again = lipcert.verify(tmp_path / "m.lipcert", exact, torch.zeros(1, 30))
        assert (again.value, again.guarantee) == (found.value, "probabilistic")


def test_verification_does_not_need_the_method_that_made_it(tmp_path: Path) -> None:
    """A hand-made witness is as good: the check is all there is."""
    problem = Problem(network())
    found = check(problem, Witness("layer_product"), "by hand", Chance())
    assert found.value == pytest.approx(made(method=lipcert.AutoLip()).value, rel=0.05)  # no stacked norm is claimed
    assert found.value >= made().value
    assert found.method == "by hand"
    found.save(tmp_path / "m.lipcert")
    assert lipcert.verify(tmp_path / "m.lipcert", model(), X).value == found.value


def test_file_is_safetensors_with_a_readable_header(record: tuple[Certificate, Path]) -> None:
    from safetensors import safe_open

    with safe_open(record[1], framework="pt") as opened:
        header = json.loads(opened.metadata()["header"])
    assert header["kind"] == "layer_product"
    assert header["value"] == record[0].value
    assert header["version"] == lipcert.__version__


# -- who may do what --------------------------------------------------------------------------------------------


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def test_certificates_import_no_search_and_never_unpickle() -> None:
    for path in (SOURCE / "certificates").glob("*.py"):
        for name in _imports(path):
            assert not name.startswith(("lipcert.methods", "lipcert.attack", "lipcert.api", "pickle")), (path, name)
        assert "torch.load" not in path.read_text()
        assert "weights_only" not in path.read_text()


def test_only_certificates_construct_a_bound() -> None:
    makers = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called == "Bound":
                    makers.append(path.relative_to(SOURCE).parts[0])
    assert set(makers) == {"certificates"}


def test_bound_lower_bound_and_estimate_are_unrelated() -> None:
    kinds = (lipcert.Bound, lipcert.LowerBound, lipcert.Estimate)
    for kind in kinds:
        assert set(kind.__mro__) - {Shown} == {kind, object}
        assert not any(hasattr(kind, name) for name in ("__float__", "__int__", "__add__", "__index__"))


def test_verify_runs_with_methods_and_attack_blocked(tmp_path: Path) -> None:
    """The module of the verifier, on its own, in a process in which importing a search fails."""
    made().save(tmp_path / "m.lipcert")
    torch.save(model().state_dict(), tmp_path / "state.pt")
    script = f"""
import sys, types
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("lipcert.methods", "lipcert.attack", "lipcert.api")):
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocked())
package = types.ModuleType("lipcert")  # lipcert/__init__.py itself imports the API, hence the methods
package.__path__ = [{str(SOURCE)!r}]
package.__version__ = {lipcert.__version__!r}
sys.modules["lipcert"] = package
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
import torch
from lipcert.certificates.verify import verify
from lipcert.capture.torch_export import capture
from torch import nn
from tests.zoo import Residual, mlp
model = nn.Sequential(mlp((4, 5), 1), nn.GELU(), Residual(mlp((5, 6, 5), 2)), mlp((5, 3), 3)).eval()
print(verify({str(tmp_path / "m.lipcert")!r}, capture(model, torch.zeros(2, 4))).value)
assert not any(name.startswith(("lipcert.methods", "lipcert.attack")) for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) == made().value


# -- what the fingerprint sees ------------------------------------------------------------------------------------


def fingerprint(module: nn.Module, *shape: int) -> str:
    return capture(module.eval(), torch.zeros(1, *shape)).fingerprint


@pytest.mark.few(7)
@pytest.mark.parametrize(
    ("a", "b", "shape"),
    [
        (nn.LeakyReLU(0.1), nn.LeakyReLU(0.2), (3,)),
        (nn.ELU(1.0), nn.ELU(0.5), (3,)),
        (nn.Hardtanh(-1, 1), nn.Hardtanh(-1, 2), (3,)),
        (nn.Softplus(beta=1), nn.Softplus(beta=2), (3,)),
        (nn.Softshrink(0.1), nn.Softshrink(0.2), (3,)),
        (nn.GELU(), nn.GELU(approximate="tanh"), (3,)),
        (nn.MaxPool2d(2), nn.MaxPool2d(2, 1), (1, 4, 4)),
        (nn.MaxPool2d(3, 1, padding=1), nn.MaxPool2d(3, 1, padding=1, ceil_mode=True), (1, 4, 4)),
        (nn.AvgPool2d(2), nn.AvgPool2d(2, divisor_override=3), (1, 4, 4)),
        (nn.Softmax(dim=1), nn.Softmax(dim=2), (3, 3)),
        (nn.LayerNorm(3, eps=1e-3), nn.LayerNorm(3, eps=1e-2), (3,)),
        (nn.Flatten(), nn.Flatten(2), (2, 3, 1)),
        (nn.ReflectionPad1d(1), nn.ReplicationPad1d(1), (1, 4)),
        (nn.ZeroPad1d((1, 0)), nn.ZeroPad1d((0, 1)), (1, 4)),
    ],
)
def test_settings_are_in_the_fingerprint(a: nn.Module, b: nn.Module, shape: tuple[int, ...]) -> None:
    same = isinstance(a, nn.MaxPool2d) and b.ceil_mode  # with stride 1 there is nothing to round up
    assert (fingerprint(a, *shape) == fingerprint(b, *shape)) is bool(same)


class Chosen(nn.Module):
    """Index tensors, offsets and constants in every kind of op that reads one."""

    def __init__(self, index: list[int], how: str) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor(index))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        index = self.index
        assert isinstance(index, Tensor)
        if self.how == "index_select":
            return torch.index_select(x, 1, index)
        if self.how == "index":
            return x[:, index]
        if self.how == "gather":
            return torch.gather(x, 1, index.expand(len(x), -1))
        if self.how == "mask":
            return torch.where(index > 0, x, torch.zeros_like(x))
        if self.how == "mul":
            return x * index
        if self.how == "add":
            return torch.relu(x + index)
        if self.how == "cat":
            return torch.cat([x, index.to(x.dtype).expand(len(x), -1)], 1)
        return torch.relu(x @ index.to(x.dtype).diag())


@pytest.mark.parametrize("how", ["index_select", "index", "gather", "mask", "mul", "add", "cat", "matmul"])
def test_constants_are_in_the_fingerprint(how: str) -> None:
    assert fingerprint(Chosen([0, 1, 2], how), 3) != fingerprint(Chosen([0, 1, 0], how), 3)


def test_the_fingerprint_does_not_depend_on_the_example_or_the_precision_of_storage() -> None:
    single = mlp((3, 5, 3), 1).float()
    double = copy.deepcopy(single).double()  # the same real function
    assert fingerprint(single, 3) == fingerprint(double, 3)
    double[0].bias.data += 1e-12  # type: ignore[index, union-attr]
    assert fingerprint(double, 3) != fingerprint(double.float(), 3)  # rounding to float32 made another function
