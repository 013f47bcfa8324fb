"""Files that are no certificates, or not quite: with a proper checksum, below the level of the dataclass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lipcert.certificates import file as module
from lipcert.certificates.file import parsed, read, save, write
from lipcert.certificates.verify import verify
from lipcert.errors import CertificateError, InputError
from lipcert.problem import Problem
from tests.certificates.forging import genuine

Change = Callable[[dict[str, Any], dict[str, Tensor]], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save(genuine("layer_product").record, tmp_path / "c.lipcert")
    return tmp_path / "c.lipcert"


def rewritten(path: Path, change: Change) -> None:
    """Any header, any arrays, and the checksum that belongs to them."""
    content = path.read_bytes()
    arrays, header = module.load(content), module._header(content)
    header.pop("sha256")
    change(header, arrays)
    path.write_bytes(module._to_bytes(header, arrays))


def put(key: str, value: Any) -> Change:
    return lambda header, arrays: header.__setitem__(key, value)


def array(key: str, value: Tensor) -> Change:
    return lambda header, arrays: arrays.__setitem__(key, value)


ROWS = 3

REFUSED: dict[str, Change] = {
    "a selection of half precision": array("select", torch.ones(1, ROWS, dtype=torch.float16)),
    "a selection of integers": array("select", torch.ones(1, ROWS, dtype=torch.int64)),
    "a selection of truths": array("select", torch.ones(1, ROWS, dtype=torch.bool)),
    "an infinite selection": array("select", torch.full((1, ROWS), torch.inf, dtype=torch.float64)),
    "a selection of another width": array("select", torch.ones(1, ROWS + 1, dtype=torch.float64)),
    "a value that overflows": put("value", "1e-400"),
    "a value with digits of another script": put("value", "٠.١"),
    "a value that is a truth": put("value", False),
    "a list as log10": put("log10", [0.0]),
    "a guarantee of rank": put("guarantee", ["rigorous"]),
    "three norms": put("norm", [2.0, 2.0, 2.0]),
    "norms as one string": put("norm", "22"),
    "settings in a list": put("settings", [["fuse", True]]),
    "an endless domain": put("domain", {"type": "ball", "radius": "inf", "p": 2}),
    "a domain of another kind": put("domain", {"type": "cone"}),
    "a domain that is a list": put("domain", ["ball"]),
    "a domain of no kind": put("domain", {}),
    "a domain's kind that is a list": put("domain", {"type": ["box"]}),
    "another format": put("format", "lipcert-certificate-1 "),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_a_file_with_a_proper_checksum_and_a_wrong_content(what: str, path: Path) -> None:
    rewritten(path, REFUSED[what])
    with pytest.raises(CertificateError):
        verify(path, genuine("layer_product").network)


BALL: dict[str, Any] = {"type": "ball", "radius": 0.5, "p": 2.0}


def on(domain: Any, **arrays: Any) -> Change:
    """A domain in the header, and its arrays: numbers or tensors, of one example's shape."""

    def change(header: dict[str, Any], held: dict[str, Tensor]) -> None:
        header["domain"] = domain
        shape = tuple(genuine("layer_product").network.in_shape)
        for name, value in arrays.items():
            whole = value if isinstance(value, Tensor) else torch.full(shape, float(value), dtype=torch.float64)
            held[f"domain.{name}"] = whole

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (on(BALL), "other entries or arrays"),
        (on(None, center=0), "or null"),
        (on(BALL, center=0, lower=0), "other entries or arrays"),
        (on({**BALL, "anchor": 1}, center=0), "other entries or arrays"),
        (on({"type": "box", "radius": 1.0}, lower=0, upper=1), "other entries or arrays"),
        (on({**BALL, "radius": -1.0}, center=0), "finite radius"),
        (on({**BALL, "radius": float("nan")}, center=0), "finite radius"),
        (on({**BALL, "radius": float("inf")}, center=0), "finite radius"),
        (on({**BALL, "radius": "0.5"}, center=0), "a number as radius"),
        (on({**BALL, "radius": True}, center=0), "a number as radius"),
        (on({**BALL, "radius": [0.5]}, center=0), "a number as radius"),
        (on({**BALL, "p": 3.0}, center=0), "1, 2 or inf as p"),
        (on({**BALL, "p": True}, center=0), "1, 2 or inf as p"),
        (on({**BALL, "p": "nan"}, center=0), "1, 2 or inf as p"),
        (on({**BALL, "p": [2.0]}, center=0), "1, 2 or inf as p"),
        (on(BALL, center="nan"), "NaN"),
        (on(BALL, center="inf"), "infinity"),
        (on(BALL, center=torch.zeros(3, dtype=torch.float32)), "float64"),
        (on(BALL, center=torch.zeros(3, dtype=torch.bool)), "float64"),
        (on(BALL, center=torch.zeros((), dtype=torch.float64)), "one for each coordinate"),
        (on(BALL, center=torch.zeros(99, dtype=torch.float64)), r"shape \(99,\)"),
        (on({"type": "box"}, lower=1, upper=0), "lower ≤ upper"),
        (on({"type": "box"}, lower="inf", upper="inf"), "lower ≤ upper"),
        (on({"type": "box"}, lower="nan", upper=0), "NaN"),
        (on({"type": "box"}, lower=0), "other entries or arrays"),
        (on({**BALL, "type": "intersection"}, center=0, lower=0), "other entries or arrays"),
        (on({**BALL, "type": "intersection"}, center=0, lower=1, upper=2), "no point in common"),
    ],
)
def test_forged_domains_are_refused_by_name(change: Change, words: str, path: Path) -> None:
    rewritten(path, change)
    with pytest.raises(CertificateError, match=words):
        verify(path, genuine("layer_product").network)


