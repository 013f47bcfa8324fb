"""Complex values between real ones: transforms, spectral convolutions, rotary codes, against dense Jacobians."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.errors import InputError, LipcertError, UnsupportedOpError
from lipcert.ops.fourier import waves

GENERATOR = torch.Generator().manual_seed(3)
G = torch.randn(4, 3, dtype=torch.complex64, generator=GENERATOR)
CODE = torch.polar(torch.ones(3, 2), torch.arange(6.0).reshape(3, 2))
fft = torch.fft


class Model(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(2, 3, 3, dtype=torch.complex64, generator=GENERATOR))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def steepest(model: nn.Module, shape: tuple[int, ...], points: int = 1) -> float:
    """The greatest derivative at some points, in twice the precision."""
    double = copy.deepcopy(model)._apply(lambda t: t.to(torch.complex128 if t.is_complex() else torch.float64))
    found = [0.0]
    for seed in range(points):
        x = torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        jacobian = torch.autograd.functional.jacobian(double, x)
        found.append(float(torch.linalg.matrix_norm(jacobian.reshape(-1, x.numel()), 2)))
    return max(found)


def spectral(x: Tensor, weight: Tensor, n: int) -> Tensor:
    """The convolution of Fourier neural operators: few frequencies, each with a matrix of its own."""
    z = fft.rfft(x)
    out = torch.zeros(len(x), 3, z.shape[-1], dtype=z.dtype)
    out[:, :, :3] = torch.einsum("bim,iom->bom", z[:, :, :3], weight)
    return fft.irfft(out, n=n)


def rotated(x: Tensor) -> Tensor:
    return torch.view_as_real(torch.view_as_complex(x.reshape(len(x), 3, 2, 2)) * CODE.to(x.device)).flatten(1)


#: Linear chains, of which the Jacobian is the whole truth: function, shape of the input.
LINEAR: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]] = {
    "fnet": (lambda x, w: fft.fft(fft.fft(x, dim=2), dim=1).real, (6, 4)),
    "fft2 ortho": (lambda x, w: fft.fft2(x, norm="ortho").real, (3, 4)),
    "imag": (lambda x, w: fft.fft(x).imag, (6,)),
    "rfft": (lambda x, w: torch.view_as_real(fft.rfft(x)), (7,)),
    "ifft forward": (lambda x, w: fft.ifft(x, norm="forward").imag, (5,)),
    "hfft": (lambda x, w: fft.hfft(x), (5,)),
    "there and back": (lambda x, w: fft.irfft(fft.rfft(x), n=11), (8,)),
    "back of one": (lambda x, w: fft.irfft(torch.view_as_complex(x), n=1), (1, 2)),
    "irfft2": (lambda x, w: fft.irfft2(torch.view_as_complex(x), s=(3, 4)), (3, 3, 2)),
    "spectral, even": (lambda x, w: spectral(x, w, x.shape[-1]), (2, 8)),
    "spectral, odd": (lambda x, w: spectral(x, w, x.shape[-1]), (2, 9)),
    "filter": (lambda x, w: fft.irfft2(fft.rfft2(x, norm="ortho") * G, s=x.shape[-2:], norm="ortho"), (4, 4)),
    "matmul": (lambda x, w: torch.view_as_real(fft.rfft(x)[:, :, :3] @ w[0].conj().mT), (2, 8)),
    "rotary": (lambda x, w: rotated(x), (3, 4)),
    "circular": (lambda x, w: fft.irfft(fft.rfft(x) * fft.rfft(torch.arange(8.0).to(x)), n=8), (8,)),
    "numbers": (lambda x, w: ((1 + 2j) * (fft.fft(x) / 4.0) + 3j - 1.0).imag.roll(1, 1), (5,)),
    "sums": (lambda x, w: torch.cat([fft.fft(x).mean(1), fft.fft(x).flip(1).sum(1)], 1).real, (2, 5)),
}  # fmt: skip


@pytest.mark.few(1)
@pytest.mark.parametrize("name", LINEAR)
def test_linear_chains_have_their_own_constant(name: str) -> None:
    function, shape = LINEAR[name]
    model = Model(function).eval()
    truth = steepest(model, shape)
    found = lipcert.bound(model, torch.zeros(1, *shape), method="autolip")
    assert truth * (1 - 1e-12) <= found.value <= truth * (1 + 1e-6)


def _windows(x: Tensor) -> Tensor:
    window = torch.hann_window(6, dtype=torch.float64).to(x)
    return torch.stft(x, 8, 4, 6, window=window, return_complex=True).abs().flatten(1)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x, w: fft.rfft(x).abs(), (7,)), (lambda x, w: _windows(x), (24,)),
        (lambda x, w: torch.complex(x, 2 * x).abs(), (5,)), (lambda x, w: (fft.fft(x) + 3.0).abs(), (5,)),
        (lambda x, w: torch.tanh(spectral(x, w, 8)), (2, 8)),
    ],
)  # fmt: skip
def test_bounds_are_above_every_derivative(function: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    model = Model(function).eval()
    found = lipcert.bound(model, torch.zeros(1, *shape) + 0.1, method="autolip")
    assert steepest(model, shape, 20) <= found.value <= 5 * steepest(model, shape, 20)


@pytest.mark.slow
def test_certificates_are_of_the_complex_weights(tmp_path: object) -> None:
    model = Model(lambda x, w: torch.tanh(spectral(x, w, 8)).flatten(1)).eval()
    x, path = torch.zeros(1, 2, 8), f"{tmp_path}/m.lipcert"
    found = lipcert.bound(model, x, method="lipsdp", budget=2)
    found.save(path)
    assert lipcert.verify(path, model, x).value == found.value
    with torch.no_grad():
        model.weight[0, 0, 0] += 1e-6j
    with pytest.raises(lipcert.CertificateError, match="another model"):
        lipcert.verify(path, model, x)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (lambda x, w: fft.fft(x), InputError, "returns complex numbers"),
        (lambda x, w: fft.fft(x).angle(), UnsupportedOpError, "angle .*no rule covers it for complex numbers"),
        (lambda x, w: (fft.fft(x) / (2 + 1j)).real, UnsupportedOpError, "multiply with the reciprocal"),
        (lambda x, w: (fft.fft(x) * fft.fft(x)).real, LipcertError, "product of two values"),
        (lambda x, w: fft.fft(x.repeat(1, 1000)).real, UnsupportedOpError, "5000 entries; up to 4096"),
    ],
)
def test_what_is_not_covered_is_named(function: Callable[..., Tensor], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        lipcert.bound(Model(function).eval(), torch.zeros(1, 5), method="autolip")


@pytest.mark.slow
def test_execution_error_of_complex_numbers_is_refused() -> None:
    model, box = Model(lambda x, w: fft.fft(x).real).eval(), lipcert.Box(-torch.ones(5), torch.ones(5))
    with pytest.raises(UnsupportedOpError, match="makes complex numbers"):
        lipcert.execution_error(model, torch.zeros(1, 5), domain=box)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 12, 97, 360])
def test_the_tables_hold_the_true_sines(n: int) -> None:
    for sine in (False, True):
        for norm in (0, 1, 2):
            ball = waves(n, 2, n, sine, norm)
            radius = ball.spread
            with mpmath.workprec(200):
                scale = {0: mpmath.mpf(1), 1: mpmath.sqrt(n), 2: mpmath.mpf(n)}[norm]
                for k in range(n):
                    angle = 2 * mpmath.pi * k / n
                    truth = (mpmath.sin if sine else mpmath.cos)(angle) / scale
                    off = abs(mpmath.mpf(ball.middle[1, k].item()) - truth)
                    assert off <= radius[1, k].item() + mpmath.mpf(10) ** -50
                    assert float(radius[1, k]) <= 1e-14
    assert math.isclose(waves(8, 5, 8, False, 2, 4).middle[2, 0].item(), 0.25)
