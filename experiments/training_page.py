"""The page of the training experiment: a table per network, peers' published figures, and which bounds were broken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import mean
from typing import Any

from experiments.common import table
from experiments.training_recipes import ALL

RADII = (0.3, 0.5, 1.0, 1.58)
TITLES: Mapping[str, str] = {
    "convsmall": "ConvSmall (2C2F): Conv 1→16 k4 s2, Conv 16→32 k4 s2, FC 100, FC 10",
    "4c3f": "4C3F: Conv 1→32 k3, 32→32 k4 s2, 32→64 k3, 64→64 k4 s2, FC 512, FC 512, FC 10",
}
#: What a table does not say.
REMARKS: Mapping[str, str] = {
    "convsmall": "Rows of 40 images of plain training, weight decay and PGD had 20 s an image for four radii, "
    "beside another process half of the time; those of 50 images 4 s on a slow machine, in which most stay open. "
    "So ordinary training is short of time for its certification too: at 0.3 all that an attack leaves of weight decay "
    "and of PGD is certified, where networks trained for it take 0.3 s an image. Rows of 1000 images and four radii "
    "had 2 s an image.",
    "4c3f": "On the H200 five of six trainings of PGD + 0.35 × pair constants (three seeds, with two earlier forms of "
    "the loss) ended as constants, and one of three at 0.5; they are left out. The constants had drawn the first "
    "convolution to 0, its norm to 1e-4. Since then the loss lets constants take at most 3/4 of what a model gains "
    "over a constant; so the row with two attack steps was trained to the end, on a CPU, one seed. Rows of 200 images "
    "are of 300 steps of the search and no branching, in processes of one thread; the others of so many seconds an "
    "image, which leave more open: of 100 with 0.35 and four attack steps eight after 20 s, and not six. *Orthogonal "
    "start*: layers begin nearly orthogonal, steps in bfloat16; of its first 100 images 68 are certified, of 200 64.5, "
    "of 112 67.9 (71.4 left). *0.4, then 0.2*: the same network and a quarter more steps; two seeds have 96.8 and 96.7 "
    "of all right. Its images had 20 s each on a machine that did other work; of the first 32, beside which there was "
    "less, none stayed open, and of seven later ones none was closed in 40 s. *0.4, then 0.3*: of its first 100 images "
    "70.0 are certified (72.0 left), of 200 65.5, of 300 64.3 (69.7 left), of 400 64.8, of 500 62.6; 15 s an image of "
    "one thread, at most 60 on average over 16. The 34 that were open after 30 s of the first 672 had as much again: "
    "one was certified. *Then 0.25* (4 062 steps more, 96.4 % of all right): of its first 224 images 65.2 are "
    "certified (74.6 left), where the network before has 64.7 (69.6 left). *0.4, then three times 0.3* (4 062 and "
    "12 000 steps more): of its first 100 images 73.0 are certified (75.0 left), of 200 69.5, of 300 68.0 (73.7 left), "
    "of 500 66.0; 10 s an image of one thread, at most 30 on average over 16.",
}
#: Whose images published figures are of.
HARDER = (
    "Of all 10 000 test images; the first 1000 are harder: of 4C3F, 0.4, then three times 0.3, ten steps of an attack "
    "leave 74.4 % of them and 78.9 % of all, of 0.4, then 0.3, 71.1 and 75.7 % (`python -m experiments.first_images`)."
)
#: Published: method, network, radius, certified accuracy of all 10 000 test images, source.
PEERS = (
    ("GloRo", "2C2F", "0.3", "95.7", "Leino, Wang & Fredrikson 2021, *Globally-robust neural networks*"),
    ("BCP", "4C3F", "1.58", "47.95", "Lee, Lee & Park 2020, *Lipschitz-certifiable training with a tight outer bound*"),
    ("GloRo", "4C3F", "1.58", "62.8", "Leino, Wang & Fredrikson 2021"),
    ("CRM", "4C3F", "1.58", "63.4", "Fazlyab et al. 2023, *Certified robustness via dynamic margin maximization*"),
)

Row = Mapping[str, Any]


def page(rows: Iterable[Row]) -> str:
    """Markdown for all rows."""
    rows = list(rows)
    lines = [
        "# Training for certified accuracy",
        "",
        "MNIST, 60 000 images to train on, l2 perturbations, no limits of pixels. Written by `python -m "
        "experiments.training` from training.csv, which has a row per network. Training of a network took "
        f"{_budget(rows)}; the GPU had 7 to 13 trainings at a time, for as many steps as four CPU minutes buy, "
        "4C3F for five. Adam from 2e-3 to 0, batches of 128; the radius grows over the first third. **Certified** "
        "is by `lipcert.certify` (as `lipcert certify`) on the first test images, *attacked* what its attack leaves "
        "of them: the truth lies between. Means over seeds, least to greatest in brackets. L is the attack's lower "
        "bound and the certified constant (LipSDP). Where a row has fewer than 1000 images, or no share at a radius, "
        "the machine's time ended there: the first hundred test images are easier than the first thousand. An "
        f"image had {_budgets(rows)} s to be certified in: so little that open ones say little of plain training.",
    ]
    for net, title in TITLES.items():
        own = [row for row in rows if row["net"] == net]
        if own:
            lines += ["", f"## {title}", "", *_table(own)]
            lines += ["", REMARKS[net]] if net in REMARKS else []
    lines += ["", "## Published", "", HARDER, ""]
    lines += table(["method", "network", "ε", "certified, %", "source"], PEERS)
    broken = [f"{row['net']} {row['recipe']} {row['seed']}: {what}" for row in rows for what in disorder(row)]
    lines += ["", f"Bounds below a lower bound: {'; '.join(broken) or 'none'}.", ""]
    return "\n".join(lines)


def disorder(row: Row) -> list[str]:
    """What of a row contradicts itself: certified beyond attacked, or a constant below its lower bound."""
    pairs = {r: (row[f"certified_{r:g}"], row[f"attacked_{r:g}"]) for r in RADII}
    found = [f"certified at {r:g}" for r, (low, high) in pairs.items() if low and float(low) > float(high)]
    return found + ["constant"] * (float(row["constant"]) < float(row["lower"]) * (1.0 - 1e-9))


def _budget(rows: list[Row]) -> str:
    devices = {row["device"] for row in rows}
    found = []
    for device in sorted(devices):
        seconds = [float(row["train_seconds"]) for row in rows if row["device"] == device]
        kind = f"CPU{device[3:]}" if device.startswith("cpu") else f"wall, {device},"
        found.append(f"{min(seconds):.0f} to {max(seconds):.0f} {kind} seconds")
    return "; ".join(found)


def _budgets(rows: list[Row]) -> str:
    found = sorted(float(row["budget"]) for row in rows)
    return f"{found[0]:g} to {found[-1]:g}"


def _table(rows: list[Row]) -> list[str]:
    at = (f"l2 {r:g}: **certified** (attacked)" for r in RADII)
    head = ["recipe", "seeds", "images", "clean, of these", "clean, of all", *at, "L ≥, ≤", "steps", "ms each"]
    body = []
    for name, recipe in ALL.items():
        for images in sorted({int(row["images"]) for row in rows if row["recipe"] == name}, reverse=True):
            own = [row for row in rows if row["recipe"] == name and int(row["images"]) == images]
            shares = [_shares(own, f"{r:g}") for r in RADII]
            constants = f"{_mean(own, 'lower'):.3g}, {_mean(own, 'constant'):.3g}"
            clean, each = _spread(own, "clean", 2), f"{_mean(own, 'step_ms'):.1f}"
            steps = f"{_mean(own, 'steps'):.0f}"
            these = _spread(own, "clean_first")
            body.append([recipe.title, str(len(own)), str(images), these, clean, *shares, constants, steps, each])
    return table(head, body)


def _shares(rows: list[Row], radius: str) -> str:
    own = [row for row in rows if row[f"certified_{radius}"]]
    if not own:
        return "–"
    return f"**{_spread(own, f'certified_{radius}')}** ({_mean(own, f'attacked_{radius}'):.1f})"


def _mean(rows: list[Row], name: str) -> float:
    return mean(float(row[name]) for row in rows)


def _spread(rows: list[Row], name: str, digits: int = 1) -> str:
    values = [float(row[name]) for row in rows]
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} [{min(values):.{digits}f}–{max(values):.{digits}f}]"
