"""Whether a ``.pt2`` file is data alone: ``torch.export.load`` runs code that such a file may hold.

It unpickles objects, loads compiled libraries, evaluates expressions of symbolic sizes as Python, and makes Python code
of guards and names. Here the file is read as data first, and refused if any of these could be more than what
``torch.export.save`` writes of a plain model.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lipcert.capture.program_text import require_expression, require_guard, require_tree
from lipcert.errors import CaptureError

#: Bytes of tensors, in float64, that a file may describe beyond eight times its own: views may repeat entries.
ROOM = 1 << 30
#: Where the graph is, in the format of today and in that before 2.8.
_GRAPH = re.compile(r"((^|/)models/[^/]+\.json|(^|/)serialized_exported_program\.json)$")
_CONFIG = re.compile(r"(^|/)data/(weights|constants)/[^/]+_config\.json$")
_PICKLED = re.compile(r"\.pt$")
#: Raw numbers, and texts that are only read as texts.
_PLAIN = re.compile(
    r"((^|/)data/(weights|constants)/(weight|tensor)_\d+|(^|/)(archive_format|archive_version|version|byteorder)"
    r"|(^|/)\.data/[\w.]+|(^|/)(extra|extra_files)/[^/]+)$"
)
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed)\.\w+(\.\w+)?|torch\.sym_\w+|math\.[a-z0-9]+|"
    r"_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pos|pow|abs|lt|le|gt|ge|eq|ne|and_|or_|not_)|"
    r"torch\.ops\.higher_order\.(cond|while_loop|map_impl|scan|associative_scan|wrap_with_set_grad_enabled|"
    r"wrap_with_autocast|with_effects|auto_functionalized(_v2)?|flex_attention|out_dtype|invoke_subgraph|hints_wrapper)"
)
#: Ops that read or write files.
_FILES = re.compile(r"torch\.ops\.aten\.(from_file|save|_print|_test_\w+)\b|__")
#: Everything else that Python code may be made of: names and paths of modules, modes of ops, devices.
_NAME, _TEXT = re.compile(r"\w*"), re.compile(r"[\w.\-/:+,<>=* @|~]*")


_NAMES = ("name", "as_name", "forward_arg_names")
#: Remarks on a node: texts that are kept as they are.
_REMARKS = {"stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "custom", "from_node"}
_LONGEST = 10_000


class NotDataError(Exception):
    """What in the file is more than data."""


def require_data(path: Path) -> bool:
    """Raise unless ``torch.export.load`` will run nothing that the file holds.

    Args:
        path: of the file; nothing in it is executed.

    Returns:
        Whether it is an exported program at all; if not, it was not looked into.

    Raises:
        CaptureError: it holds code, or asks for more memory than its own size accounts for; says what and where.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if not any(_GRAPH.search(name) for name in archive.namelist()):
                return False
            _require_archive(path, archive)
    except (OSError, zipfile.BadZipFile, ValueError, RuntimeError, EOFError, zlib.error):
        return False  # damaged: one of the two readers fails on it
    except NotDataError as reason:
        raise CaptureError(
            f"cannot load {path}: {reason}. torch.export.load may run what such a file holds, so only files of data "
            "are read. If you trust its source, load it in Python and pass the program, or export the model again."
        ) from None
    return True


def _require_archive(path: Path, archive: zipfile.ZipFile) -> None:
    entries, size = archive.infolist(), path.stat().st_size
    _require_stored(entries, size)
    _require_same_reading(path, archive)
    for entry in entries:
        name = entry.filename
        if name.endswith("/") or _PLAIN.search(name):
            continue
        if _GRAPH.search(name):
            _require_graph(_parsed(name, archive.read(entry)))
        elif _CONFIG.search(name):
            _require_config(name, _parsed(name, archive.read(entry)), archive, size)
        elif _PICKLED.search(name):
            _require_weights(name, archive.read(entry))
        else:
            raise NotDataError(f"it holds {name[:120]!r}, which no plain model has")


def _require_stored(entries: list[zipfile.ZipInfo], size: int) -> None:
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise NotDataError("it is compressed, which torch.export.save never does")
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names) or sum(entry.file_size for entry in entries) > size:
        raise NotDataError("two of its entries have one name, or overlap")


