"""Inputs and labels from files: .npz, .npy, a folder of .npy, .parquet. Nothing in a file is executed."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lipcert.errors import InputError

Array = npt.NDArray[Any]

#: Names that inputs and labels go by, the first that is there.
INPUTS = ("inputs", "images", "x", "X", "data", "x_test", "input", "image")
LABELS = ("labels", "label", "y", "Y", "targets", "y_test", "target", "class")
_FORMS = (
    "DATA.npz with inputs and labels, a folder with inputs.npy and labels.npy, INPUTS.npy with --labels LABELS.npy, or "
    "DATA.parquet with a column of each"
)


def read_data(path: str | Path, labels: str | Path | None = None) -> tuple[Array, Array]:
    """Inputs and labels.

    Args:
        path: a ``.npz`` or ``.parquet`` file, an ``.npy`` file of inputs, or a folder that holds both as ``.npy``.
        labels: an ``.npy`` file of labels, where ``path`` has none.

    Raises:
        InputError: missing, truncated, pickled, of another kind, or without inputs or labels; says what it holds.
    """
    place = Path(path)
    if not place.exists():
        raise InputError(f"there is no file or folder {place}. Give {_FORMS}.")
    own = None if labels is None else _npy(Path(labels))
    if place.is_dir():
        inputs, found = _folder(place, own is None)
    elif place.suffix == ".npz":
        inputs, found = _npz(place, own is None)
    elif place.suffix == ".npy":
        inputs, found = _npy(place), None if own is not None else _beside(place)
    elif place.suffix == ".parquet":
        inputs, found = _parquet(place, own is None)
    else:
        raise InputError(f"{place} has no ending that says what it is. Give {_FORMS}.")
    return inputs, own if found is None else found  # type: ignore[return-value]


def _npy(path: Path) -> Array:
    """One array, mapped into memory and not read."""
    if not path.is_file():
        raise InputError(f"there is no file {path}.")
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as problem:
        raise _unreadable(path, problem, "np.save(path, array)") from problem
    if not isinstance(found, np.ndarray):
        raise InputError(f"{path} holds several arrays; name it .npz.")
    return found


def _npz(path: Path, labelled: bool) -> tuple[Array, Array | None]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if isinstance(archive, np.ndarray):
                raise InputError(f"{path} holds one array; name it .npy and give the labels with --labels.")
            names = _chosen(path, archive.files, labelled)
            arrays = [archive[name] for name in names]
    except InputError:
        raise
    except Exception as problem:
        raise _unreadable(path, problem, "np.savez(path, inputs=…, labels=…)") from problem
    return arrays[0], arrays[1] if labelled else None


def _folder(path: Path, labelled: bool) -> tuple[Array, Array | None]:
    names = _chosen(path, [file.stem for file in path.glob("*.npy")], labelled)
    arrays = [_npy(path / f"{name}.npy") for name in names]
    return arrays[0], arrays[1] if labelled else None


def _beside(path: Path) -> Array:
    for name in LABELS:
        if name != path.stem and (path.parent / f"{name}.npy").is_file():
            return _npy(path.parent / f"{name}.npy")
    raise InputError(f"{path} holds inputs; their labels come with --labels LABELS.npy, or as labels.npy beside it.")


def _chosen(path: Path, there: Iterable[str], labelled: bool) -> list[str]:
    held = sorted(there)
    chosen = []
    for what, names in (("inputs", INPUTS), ("labels", LABELS)) if labelled else (("inputs", INPUTS),):
        name = next((n for n in names if n in held), None)
        if name is None:
            listed = ", ".join(held[:20]) or "nothing"
            raise InputError(f"{path} holds no {what}: there is {listed}; looked for {', '.join(names)}.")
        chosen.append(name)
    return chosen


def _parquet(path: Path, labelled: bool) -> tuple[Array, Array | None]:
    """A row per example; inputs are (nested) lists of numbers."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise InputError("a .parquet file needs pyarrow: pip install 'lipcert[parquet]'. Or give .npz.") from None
    try:
        names = _chosen(path, parquet.read_schema(path).names, labelled)
        table = parquet.read_table(path, columns=names)
    except InputError:
        raise
    except Exception as problem:
        raise _unreadable(path, problem, "pyarrow.parquet.write_table") from problem
    inputs = _nested(path, names[0], table.column(names[0]))
    return inputs, np.asarray(table.column(names[1]).to_pylist()) if labelled else None


def _nested(path: Path, name: str, column: Any) -> Array:
    """Lists of one shape as one array: the flat values, and the length of each level."""
    import pyarrow

    chunk = column.combine_chunks()
    if isinstance(chunk, pyarrow.ChunkedArray):
        chunk = pyarrow.concat_arrays(chunk.chunks)
    shape = [len(chunk)]
    while hasattr(chunk.type, "value_type"):
        lengths = {n.as_py() for n in pyarrow.compute.unique(pyarrow.compute.list_value_length(chunk))}
        if len(lengths) > 1 or None in lengths or chunk.null_count:
            raise InputError(f"{path}: column {name!r} holds lists of different lengths, or nothing somewhere.")
        shape.append(lengths.pop() if lengths else 0)
        chunk = chunk.flatten()
    if chunk.null_count or not (pyarrow.types.is_integer(chunk.type) or pyarrow.types.is_floating(chunk.type)):
        raise InputError(f"{path}: column {name!r} must hold (lists of) numbers, and none missing, not {column.type}.")
    values: Array = chunk.to_numpy(zero_copy_only=False)
    return values.reshape(shape)


def _unreadable(path: Path, problem: Exception, maker: str) -> InputError:
    text = str(problem).split("\n", 1)[0][:200]
    with suppress(OSError), path.open("rb") as file:
        first = file.read(8)
        if path.suffix != ".parquet" and first and not first.startswith((b"PK", b"\x93NUMPY", b"\x80")):
            return InputError(f"{path} is no {path.suffix} file: it begins with {first!r}. Make one with {maker}.")
    if "pickle" in text.lower() or "python object" in text.lower():
        return InputError(
            f"{path} holds Python objects (pickled), which are not read: unpickling runs whatever the file says. "
            f"Store plain arrays with {maker}."
        )
    return InputError(f"{path} cannot be read; it may be truncated ({type(problem).__name__}: {text}).")
