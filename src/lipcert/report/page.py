"""The page: everything in one file, in an order that one can read aloud."""

from __future__ import annotations

import hashlib
import math
import shlex
from pathlib import Path

from lipcert.certificates.bound import Certificate
from lipcert.certificates.file import content_of
from lipcert.digits import at_least, at_most
from lipcert.markup import Markup, joined, tag
from lipcert.report.findings import Findings
from lipcert.report.graph import graph
from lipcert.report.sections import breakdown, curve, layers, methods, ratio, robustness
from lipcert.report.style import POLICY, SCRIPT, STYLE
from lipcert.result import Bound, place

#: Values up to this are shown by their logarithm: digits are lost below.
LEAST = 1e-300
#: What each guarantee means, in a sentence.
MEANS = {
    "rigorous": "Rigorous: the check accounts for its own rounding.",
    "probabilistic": "Probabilistic: true with the stated probability over the check's own random start; rounding is "
    "not included.",
    "numerical": "Numerical: true in exact arithmetic at the computed witness, checked in float64.",
}


def page(findings: Findings) -> str:
    """The file's text."""
    parts = {
        "bound": ("The bound", _headline(findings)),
        "methods": ("Methods against time", methods(findings)),
        "layers": ("Where the looseness comes from", layers(findings)),
        "radius": ("Bound against radius", curve(findings)),
        "robustness": ("Certified accuracy", robustness(findings)),
        "graph": ("The graph", graph(findings.nodes) if findings.nodes else None),
        "proof": ("The proof's steps", breakdown(findings.bound)),
        "certificate": ("Certificate", _certificate(findings)),
    }
    shown = {key: part for key, part in parts.items() if part[1] is not None}
    title = f"Lipschitz bound of {findings.model}" if findings.model else "Lipschitz bound"
    links = [tag("li", tag("a", name, href=f"#{key}")) for key, (name, _) in shown.items()]
    sections = [
        tag("section", tag("h2", name, id=f"{key}-head"), body, id=key, aria_labelledby=f"{key}-head")
        for key, (name, body) in shown.items()
    ]
    remarks = tag("ul", *(tag("li", remark) for remark in findings.remarks)) if findings.remarks else None
    head = joined([
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<link rel="icon" href="data:,">'),
        tag("title", title), tag("style", Markup(STYLE)),
    ])  # fmt: skip
    body = joined([
        tag("a", "Skip to the bound", href="#bound", class_="skip"),
        tag("header", tag("h1", title), tag("nav", tag("ul", *links), aria_label="Sections")),
        tag("main", *sections, remarks),
        tag("footer", tag("p", f"Made by lipcert {_version(findings.bound)}. This page loads nothing from elsewhere.")),
        tag("script", Markup(SCRIPT)),
    ])  # fmt: skip
    return f"<!DOCTYPE html>\n{tag('html', tag('head', head), tag('body', body), lang='en')}\n"


def _headline(findings: Findings) -> Markup:
    bound, lower = findings.bound, findings.lower
    value = at_most(bound.value)
    if bound.log10 is not None and math.isfinite(bound.log10) and not LEAST < bound.value < math.inf:
        value = f"10^{at_most(bound.log10)}"
    cards = [("L ≤", value), ("guarantee", bound.guarantee)]
    if lower is not None:
        cards.append(("L ≥ (witness)", at_least(lower.value)))
        if times := ratio(bound.value, lower.value):
            cards.append(("bound / lower bound", times))
    cards += [("method", bound.method), ("seconds", f"{bound.seconds:.2f}")]
    claim = "between an anchor and points " if bound.anchor is not None else ""
    claim = f"l{bound.norm[0]:g} → l{bound.norm[1]:g}, {claim}{place(bound.domain)}"
    sure = MEANS[bound.guarantee] + (
        f" Probability of error: at most {at_most(bound.delta, 2)}." if bound.delta else ""
    )
    told = [
        f"‖f(x) − f(y)‖ ≤ {value} · ‖x − y‖ in the norms {claim}. f is the real-valued function of the stored "
        "parameters, of one example in eval mode.",
        _inputs(findings), sure,
    ]  # fmt: skip
    if lower is not None:
        told.append("The truth lies between the two numbers: the lower one is attained at a point that was found.")
    facts = tag("dl", *(tag("div", tag("dt", name), tag("dd", shown)) for name, shown in cards), class_="cards")
    return joined([facts, *(tag("p", sentence) for sentence in told if sentence)])


def _inputs(findings: Findings) -> str:
    """Which inputs vary, where that is not all of one tensor; and of which output the bound is."""
    told = []
    if len(findings.varied) > 1 or (findings.varied and findings.fixed):
        names = [f"{name} ({'×'.join(map(str, shape)) or 'a number'})" for name, shape in findings.varied.items()]
        told.append(f"x is {names[0]}." if len(names) == 1 else f"x is these inputs, side by side: {', '.join(names)}.")
    if findings.fixed:
        told.append(f"Fixed at the values given: {', '.join(findings.fixed)}.")
    if findings.output:
        told.append(f"f is the output {findings.output}.")
    return " ".join(told)


def _certificate(findings: Findings) -> Markup | None:
    certificate = findings.bound.certificate
    if not isinstance(certificate, Certificate):
        return None
    content = content_of(certificate)
    saved = findings.certificate
    file = saved or "bound.lipcert"
    command = ["lipcert", "verify", file, findings.model or "MODEL"]
    if findings.input_shape:
        command += ["--input-shape", findings.input_shape]
    command += findings.options
    facts = [
        ("kind", certificate.kind), ("SHA-256 of the file", hashlib.sha256(content).hexdigest()),
        ("SHA-256 of the network", certificate.fingerprint), ("size", f"{len(content)} bytes"),
    ]  # fmt: skip
    how = f"The certificate is in {Path(saved).name}. " if saved else "Save it with bound.save('bound.lipcert'). "
    return joined([
        tag("dl", *(joined([tag("dt", name), tag("dd", tag("code", shown))]) for name, shown in facts)),
        tag("p", how + "This command captures the model again, compares its hash, and runs the check alone:"),
        tag("pre", tag("code", shlex.join(command))),
    ])  # fmt: skip


def _version(bound: Bound) -> str:
    certificate = bound.certificate
    return certificate.version if isinstance(certificate, Certificate) else ""
