"""Write the page, whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lipcert.certificates.bound import Certificate
from lipcert.certificates.file import content_of, placed
from lipcert.domain import Ball, Box, Domain, Intersection
from lipcert.errors import InputError, NumericsError
from lipcert.report.findings import Findings
from lipcert.report.gather import Wanted, gather
from lipcert.report.page import page

if TYPE_CHECKING:
    from lipcert.result import Bound


#: A lower bound is evaluated in float64: it may lie above the truth by its rounding.
SLACK = 1e-9


def require_place(path: str | Path) -> Path:
    """The path, if a file may come to lie there: asked before the work.

    Raises:
        InputError: no path, a folder, or in a folder that is not there.
    """
    if not isinstance(path, (str, Path)):
        raise InputError(f"a report is a file, named by a string or a Path, not by a {type(path).__name__}.")
    place = Path(path)
    try:
        if place.is_dir():
            raise InputError(f"cannot write the report {path}: it is a folder; name a file.")
        if not place.absolute().parent.is_dir():
            raise InputError(f"cannot write the report {path}: there is no folder {place.absolute().parent}.")
    except ValueError as problem:
        raise InputError(f"cannot write the report {str(path)!r}: {problem}") from problem
    return place


def write(findings: Findings, path: str | Path) -> None:
    """Write the page to ``path``; it appears whole or not at all.

    Raises:
        InputError: it cannot be written there.
    """
    place = require_place(path)
    require_consistent(findings)
    content = page(findings).encode()
    try:
        placed(place, content)
    except (OSError, ValueError) as problem:
        raise InputError(f"cannot write the report {path}: {problem}") from problem


def require_consistent(findings: Findings) -> None:
    """A page says of one problem what was found of it.

    Raises:
        InputError: the lower bound is of other norms, or of more points than the bound; or the file that is named as
            the bound's certificate is another.
        NumericsError: the lower bound lies above the bound.
    """
    bound, lower = findings.bound, findings.lower
    if lower is not None:
        if (
            lower.norm != bound.norm
            or not _within(lower.domain, bound.domain)
            or (bound.anchor is not None and lower.anchor is None)
        ):
            raise InputError(
                "the lower bound is of other norms, or of another or larger domain than the bound: find it with the "
                "norm=, domain= and anchor= of the bound."
            )
        if not lower.value <= bound.value * (1.0 + SLACK):
            raise NumericsError(
                f"the lower bound {lower.value:.9g} lies above the bound {bound.value:.9g}: they are of different "
                "models, domains or outputs. If they are not, one of them is wrong; please report it."
            )
    if findings.certificate and isinstance(bound.certificate, Certificate):
        try:
            content = Path(findings.certificate).read_bytes()
        except (OSError, ValueError) as problem:
            raise InputError(f"cannot read the certificate {findings.certificate}: {problem}") from problem
        if content != content_of(bound.certificate):
            raise InputError(f"{findings.certificate} is not this bound's certificate: write that with bound.save.")


def _within(inner: Domain, outer: Domain) -> bool:
    """Whether a domain is a part of another, as far as that is seen at once."""
    if outer is None or inner is None:
        return outer is None
    if isinstance(inner, Ball) and isinstance(outer, Ball):
        same = torch.equal(inner.center.reshape(-1), outer.center.reshape(-1)) and inner.p == outer.p
        return same and inner.radius <= outer.radius
    if isinstance(inner, Box) and isinstance(outer, Box):
        ends = [t.reshape(-1) for t in (inner.lower, outer.lower, outer.upper, inner.upper)]
        return bool((ends[0] >= ends[1]).all()) and bool((ends[3] <= ends[2]).all())
    if isinstance(inner, Intersection) and isinstance(outer, Intersection):
        return _within(inner.ball, outer.ball) and _within(inner.box, outer.box)
    return False


def report_of(bound: Bound, path: str | Path, model: Any = None, example_input: Any = None, **found: Any) -> None:
    """What ``Bound.report`` does; arguments are described there."""
    require_place(path)
    given = {name: found.pop(name) for name in ("certification", "certificate", "model_name") if name in found}
    lower, comparison = found.pop("lower", None), found.pop("comparison", None)
    if model is None:
        if found or example_input is not None:
            raise InputError("layers, graph and budgets of a report need the model: give model and example_input.")
        findings = Findings(bound, lower=lower if comparison is None or lower is not None else comparison.lower,
                            comparison=comparison)  # fmt: skip
    else:
        if example_input is None:
            raise InputError("a report with the model needs example_input, as lipcert.bound does.")
        findings = gather(
            model, example_input, Wanted(**{"methods": False, **found}), bound.norm, bound.domain, bound.anchor, bound,
            lower,
            comparison,
        )  # fmt: skip
    named = {"model" if name == "model_name" else name: value for name, value in given.items() if value is not None}
    if "certificate" in named:
        named["certificate"] = str(named["certificate"])
    write(replace(findings, **named), path)
