"""Unusable questions and data: each a named error that says what, where and what to do, before anything is computed."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lipcert
from lipcert.robustness.data_file import read_data
from tests.robustness.cases import linear, points, right_labels

X = points(4)
Y = right_labels(linear(), X)
LOW = torch.tensor([0, 1, 2, 0])


def nan_at(place: tuple[int, ...]) -> torch.Tensor:
    x = X.clone()
    x[place] = math.nan
    return x


QUESTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "radius 0": ({"radius": 0}, "above 0.*clean accuracy"),
    "negative radius": ({"radius": -0.1}, "above 0"),
    "infinite radius": ({"radius": math.inf}, "finite number above 0"),
    "radius that is none": ({"radius": math.nan}, "above 0"),
    "radius in words": ({"radius": "0.3"}, "must be a number"),
    "radius that is true": ({"radius": True}, "must be a number"),
    "several as one": ({"radius": (0.1, 0.2)}, "must be one number"),
    "unsorted radii": ({"radii": (0.3, 0.1)}, r"radii\[0\] is 0.3 and radii\[1\] is 0.1"),
    "equal radii": ({"radii": (0.1, 0.1)}, "must ascend"),
    "no radii": ({"radii": ()}, "one or more"),
    "a zero among radii": ({"radii": (0.0, 0.1)}, r"radii\[0\]"),
    "one number as radii": ({"radii": 0.1}, "radius="),
    "both": ({"radius": 0.1, "radii": (0.1,)}, "not both"),
    "norm 3": ({"norm": 3}, "1, 2 or inf"),
    "norm in words": ({"norm": "l2"}, "1, 2 or inf"),
    "clip upside down": ({"clip": (1, 0)}, "the lesser first"),
    "clip of one": ({"clip": 1}, "pair"),
    "clip without end": ({"clip": (0, math.inf)}, "finite"),
    "clip that leaves out an image": ({"clip": (0.5, 1)}, r"inputs\[\d\] holds .* outside clip"),
    "scale of one": ({"scale": 2}, "pair"),
    "scale with std 0": ({"scale": (0, 0)}, "above 0"),
    "scale with nan": ({"scale": (math.nan, 1)}, "finite"),
    "scale of other channels": ({"scale": ((0.0, 0.0), 1.0)}, "2 entries as mean"),
    "seed": ({"seed": -1}, "seed"),
    "budget": ({"budget": 0}, "budget"),
    "engine": ({"engine": "cluster"}, "'local', 'ray'"),
    "an engine's class": ({"engine": lipcert.RayEngine}, "'local', 'ray'"),
    "workers": ({"workers": 0}, "workers"),
    "effort": ({"effort": -1}, "effort"),
    "memory": ({"memory": 0}, "memory"),
    "truth values": ({"memory": np.True_}, "memory"),
    "a norm that is true": ({"norm": np.True_}, "1, 2 or inf"),
    "device": ({"device": "abacus"}, "device"),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_an_unusable_question(name: str, tmp_path: Path) -> None:
    options, text = QUESTIONS[name]
    with pytest.raises(lipcert.InputError, match=text):
        lipcert.certify(linear(), X, Y, resume=tmp_path / "run", **options)
    assert not list(tmp_path.iterdir())


DATA: dict[str, tuple[Any, Any, str]] = {
    "a label out of range": (X, [0, 1, 3, 2], r"labels\[2\] is 3, but the model has 3 outputs.*1 of 4"),
    "labels from 1": (X, [1, 2, 3, 3], "labels - 1"),
    "a negative label": (X, [0, 1, -1, 2], r"labels\[2\] is -1"),
    "labels as floats": (X, Y.float(), r"labels\.long\(\)"),
    "labels as truth": (X, torch.tensor([True, False, True, True]), "whole numbers"),
    "one-hot labels": (X, torch.eye(3)[Y], r"argmax\(1\)"),
    "labels in a column": (X, Y[:, None], r"\(N,\)"),
    "labels in words": (X, ["cat", "dog", "cat", "dog"], "labels must be whole numbers"),
    "too few labels": (X, Y[:3], "4 inputs .* and 3 labels"),
    "no labels": (X, None, "labels must be"),
    "one example without batch": (X[0], Y[:1], "leading axis"),
    "nothing": (X[:0], Y[:0], "nothing to certify"),
    "nan": (nan_at((2, 1)), Y, r"inputs\[2\] holds nan at \(1,\)"),
    "infinity": (X / torch.tensor([1.0, 1, 0]), Y, r"inputs\[0\] holds inf"),
    "truth": (X > 0.5, Y, "real numbers"),
    "complex": (X.to(torch.complex64), Y, "real tensor"),
    "text": ([["a", "b", "c"]] * 4, Y, "inputs must"),
    "ragged": ([[1.0, 2.0], [1.0]], [0, 1], "inputs must be"),
    "sparse": (X.to_sparse(), Y, "sparse"),
    "huge whole numbers": (torch.full((4, 3), 2**60), Y, r"2\^53"),
    "another shape": (torch.rand(4, 5), Y, r"does not run on inputs\[:1\] \(shape \(1, 5\)"),
}


@pytest.mark.parametrize("name", DATA)
def test_unusable_data(name: str, tmp_path: Path) -> None:
    inputs, labels, text = DATA[name]
    with pytest.raises(lipcert.InputError, match=text):
        lipcert.certify(linear(), inputs, labels, radius=0.1, resume=tmp_path / "run")
    assert not list(tmp_path.iterdir())


class Map(nn.Module):
    """Scores for every pixel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x, 2 * x], 1)


