"""An ``.onnx`` file as data: parsed, nothing executed, nothing read outside its own folder."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipcert.capture.onnx.limits import FILE_BYTES
from lipcert.errors import CaptureError, InputError

#: Number of an ONNX element type → (numpy type of its raw bytes, torch type as which it is held).
_TYPES: dict[int, tuple[str, torch.dtype]] = {
    1: ("<f4", torch.float32), 2: ("|u1", torch.uint8), 3: ("|i1", torch.int8),
    5: ("<i2", torch.int16), 6: ("<i4", torch.int32), 7: ("<i8", torch.int64), 9: ("|b1", torch.bool),
    10: ("<f2", torch.float16), 11: ("<f8", torch.float64),
    16: ("<u2", torch.bfloat16),
}  # fmt: skip
#: Where a tensor without raw bytes keeps its entries.
_FIELDS = {1: "float_data", 11: "double_data", 7: "int64_data"}
_NAMES = {
    0: "undefined", 4: "uint16", 8: "string", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128",
    17: "float8e4m3fn", 18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4e2m1",
}  # fmt: skip


def package() -> Any:
    """The module ``onnx``, imported when a file is read and not before.

    Raises:
        InputError: it is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise InputError("an .onnx file needs the package onnx: pip install 'lipcert[onnx]'.") from None
    return onnx


def exists(op: Any, version: int) -> bool:
    """Whether an operator set has an operator of this name, as far as the installed package knows."""
    definitions = package().defs
    if not isinstance(op, str):  # bytes that are no text
        return False
    try:
        return not definitions.get_schema(op, version, "").deprecated
    except definitions.SchemaError:
        return False


