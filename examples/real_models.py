"""A certified bound for each of many trained networks that packages of PyPI carry: one command, value, time, memory.

    python examples/real_models.py [NAME …] [--budget S] [--markdown FILE]

Each runs in a process of its own. A domain is given where the network is Lipschitz on regions only: a ball around an
input, in the units of the inputs. Where a package is missing its row says how to install it.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lipcert
import real_networks as nets
from lipcert.digits import at_most

Model = nn.Module | Path


@dataclass(frozen=True)
class Case:
    """A network.

    Attributes:
        name: on the command line.
        load: model and example.
        radius: of the ball around the example; None: everywhere.
        about: for the table.
    """

    name: str
    load: Callable[[], tuple[Model, Tensor]]
    about: str
    radius: float | None = None


def _on(load: Callable[[], Model], *shape: int) -> Callable[[], tuple[Model, Tensor]]:
    def both() -> tuple[Model, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return load(), 0.1 * torch.randn(1, *shape, generator=generator)

    return both


def _onnx(package: str, name: str, *shape: int) -> Callable[[], tuple[Model, Tensor]]:
    return _on(partial(nets.onnx_file, package, name), *shape)


SIZES = ("xxsmall", "xsmall", "small", "medium", "large", "xlarge", "xxlarge", "xxxlarge")

CASES = [
    *(Case(f"neuralfoil-{s}", _on(partial(nets.neuralfoil, s), 25), "airfoil, swish MLP") for s in SIZES),
    Case("digit-recognizer", _on(nets.digit_recognizer, 1, 28, 28), "digits, CNN with max-pooling"),
    Case("facenet-pnet", _on(partial(nets.face_network, "pnet"), 3, 12, 12), "faces, PReLU CNN"),
    Case("facenet-rnet", _on(partial(nets.face_network, "rnet"), 3, 24, 24), "faces, PReLU CNN"),
    Case("facenet-onet", _on(partial(nets.face_network, "onet"), 3, 48, 48), "faces, PReLU CNN"),
    Case("efficientnet-lite0", _on(nets.load_efficientnet_lite0, 3, 224, 224), "ImageNet, 224 × 224"),
    Case("crepe-tiny", _on(partial(nets.crepe, "tiny"), 1024), "pitch, 1 024 samples"),
    Case("crepe-full", _on(partial(nets.crepe, "full"), 1024), "pitch, 1 024 samples"),
    Case("silero-vad", _on(nets.voice_detector, 576), "speech, spectra and LSTM"),
    Case("minilm", nets.sentence_encoder, "sentence of 8 tokens, 6 layers", 1e-4),
    Case("rapidocr-cls", _onnx("rapidocr-onnxruntime", "*cls_infer.onnx", 3, 48, 192), "text direction, ONNX", 1e-3),
    Case("rapidocr-det", _onnx("rapidocr-onnxruntime", "*det_infer.onnx", 3, 64, 64), "text places, ONNX", 1e-3),
    Case("rapidocr-rec", _onnx("rapidocr-onnxruntime", "*rec_infer.onnx", 3, 48, 64), "text, ONNX", 1e-3),
    Case("magika", _on(nets.file_types, 2048, 257), "file types, ONNX", 1e-3),
]


def measure(case: Case, budget: float) -> dict[str, Any]:
    """Bound, guarantee, seconds, and memory of this process."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    try:
        model, example = case.load()
        domain = None if case.radius is None else lipcert.Ball(example[0], case.radius)
        found = lipcert.bound(model, example, domain=domain, budget=budget)
        power = found.log10
        value = at_most(found.value, 4) if found.value < float("inf") else f"10^{math.ceil(power)}"
        row: dict[str, Any] = {"value": value, "guarantee": found.guarantee, "method": found.method}
    except (ModuleNotFoundError, lipcert.LipcertError) as problem:
        row = {"value": "–", "guarantee": f"{type(problem).__name__}: {problem}", "method": "–"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return row | {"seconds": time.perf_counter() - began, "GiB": peak}


def _send(place: int, budget: float, pipe: Any) -> None:
    pipe.send(measure(CASES[place], budget))


def main() -> None:
    """A table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of networks, or parts of them; default: all")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds that searches may take")
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    args = parser.parse_args()
    lines = ["| network | | domain | L ≤ | guarantee | method | s | GiB |", "| --- " * 8 + "|"]
    context = multiprocessing.get_context("spawn")
    for place, case in enumerate(CASES):
        if args.names and not any(name in case.name for name in args.names):
            continue
        here, there = context.Pipe(duplex=False)
        worker = context.Process(target=_send, args=(place, args.budget, there))
        worker.start()
        there.close()
        try:
            row = here.recv()
        except EOFError:
            row = {"value": "–", "guarantee": "the process was ended", "method": "–", "seconds": 0.0, "GiB": 0.0}
        worker.join()
        domain = "everywhere" if case.radius is None else f"ball, {case.radius:g}"
        cells = (row["value"], row["guarantee"], row["method"], f"{row['seconds']:.0f}", f"{row['GiB']:.1f}")
        print(f"{case.name:20} {domain:12} ", "  ".join(cells), flush=True)
        lines.append(f"| {case.name} | {case.about} | {domain} | " + " | ".join(cells) + " |")
    if args.markdown:
        args.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