def test_a_domain_that_is_one_is_read(path: Path) -> None:
    rewritten(path, on({**BALL, "type": "intersection"}, center=0, lower=0, upper=1))
    found = verify(path, genuine("layer_product").network)
    assert "l2 ball of radius 0.5 within the box [0, 1]" in str(found)


def header_bytes(path: Path, change: Callable[[str], str]) -> None:
    """Change the text of the header where it stands, without a new checksum."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    outer = json.loads(content[8 : 8 + length])
    outer["__metadata__"]["header"] = change(outer["__metadata__"]["header"])
    text = json.dumps(outer).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


@pytest.mark.parametrize("change", [
    lambda text: text.replace('"value":', '"value": 0.0, "value":', 1),
    lambda text: text[:-1] + ', "value": 1e-9}',
    lambda text: text[:-1] + ', "value": 1e400}',
    lambda text: text[:-1] + ', "value": -Infinity}',
    lambda text: text[:-1] + ', "value": NaN}',
    lambda text: text.replace('"value": ', '"value":  ', 1),
    lambda text: "[" * 100_000,
    lambda text: '{"format": "lipcert-certificate-1"}',
    lambda text: "", lambda text: "null", lambda text: text + text, lambda text: text.upper(),
])  # fmt: skip
def test_headers_that_are_not_what_was_written(change: Callable[[str], str], path: Path) -> None:
    header_bytes(path, change)
    with pytest.raises(CertificateError):
        read(path)


@pytest.mark.parametrize("content", [
    b"", b"\x00", b"\xff" * 8, b"\xff" * 100, (2**63).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"{}",
    (10**9).to_bytes(8, "little") + b"{" * 100, b"PK\x03\x04" + b"\x00" * 60, b"\x80\x04." * 30,
])  # fmt: skip
def test_bytes_that_are_no_certificate(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(CertificateError):
        read(path)


def test_a_certificate_that_is_cut_or_followed_by_something(path: Path) -> None:
    content = path.read_bytes()
    for changed in (content[:-1], content[:100], content + b"\x00", content + content, b" " + content):
        path.write_bytes(changed)
        with pytest.raises(CertificateError):
            read(path)


def test_a_selection_that_floats_cannot_hold_is_refused() -> None:
    network = genuine("layer_product").network
    rows = network.out_shape[-1]
    with pytest.raises(InputError, match="select"):
        Problem(network, select=torch.full((1, rows), 2**53 + 1))
    with pytest.raises(InputError, match="select"):
        Problem(network, select=torch.ones(1, rows, dtype=torch.complex64))
    assert Problem(network, select=torch.full((1, rows), 2**53)).select is not None


@pytest.mark.parametrize(
    "name",
    [
        "x; 0.0 s)\nverified Lipschitz constant ≤ 1e-9  (l2 → l2, everywhere; rigorous, lipsdp",
        "\rLipschitz constant ≤ 1e-9\x1b[8m",
        "a, b",
        "m" * 81,
        "",
        None,
        {"a": 1},
    ],
)
def test_the_name_of_a_method_cannot_read_like_a_result(name: Any, path: Path) -> None:
    rewritten(path, put("method", name))
    with pytest.raises(CertificateError, match="method"):
        read(path)


@pytest.mark.parametrize("text", ["\x1b[2K\rverified", 7, None, "0x12"])
def test_a_fingerprint_is_a_number(text: Any, path: Path) -> None:
    rewritten(path, put("fingerprint", text))
    with pytest.raises(CertificateError, match="fingerprint"):
        read(path)


@pytest.mark.parametrize("place", [None, 7, b"/tmp/c.lipcert", object()])
def test_places_that_are_no_paths(place: Any) -> None:
    record = genuine("layer_product").record
    with pytest.raises(CertificateError, match="Path"):
        save(record, place)
    with pytest.raises(CertificateError, match="Path"):
        verify(place, genuine("layer_product").network)


def test_a_certificate_without_arrays_is_read_whatever_the_default_dtype(tmp_path: Path) -> None:
    write(tmp_path / "one", {"format": "f", "method": "m"}, {})
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert parsed(tmp_path / "one", {"f": lambda header, arrays: header["method"]}) == "m"
    finally:
        torch.set_default_dtype(before)
