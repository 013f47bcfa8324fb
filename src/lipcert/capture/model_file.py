"""Files that people have of a model: what each is, and how it becomes one that lipcert reads."""

from __future__ import annotations

import zipfile
from pathlib import Path

_SAVE = "torch.export.save(torch.export.export(model.eval(), (example,)), 'model.pt2')"
_FACTORY = "or name it on the command line as package.module:factory"

#: Suffix → what such a file is and what to do.
_FOREIGN = {
    ".safetensors": "a file of weights without the network. Build the module, load the weights into it "
    f"(model.load_state_dict(safetensors.torch.load_file(path))) and pass the module, {_FACTORY}.",
    ".h5": "a Keras file. Rebuild the network in PyTorch with its weights.",
    ".keras": "a Keras file. Rebuild the network in PyTorch with its weights.",
    ".pb": "a TensorFlow graph. Rebuild the network in PyTorch with its weights.",
    ".tflite": "a TensorFlow Lite graph. Rebuild the network in PyTorch with its weights.",
    ".npz": "an archive of arrays. Build the module in PyTorch and copy the arrays into it.",
}


def what_a_file_is(path: Path, problem: Exception | None = None) -> str:
    """A sentence for a file that is no readable ``torch.export`` program, with the way to convert it.

    Args:
        path: the file; it need not exist. Nothing in it is executed.
        problem: what went wrong when it was loaded.
    """
    if not path.exists():
        return f"there is no such file. Save a model with {_SAVE}."
    if path.suffix.lower() in _FOREIGN:
        return f"it is {_FOREIGN[path.suffix.lower()]}"
    names = _archive(path)
    if any("/code/" in name for name in names) and any(name.endswith("constants.pkl") for name in names):
        return (
            "it is a TorchScript archive (torch.jit.save), which torch.export does not read. Export the nn.Module it "
            f"was scripted or traced from: {_SAVE}."
        )
    if any(name.endswith("data.pkl") for name in names) or _pickled(path):
        return (
            "it is a pickle of torch.save: weights (a state dict) or a whole module. Build the module in Python, "
            "model.load_state_dict(torch.load(path, weights_only=True)) for weights, torch.load(path, "
            f"weights_only=False) for a module from a source you trust, and pass the module ({_SAVE} makes a file of "
            f"it), {_FACTORY}."
        )
    reason = "" if problem is None else f" ({type(problem).__name__}: {str(problem)[:200]})"
    return f"it is no readable torch.export program (.pt2){reason}, nor does it end in .onnx. Save one with {_SAVE}."


def _archive(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, RuntimeError):  # no archive, or of a version yet to come
        return []


def _pickled(path: Path) -> bool:
    """Whether this is a bare pickle (torch.save before 1.6)."""
    try:
        with path.open("rb") as file:
            return file.read(2)[:1] == b"\x80"
    except OSError:
        return False
