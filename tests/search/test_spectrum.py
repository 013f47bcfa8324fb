"""Eigenvalues of the search are finite whatever LAPACK makes of float32."""

import pytest
import torch
from torch import Tensor

from lipcert.search.cost_to_go import weights


def _squares() -> Tensor:
    rows = torch.randn(4, 6, 9, generator=torch.Generator().manual_seed(0))
    return rows @ rows.mT


@pytest.mark.parametrize("raises", [False, True])
def test_what_float32_does_not_find_is_found_in_float64(raises: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One matrix of NaN, as LAPACK returns on some that are next to singular, or an error for all."""
    squares, eigh = _squares(), torch.linalg.eigh
    right = [part.clone() for part in eigh(squares)]

    def failing(matrices: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = eigh(matrices)
        if matrices.dtype == torch.float32:
            if raises:
                raise torch.linalg.LinAlgError("did not converge")
            values[2], vectors[2] = torch.nan, torch.nan
        return values, vectors

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    values, vectors = weights._spectrum(squares)
    assert values.dtype == vectors.dtype == torch.float32
    assert torch.allclose(values, right[0], rtol=1e-4, atol=1e-5)
    again = vectors @ torch.diag_embed(values) @ vectors.mT
    assert torch.allclose(again, squares, rtol=1e-4, atol=1e-4)
    if not raises:
        assert torch.equal(vectors[[0, 1, 3]], right[1][[0, 1, 3]])