def parsed(path: Path) -> Any:
    """The ModelProto of a file.

    Raises:
        InputError: the package onnx is missing.
        CaptureError: no such file, or it is no ONNX model.
    """
    onnx = package()
    try:
        length = path.stat().st_size
        content = path.read_bytes() if length <= FILE_BYTES and path.is_file() else None
    except OSError as problem:
        raise CaptureError(f"cannot load {path}: {problem.strerror or problem}.") from problem
    if content is None:
        raise CaptureError(
            f"cannot load {path}: an ONNX model is one file of less than 2 GiB; larger weights go into a file beside "
            "it (onnx.save(..., save_as_external_data=True))."
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as problem:
        raise CaptureError(
            f"cannot load {path}: it is no ONNX model, or truncated: it cannot be parsed "
            f"({str(problem)[:120]}). Export it again."
        ) from problem
    if not model.HasField("graph") or not model.graph.output:
        raise CaptureError(
            f"cannot load {path}: it is no ONNX model, or truncated: it holds no graph with an output. Export it again."
        )
    return model


def torch_type(place: str, number: int) -> torch.dtype:
    """The torch type for an ONNX element type.

    Raises:
        CaptureError: there is none.
    """
    if number not in _TYPES:
        kind = _NAMES.get(number, f"number {number}")
        raise CaptureError(
            f"{place} has element type {kind}, which lipcert does not read. Export it in floating point."
        )
    return _TYPES[number][1]


def number_of(dtype: torch.dtype) -> int:
    """The number of the ONNX element type that is held in a torch type."""
    return next(number for number, (_, held) in _TYPES.items() if held is dtype)


class Tensors:
    """Reads the tensors of one model; external ones from files inside the folder of the model alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes = 0  # of the tensors that were read
        self._read: dict[tuple[Path, int, int], bytes] = {}
        self._shared: dict[tuple[Any, int], Tensor] = {}
        self._sizes: dict[Path, int] = {}
        self._total = 0

    def tensor(self, proto: Any, place: str) -> Tensor:
        """The numbers of a TensorProto.

        Args:
            proto: the tensor.
            place: what to call it in errors.

        Raises:
            CaptureError: an unknown element type, more or fewer entries than its shape has, or external data that
                is missing, too short or outside the folder.
        """
        torch_type(place, proto.data_type)
        shape = tuple(int(n) for n in proto.dims)
        if any(n < 0 for n in shape) or proto.HasField("segment"):
            raise CaptureError(f"{place} has shape {shape[:8]}, or is a segment of a tensor: the file is damaged.")
        if proto.data_location == 1:
            return self._from_outside(proto, place, shape)
        array = self._array(proto, place, shape)
        if array.size != math.prod(shape):
            raise CaptureError(
                f"{place} has shape {shape[:8]} but holds {array.size} entries: the file is damaged or truncated."
            )
        return self._as_torch(array, proto.data_type).reshape(shape)

    def _from_outside(self, proto: Any, place: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor in a file of its own; those that share all their bytes are one."""
        kind = np.dtype(_TYPES[proto.data_type][0])
        key, raw = self._external(proto, place, math.prod(shape) * kind.itemsize)
        if (key, proto.data_type) not in self._shared:
            array = np.frombuffer(raw, "|u1") != 0 if proto.data_type == 9 else np.frombuffer(raw, kind)
            self._shared[key, proto.data_type] = self._as_torch(array, proto.data_type)
        return self._shared[key, proto.data_type].reshape(shape)

    def _array(self, proto: Any, place: str, shape: tuple[int, ...]) -> Any:
        kind, held = _TYPES[proto.data_type]
        if proto.HasField("raw_data"):
            raw = proto.raw_data
        else:
            listed = np.asarray(getattr(proto, _FIELDS.get(proto.data_type, "int32_data")))
            if proto.data_type in (10, 16):  # their bits, as whole numbers
                return listed.astype(np.uint16).view("<f2") if held is torch.float16 else listed.astype(np.uint16)
            if proto.data_type == 9:
                return listed != 0
            return listed.astype(kind) if listed.size else np.zeros(0, kind)
        if len(raw) % np.dtype(kind).itemsize:
            raise CaptureError(f"{place} holds {len(raw)} bytes, no whole number of entries: the file is damaged.")
        if proto.data_type == 9:
            return np.frombuffer(raw, "|u1") != 0
        return np.frombuffer(raw, kind)

    def _as_torch(self, array: Any, number: int) -> Tensor:
        held = _TYPES[number][1]
        self.bytes += array.nbytes
        if held is torch.bfloat16:
            return torch.from_numpy(array.astype(np.uint16).view(np.int16)).view(torch.bfloat16)
        if number in (4, 12):
            array = array.astype(np.int64)
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C")).to(held)

    def external(self, proto: Any) -> bytes:
        """The bytes of a tensor that lies in a file of its own; errors as ``tensor``."""
        itemsize = np.dtype(_TYPES[proto.data_type][0]).itemsize
        return self._external(proto, f"ONNX tensor {proto.name[:120]!r}", math.prod(proto.dims) * itemsize)[1]

    def _external(self, proto: Any, place: str, length: int) -> tuple[Any, bytes]:
        """Where a tensor lies that has a file of its own, and its bytes.

        What is read is in all no more than the sizes of the files, each once: tensors that share bytes in another way
        than as the same tensor are refused, or a small file would fill any memory.
        """
        entries = {e.key: e.value for e in proto.external_data}
        path = self._inside(entries.get("location", ""), place)
        try:
            offset, stated = int(entries.get("offset", 0)), int(entries.get("length", length))
        except ValueError:
            offset, stated = -1, -1
        whole = self._sizes[path] if path in self._sizes else path.stat().st_size
        if offset < 0 or stated != length or offset + length > whole:
            raise CaptureError(
                f"{place}: its {length} bytes do not lie in {path.name}, of {whole} bytes, where the file says: it is "
                "damaged, or of another model."
            )
        self._sizes[path] = whole
        key = (path, offset, length)
        if key not in self._read:
            self._total += length
            if self._total > sum(self._sizes.values()):
                raise CaptureError(f"{place}: tensors overlap in {path.name}; lipcert does not read such a file.")
            with path.open("rb") as file:
                file.seek(offset)
                self._read[key] = file.read(length)
        if len(self._read[key]) != length:
            raise CaptureError(f"{place}: {path.name} ends before its data does.")
        return key, self._read[key]

    def _inside(self, location: str, place: str) -> Path:
        """The path of an external file, if it is one inside the folder, links followed."""
        parts = location.replace("\\", "/").split("/")
        plain = bool(location) and "\0" not in location and ".." not in parts and ":" not in location
        if not plain or os.path.isabs(location) or parts[0] == "":
            raise CaptureError(
                f"{place}: its data is said to lie in {location[:120]!r}, which is no path inside the folder of the "
                "model. Nothing outside that folder is read."
            )
        try:
            home, path = self.folder.resolve(strict=True), (self.folder / location).resolve(strict=True)
        except (OSError, RuntimeError) as problem:
            raise CaptureError(
                f"{place}: its data lies in {location[:120]!r}, which is not there. Keep it beside the .onnx file."
            ) from problem
        if not path.is_relative_to(home) or not path.is_file():
            raise CaptureError(
                f"{place}: its data is said to lie in {location[:120]!r}, a link out of the folder of the model, or no "
                "file. Nothing outside that folder is read."
            )
        return path