MODELS: dict[str, tuple[Any, type[Exception], str]] = {
    "one output": (nn.Linear(3, 1).eval(), lipcert.InputError, "two at least.*zeros_like"),
    "scores per pixel": (Map().eval(), lipcert.InputError, r"one score per class, \(1, m\)"),
    "in training": (nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)), lipcert.TrainModeError, "eval"),
    "no model": (3, lipcert.InputError, "model must be"),
    "no file": ("none.pt2", lipcert.CaptureError, "no such file"),
}


@pytest.mark.parametrize("name", MODELS)
def test_an_unusable_model(name: str, tmp_path: Path) -> None:
    model, kind, text = MODELS[name]
    with pytest.raises(kind, match=text):
        lipcert.certify(model, X, LOW, radius=0.1, resume=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def decided(inputs: Any, labels: Any, **options: Any) -> list[Any]:
    result = lipcert.certify(linear(), inputs, labels, **{"radius": 0.01, **options})
    return [(row.status, row.certified_radius, row.margin) for row in result]


def test_inputs_and_labels_of_every_kind() -> None:
    """Arrays of either byte order, lists of numbers, tensors or arrays, ranges: the same rows as tensors."""
    expected = decided(X, Y)
    x, y = X.numpy(), Y.numpy()
    pairs: list[tuple[Any, Any]] = [
        (x, y), (x.tolist(), y.tolist()), (list(X), list(Y)), (list(x), tuple(y)), (x.astype(">f4"), y.astype(">i8")),
        (np.asfortranarray(x), y.astype(np.uint8)), (X.clone().requires_grad_(True), Y.byte()),
        ([v.requires_grad_(True) for v in X.clone()], Y.short()), (memoryview(x), memoryview(y)),
    ]  # fmt: skip
    for inputs, labels in pairs:
        assert decided(inputs, labels) == expected
    assert decided(X[:1], range(int(Y[0]), int(Y[0]) + 1)) == expected[:1]


@pytest.mark.parametrize("kind", [np.float64, torch.tensor, np.array])
def test_settings_of_every_kind(kind: Any, tmp_path: Path) -> None:
    """A run goes on with the same numbers in plain Python."""
    file = tmp_path / "run"
    options = {"norm": 2, "effort": 0.5, "memory": 1, "budget": 5, "radii": (1 / 64, 1 / 32), "clip": (-1, 2)}
    held = {name: tuple(map(kind, v)) if isinstance(v, tuple) else kind(v) for name, v in options.items()}
    whole = np.int64 if kind is np.float64 else kind
    result = lipcert.certify(linear(), X, Y, resume=file, seed=whole(3), workers=whole(1), **held)
    assert list(result) == list(lipcert.certify(linear(), X, Y, resume=file, seed=3, **options))  # type: ignore[arg-type]
    assert result.certified_accuracy(kind(1 / 64)) == result.certified_accuracy(1 / 64)
    for radius in ("0.01", [0.01], np.array([0.01, 0.02]), True, -1):
        with pytest.raises(lipcert.InputError, match="radius must be a number from 0"):
            result.certified_accuracy(radius)  # type: ignore[arg-type]


def test_pixels_up_to_255_with_limits_of_1() -> None:
    with pytest.raises(lipcert.InputError, match="divide them by 255"):
        lipcert.certify(linear(), X * 255, Y, radius=0.1, clip=(0, 1))


@pytest.mark.parametrize("missing", ["ray", "matplotlib"])
def test_an_extra_that_is_not_installed_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for module in [m for m in sys.modules if m.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "ray":
        with pytest.raises(lipcert.InputError, match=r"pip install 'lipcert\[ray\]'"):
            lipcert.certify(linear(), X, Y, radius=0.1, engine="ray")
    else:
        rows = lipcert.certify(linear(), X, Y, radius=0.1)
        with pytest.raises(lipcert.InputError, match=r"pip install 'lipcert\[report\]'"):
            rows.plot()


# -- files of data ------------------------------------------------------------------------------------------


def test_data_of_every_form_is_the_same(tmp_path: Path) -> None:
    x, y = X.numpy(), Y.numpy()
    np.savez(tmp_path / "a.npz", inputs=x, labels=y)
    np.savez_compressed(tmp_path / "b.npz", x=x, y=y, other=x)
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(folder / "images.npy", x)
    np.save(folder / "labels.npy", y)
    for inputs, labels in (
        read_data(tmp_path / "a.npz"), read_data(tmp_path / "b.npz"), read_data(folder),
        read_data(folder / "images.npy"), read_data(folder / "images.npy", folder / "labels.npy"),
        read_data(tmp_path / "a.npz", folder / "labels.npy"),
    ):  # fmt: skip
        assert np.array_equal(inputs, x)
        assert np.array_equal(labels, y)


def test_parquet_holds_lists_of_numbers(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    x = points(4, 0, (2, 3)).numpy()
    table = pyarrow.table({"image": x.tolist(), "label": Y.tolist()})
    parquet.write_table(table, tmp_path / "d.parquet")
    inputs, labels = read_data(tmp_path / "d.parquet")
    assert np.array_equal(inputs.astype(np.float32), x)
    assert np.array_equal(labels, Y.numpy())
    parquet.write_table(pyarrow.table({"x": [[1.0], [1.0, 2.0]], "y": [0, 1]}), tmp_path / "r.parquet")
    with pytest.raises(lipcert.InputError, match="different lengths"):
        read_data(tmp_path / "r.parquet")
    (tmp_path / "t.parquet").write_bytes((tmp_path / "d.parquet").read_bytes()[:100])
    with pytest.raises(lipcert.InputError, match="cannot be read"):
        read_data(tmp_path / "t.parquet")


def test_parquet_without_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(lipcert.InputError, match=r"pip install 'lipcert\[parquet\]'"):
        read_data(tmp_path / "d.parquet")


class Harm:
    """What a pickle could do."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("the file was unpickled",))


def test_files_that_are_no_data(tmp_path: Path) -> None:
    objects = np.array([Harm()], dtype=object)
    np.save(tmp_path / "o.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "o.npz", allow_pickle=True, inputs=objects, labels=objects)
    np.savez(tmp_path / "whole.npz", inputs=X.numpy(), labels=Y.numpy())
    np.savez(tmp_path / "names.npz", pictures=X.numpy(), kinds=Y.numpy())
    np.savez(tmp_path / "unlabelled.npz", inputs=X.numpy())
    np.save(tmp_path / "alone.npy", X.numpy())
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.npy").write_bytes((tmp_path / "alone.npy").read_bytes()[:-8])
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("no arrays")
    (tmp_path / "d.csv").write_text("1,2")
    for name, text in {
        "none.npz": "there is no file or folder", "o.npz": "pickled", "cut.npz": "truncated", "empty.npz": "cannot be",
        "names.npz": "holds no inputs: there is kinds, pictures", "unlabelled.npz": "holds no labels",
        "d.csv": "ending", "text.npz": "is no .npz file: it begins with",
        "alone.npy": "--labels", "cut.npy": "truncated", ".": "holds no inputs",
    }.items():  # fmt: skip
        with pytest.raises(lipcert.InputError, match=text):
            read_data(tmp_path / name)
    with pytest.raises(lipcert.InputError, match="pickled"):
        read_data(tmp_path / "alone.npy", tmp_path / "o.npy")