def _require_same_reading(path: Path, archive: zipfile.ZipFile) -> None:
    """PyTorch's own reader must find the same entries as Python's, with the same texts."""
    try:
        reader = torch._C.PyTorchFileReader(str(path))
        records = sorted(reader.get_all_records())
    except RuntimeError:
        if any("/models/" in name or name.startswith("models/") for name in archive.namelist()):
            raise NotDataError("PyTorch's reader does not take it as an archive") from None
        return  # of the format before 2.8, which is read by zipfile
    roots = {name.partition("/")[0] for name in archive.namelist()}
    if len(roots) != 1:
        if "serialized_exported_program.json" in archive.namelist():
            return
        raise NotDataError("its entries lie in several folders")
    (root,) = roots
    if sorted(name.removeprefix(f"{root}/") for name in archive.namelist()) != records:
        raise NotDataError("two readers find other entries in it")
    for name in records:
        if not _PLAIN.search(name) and reader.get_record(name) != archive.read(f"{root}/{name}"):
            raise NotDataError(f"two readers find another {name[:120]!r} in it")


def _parsed(name: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise NotDataError(f"its {name[:120]!r} is no JSON") from None


def _require_weights(name: str, content: bytes) -> None:
    """A pickle that needs nothing but tensors and containers."""
    if not content:
        return
    if content[:2] == b"PK":
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as inner:
                _require_stored(inner.infolist(), len(content))
        except zipfile.BadZipFile:
            raise NotDataError(f"its {name[:120]!r} is damaged") from None
    try:
        torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as problem:
        raise NotDataError(
            f"its {name[:120]!r} is a pickle of more than tensors ({type(problem).__name__}), or damaged"
        ) from None


def _require_config(name: str, config: Any, archive: zipfile.ZipFile, size: int) -> None:
    folder = name.rpartition("/")[0]
    total = 0
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise NotDataError(f"its {name[:120]!r} is damaged")
    for key, entry in entries.items():
        payload = entry.get("path_name")
        if not _TEXT.fullmatch(key) or not isinstance(payload, str) or not _PAYLOAD.fullmatch(payload):
            raise NotDataError(f"its {name[:120]!r} names {str(payload)[:60]!r}, an object that is no tensor")
        if entry.get("use_pickle"):
            try:
                _require_weights(payload, archive.read(f"{folder}/{payload}"))
            except KeyError:
                raise NotDataError(f"its {payload!r} is missing") from None
        total += 8 * _entries(entry.get("tensor_meta"), payload)
    if total > ROOM + 8 * size:
        raise NotDataError(f"its {name[:120]!r} describes tensors of {total} bytes, far more than the file has")


def _entries(meta: Any, payload: str) -> int:
    """How many entries a tensor is said to have; 0 where that is not told."""
    sizes = meta.get("sizes", []) if isinstance(meta, dict) else []
    numbers = [n.get("as_int") if isinstance(n, dict) else None for n in sizes] if isinstance(sizes, list) else [None]
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise NotDataError(f"the shape of its {payload!r} is damaged")
    return math.prod(n for n in numbers if n is not None)


def _require_graph(model: Any) -> None:
    for key, value in _texts(model, ""):
        if key in ("target", "as_operator"):
            good = bool(_OPERATOR.fullmatch(value)) and not _FILES.search(value)
        elif key == "expr_str":
            good = require_expression(value)
        elif key == "guards_code":
            good = require_guard(value)
        elif key in ("in_spec", "out_spec"):
            good = require_tree(value)
        elif key == "as_string":  # an argument, of which code has the repr
            good = len(value) <= _LONGEST
        else:
            good = bool((_NAME if key in _NAMES else _TEXT).fullmatch(value))
        if not good:
            raise NotDataError(f"its graph holds, as {key or 'a name'}, the text {value[:120]!r}, which may be code")


def _texts(value: Any, key: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    """All texts with the key that they stand under; keys themselves, too. Remarks on nodes are left out."""
    if depth > 200:
        raise NotDataError("its graph is nested too deeply")
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one, key, depth + 1)
    elif isinstance(value, dict):
        for name, one in value.items():
            yield "", name
            if name != "metadata" or not _are_remarks(one):
                yield from _texts(one, name, depth + 1)


def _are_remarks(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() <= _REMARKS and all(isinstance(one, str) for one in value.values())
