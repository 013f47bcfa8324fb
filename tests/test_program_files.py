"""``.pt2`` and ``.lipcert`` files from anybody: nothing in them is executed, and damaged ones are refused by name."""

import contextlib
import copy
import io
import json
import os
import random
import resource
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.capture.program_file import require_data
from lipcert.capture.program_text import require_expression, require_guard, require_tree
from lipcert.certificates.file import _to_bytes
from lipcert.errors import CaptureError, LipcertError
from tests.onnx_files import damaged

X = torch.zeros(1, 4)
#: Bytes that reading one of these small files may take beyond what the process has.
MEMORY = 1 << 30
#: What a file would do if anything in it ran.
RUN = "__import__('os').mkdir('ran')"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).eval()
        self.shift = torch.ones(2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.div(self.body(x), 2.0).reshape(x.shape[0], -1) + self.shift


@pytest.fixture(scope="module")
def content() -> bytes:
    """An exported program with a batch of any size."""
    program = torch.export.export(Net().eval(), (torch.zeros(2, 4),), dynamic_shapes=({0: torch.export.Dim("b")},))
    return _bytes(program)


def _bytes(program: Any) -> bytes:
    held = io.BytesIO()
    torch.export.save(program, held)
    return held.getvalue()


def rezipped(content: bytes, change: Callable[[str, bytes], bytes], extra: dict[str, bytes] | None = None) -> bytes:
    """The same archive with other entries."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
        for name, data in (extra or {}).items():
            target.writestr(name, data)
    return out.getvalue()


def with_graph(content: bytes, change: Callable[[Any], None]) -> bytes:
    """The same archive with another graph."""

    def changed(name: str, data: bytes) -> bytes:
        if "/models/" not in name:
            return data
        graph = json.loads(data)
        change(graph)
        return json.dumps(graph).encode()

    return rezipped(content, changed)


class Evil:
    """A pickle of it makes a folder."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def _pickled(content: bytes, kind: str) -> bytes:
    held = io.BytesIO()
    torch.save((Evil(),), held)

    def changed(name: str, data: bytes) -> bytes:
        if kind == "config" and name.endswith("weights_config.json"):
            config = json.loads(data)
            config["config"]["body.0.bias"]["use_pickle"] = True
            return json.dumps(config).encode()
        if kind == "opaque" and name.endswith("constants_config.json"):
            return data.replace(b'"tensor_0"', b'"opaque_obj_0"')
        evil = name.endswith("sample_inputs/model.pt") if kind == "inputs" else name.endswith("weight_1")
        return held.getvalue() if evil and kind != "opaque" else data

    return rezipped(
        content, changed, {"archive/data/constants/opaque_obj_0": held.getvalue()} if kind == "opaque" else {}
    )


def _inner(graph: Any) -> Any:
    return graph["graph_module"]["graph"]


def _guard(graph: Any) -> None:
    graph["guards_code"] = [f"{RUN} is None"]


def _size(graph: Any) -> None:
    _inner(graph)["tensor_values"]["x"]["sizes"][0] = {"as_expr": {"expr_str": RUN, "hint": {"as_int": 3}}}


def _hidden(graph: Any) -> None:
    """A value that has the name of what is not looked at."""
    values = _inner(graph)["tensor_values"]
    values["metadata"] = copy.deepcopy(values["x"])
    values["metadata"]["sizes"][0] = {"as_expr": {"expr_str": RUN, "hint": {"as_int": 3}}}


def _target(target: str) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        _inner(graph)["nodes"][0]["target"] = target

    return change


def _name(graph: Any) -> None:
    _inner(graph)["inputs"][-1]["as_tensor"]["name"] = f"x={RUN}"


def _factory(graph: Any) -> None:
    context = json.dumps({"default_factory_module": "antigravity", "default_factory_name": "a", "dict_context": []})
    tree = {"type": "collections.defaultdict", "context": context, "children_spec": []}
    graph["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps([1, tree])


@pytest.mark.parametrize(
    "spoil",
    [
        *(lambda c, f=f: with_graph(c, f) for f in (_guard, _size, _hidden, _name, _factory)),
        *(
            lambda c, t=t: with_graph(c, _target(t))
            for t in ("torch.os.system", "torch.ops.aten.from_file.default", "torch.ops.load_library", "_operator.call")
        ),
        *(lambda c, k=k: _pickled(c, k) for k in ("inputs", "config", "opaque")),
        lambda c: rezipped(c, lambda n, d: d, {"archive/data/aotinductor/model/model.so": b"\x7fELF"}),
    ],
)  # fmt: skip
def test_nothing_in_a_program_is_executed(
    spoil: Callable[[bytes], bytes], content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.pt2").write_bytes(spoil(content))
    with pytest.raises(CaptureError, match=r"torch\.export\.load may run what such a file holds"):
        lipcert.bound("m.pt2", X, method="autolip")
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt2"]


def test_a_small_file_does_not_ask_for_much_memory(content: bytes, tmp_path: Path) -> None:
    def wide(name: str, data: bytes) -> bytes:
        if not name.endswith("weights_config.json"):
            return data
        config = json.loads(data)
        meta = config["config"]["body.0.weight"]["tensor_meta"]
        meta["sizes"], meta["strides"] = [{"as_int": 1 << 20}] * 2, [{"as_int": 0}] * 2
        return json.dumps(config).encode()

    (tmp_path / "m.pt2").write_bytes(rezipped(content, wide))
    with pytest.raises(CaptureError, match="far more than the file has"):
        lipcert.bound(tmp_path / "m.pt2", X)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    (tmp_path / "m.pt2").write_bytes(out.getvalue())
    with pytest.raises(CaptureError, match="compressed"):
        lipcert.bound(tmp_path / "m.pt2", X)


def test_an_archive_of_a_later_version_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    directory = content.rindex(b"PK\x01\x02")
    (tmp_path / "m.pt2").write_bytes(content[: directory + 6] + b"\x7b" + content[directory + 7 :])
    with pytest.raises(CaptureError, match=r"cannot load .*m\.pt2"):
        lipcert.bound(tmp_path / "m.pt2", X)


class Ordinary(nn.Module):
    """Sizes that depend on the batch, names that are no identifiers, texts as arguments, conditions on sizes."""

    def forward(self, x: dict[str, Tensor], *, scale: Tensor) -> dict[str, Tensor]:
        value = x["obs/pos"]
        half = value.reshape(value.shape[0] // 2, 2, -1)
        folded = nn.functional.gelu(half, approximate="tanh").reshape(value.shape[0], -1)
        return {"a b": torch.einsum("bi,bi->b", folded, value)[:, None] * scale, "c": folded[:, ::2]}


def test_an_ordinary_program_is_data(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_bytes(content)
    assert require_data(tmp_path / "m.pt2")
    found = lipcert.bound(tmp_path / "m.pt2", X, method="autolip").value
    assert found == pytest.approx(lipcert.bound(Net().eval(), X, method="autolip").value)


@pytest.mark.slow
def test_other_ordinary_programs_are_data(tmp_path: Path) -> None:
    batch = {"x": {"obs/pos": {0: torch.export.Dim.AUTO}}, "scale": {}}
    example = ({"obs/pos": torch.randn(4, 6)},)
    program = torch.export.export(Ordinary(), example, {"scale": torch.tensor(2.0)}, dynamic_shapes=batch)
    assert program._guards_code
    for k, one in enumerate((program, program.run_decompositions())):
        (tmp_path / f"{k}.pt2").write_bytes(_bytes(one))
        assert require_data(tmp_path / f"{k}.pt2")


def test_texts_that_python_evaluates() -> None:
    plain = ["Symbol('s0', positive=True)", "2*s0 + Mod(s1, 3)", "Max(1, s0**2)", "FloorDiv(Pow(s0, Integer(2)), 2)"]
    assert all(map(require_expression, plain))
    assert all(map(require_guard, ["L['x'].size()[0] % 2 == 0", "2 <= L['a']['b'].stride()[1]", "math.isnan(L['t'])"]))
    for text in (
        RUN, "exit()", "open(0)", "().__class__", "(lambda: 0)()", "[1 for s0 in s1]", "Symbol(s0.name)", "9**9**9**9",
        "Pow(9, Pow(9, 99))", "s0**999", "Max('exit()')", "Symbol('a b')", "f'{exit()}'", "s0 if exit else s1", "s0[0]",
        "(s0 := 3)", "L['x'].size()", "Symbol(*s0)", "9" * 40, "1" + "+1" * 9000, "(" * 500 + ")" * 500, "\0",
    ):  # fmt: skip
        assert not require_expression(text), text
    for text in (RUN, "L['x'].__class__", "L['x'].size('a')", 'L["a\'b"] == 1', "L['x'].tolist()", "math.factorial(9)"):
        assert not require_guard(text), text
    assert require_tree(json.dumps([1, {"type": "builtins.dict", "context": '["a/b", 3]', "children_spec": []}]))
    assert not require_tree(json.dumps([1, {"type": None, "context": json.dumps({"__enum__": 1, "fqn": "os:a"})}]))
    assert not require_tree(json.dumps([1, {"type": "builtins.dict", "context": '["a\'b"]', "children_spec": []}]))


# -- mutations ----------------------------------------------------------------------------------------------------


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        yield (*path, key)
        yield from _leaves(one, (*path, key))


def _mutated(value: Any, rng: random.Random) -> Any:
    """Nested data with one part replaced, taken out or put elsewhere."""
    new = copy.deepcopy(value)
    paths = list(_leaves(new))
    path = rng.choice(paths)
    held = new
    for key in path[:-1]:
        held = held[key]
    other = new
    for key in rng.choice(paths):
        other = other[key]
    kind = rng.randrange(4)
    if kind == 0:
        del held[path[-1]]
    elif kind == 1:
        held[path[-1]] = copy.deepcopy(other)
    else:
        held[path[-1]] = rng.choice((-1, 0, 1, 2, 7, 1 << 33, 1 << 62, 0.5, "", "x", "s0", None, True, [], {}, [[]]))
    return new


def _programs(content: bytes, seeds: range) -> Iterator[tuple[int, bytes]]:
    for seed in seeds:
        rng = random.Random(seed)

        def changed(name: str, data: bytes, rng: random.Random = rng) -> bytes:
            if name.endswith(".json") and rng.random() < 0.6:
                return json.dumps(_mutated(json.loads(data), rng)).encode()
            return damaged(data, rng) if data and rng.random() < 0.05 else data

        yield seed, damaged(content, rng) if rng.random() < 0.3 else rezipped(content, changed)


@pytest.mark.parametrize("seeds", [range(20), pytest.param(range(20, 10_000), marks=pytest.mark.slow)], ids=len)
def test_mutated_programs_are_read_or_refused_by_name(seeds: range, content: bytes, tmp_path: Path) -> None:
    path, read = tmp_path / "m.pt2", 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed, data in _programs(content, seeds):
        path.write_bytes(data)
        started = time.monotonic()
        with contextlib.suppress(LipcertError):
            read += lipcert.bound(path, X, method="autolip").value >= 0.0
        assert time.monotonic() - started < 60.0, seed
        assert [p.name for p in tmp_path.iterdir()] == ["m.pt2"], seed
    assert read
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


@pytest.mark.parametrize("seeds", [range(25), pytest.param(range(25, 10_000), marks=pytest.mark.slow)], ids=len)
def test_mutated_certificates_are_refused_or_true(seeds: range, tmp_path: Path) -> None:
    """With the right hash, too: who changes a file can work that out. What is believed is above the constant."""
    model, path = Net().eval().double(), tmp_path / "m.lipcert"
    network = model.body
    steep = torch.func.jacrev(lambda x: network(x) / 2)(
        -torch.linalg.lstsq(network[0].weight, network[0].bias).solution
    )  # type: ignore[index]
    truth = float(torch.linalg.matrix_norm(steep.detach(), 2))
    found = lipcert.bound(model, X, method="lipsdp", budget=2)
    found.save(path)
    content, believed = path.read_bytes(), 0
    header, arrays = _parts(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        rng = random.Random(seed)
        path.write_bytes(damaged(content, rng) if rng.random() < 0.3 else _forged(header, arrays, rng))
        started = time.monotonic()
        try:
            bound = lipcert.verify(path, model, X)
        except LipcertError:
            continue
        finally:
            assert time.monotonic() - started < 60.0, seed
        believed += 1
        assert bound.domain is not None or bound.norm != (2, 2) or bound.anchor is not None or bound.value >= truth, (
            seed
        )
    assert believed
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


def _parts(content: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors.torch import load

    length = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["header"])
    header.pop("sha256")
    return header, load(content)


def _forged(header: dict[str, Any], arrays: dict[str, Tensor], rng: random.Random) -> bytes:
    arrays = {name: array.clone() for name, array in arrays.items()}
    if rng.random() < 0.5:
        return _to_bytes(_mutated(header, rng), arrays)
    name = rng.choice(list(arrays))
    array = arrays[name]
    kind = rng.randrange(5)
    if kind == 0 and array.numel():
        number = rng.choice((0.0, -1.0, 1e300, float("nan"), float("inf"), 1e-300))
        array.view(-1)[rng.randrange(array.numel())] = number if array.is_floating_point() else rng.randrange(-3, 9)
    elif kind == 1:
        arrays[name] = array.reshape(-1)[: rng.randrange(array.numel() + 1)].clone()
    elif kind == 2:
        arrays[name] = array.to(rng.choice((torch.float32, torch.float16, torch.int64, torch.bool)))
    elif kind == 3:
        del arrays[name]
    elif array.is_floating_point():
        array.mul_(rng.choice((0.5, 1.1, 10.0, -1.0)))
    return _to_bytes(header, arrays)
