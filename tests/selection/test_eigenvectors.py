"""Leading eigenvectors from a Krylov space are those of LAPACK, on easy and on hard spectra."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prunesid_cli.selection.linalg.gram import gram
from prunesid_cli.selection.linalg.krylov import BLOCK, Krylov, leading_eigenvectors
from prunesid_cli.selection.linalg.ritz import StoppingCriterion, angle_excess, count_undecided, rayleigh_ritz
from prunesid_cli.selection.psca import centre_tokens, exact_directions
from tests.selection.inputs import generator, scene_like, tokens

N = 300
SPECTRA: dict[str, Callable[[Tensor], Tensor]] = {
    "flat": lambda i: 1 + (-i / N).exp(),
    "power law": lambda i: (1 + i) ** -1.4,
    "one giant": lambda i: torch.where(i == 0, 1e6, 2 - i / N),
    "steep": lambda i: torch.exp(-i / 4),
    "few directions": lambda i: (i < 20).double() / (1 + i),
    "one direction": lambda i: (i < 1).double(),
    "nothing": lambda i: 0 * i,
}


def leading(matrix: Tensor, k: int, criterion: StoppingCriterion = angle_excess) -> Tensor:
    """The leading eigenvectors of one matrix, all of them wanted."""
    (vectors,) = leading_eigenvectors(matrix[None], torch.ones(1, k, dtype=torch.bool), criterion)
    return vectors


def gram_of(tokens: Tensor) -> Tensor:
    return gram(centre_tokens(tokens)[None]).matrix[0]


def with_spectrum(values: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """-> a matrix and its eigenvectors, in the order of its eigenvalues."""
    n = len(values)
    vectors = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator(seed))).Q
    return (vectors * values) @ vectors.T, vectors


@pytest.mark.parametrize("k", [1, 16, 48, 120])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_leading_oursare_the_true_ones(spectrum: str, k: int) -> None:
    values = SPECTRA[spectrum](torch.arange(N, dtype=torch.float64))
    matrix, vectors = with_spectrum(values, k)
    ours = leading(matrix, k).T
    present, absent = values[:k] > 1e-11 * values[0], values[:k] <= 1e-13 * values[0]
    cosine = (ours * vectors[:, :k]).sum(0).abs()
    assert ours.shape == (N, k)
    assert torch.allclose(cosine[present], torch.ones(1, dtype=torch.float64), atol=1e-10)
    assert not ours[:, absent].any()


def test_equal_eigenvalues_span_their_space() -> None:
    """No vector of the space is better than another; there are more equal eigenvalues than a block has columns."""
    values = torch.cat([torch.full((2 * BLOCK,), 3.0), torch.linspace(1, 0, N - 2 * BLOCK)]).double()
    matrix, vectors = with_spectrum(values, 0)
    ours = leading(matrix, 2 * BLOCK).T
    assert torch.allclose(ours.T @ ours, torch.eye(2 * BLOCK, dtype=torch.float64), atol=1e-9)
    assert torch.allclose((vectors[:, : 2 * BLOCK].T @ ours).square().sum(0), torch.ones(1).double(), atol=1e-9)


@pytest.mark.parametrize("spectrum", [name for name in SPECTRA if name != "nothing"])
def test_the_basis_stays_orthonormal(spectrum: str) -> None:
    """Also where the matrix has no new direction: otherwise the basis would hold copies of what it has."""
    matrix, _ = with_spectrum(SPECTRA[spectrum](torch.arange(N, dtype=torch.float64)), 1)
    space = Krylov(matrix.float(), N // 2)
    space.grow(12 * BLOCK)
    basis = space.basis[: space.width]
    assert torch.allclose(basis @ basis.T, torch.eye(space.width), atol=1e-4)
    assert torch.allclose(space.product[: space.width], basis @ matrix.float(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 40])
def test_small_matrices(n: int) -> None:
    matrix, vectors = with_spectrum(torch.arange(n, 0, -1).double(), n)
    for k in {1, (n + 1) // 2, n}:
        assert torch.allclose((leading(matrix, k).T * vectors[:, :k]).sum(0).abs(), torch.ones(1).double())


@pytest.mark.parametrize("k", [8, 16, 48, 72])
@pytest.mark.parametrize("scale", [0.05, 1, 4])
@pytest.mark.parametrize("kind", [tokens, scene_like])
def test_each_token_loads_most_where_lapack_says(kind: Callable[[int, int, int], Tensor], scale: float, k: int) -> None:
    """Stopping once no group can change does not change a group."""
    for seed in range(3):
        matrix = gram_of(scale * kind(seed, 400, 512)[0])
        exact = torch.linalg.eigh(matrix).eigenvectors[:, -k:].flip(1)
        assert torch.equal(leading(matrix, k, count_undecided).abs().argmax(0), exact.abs().argmax(1))


@pytest.mark.parametrize("k", [4, 16])
@pytest.mark.parametrize("scale", [0.05, 1, 4])
def test_more_tokens_than_channels(scale: float, k: int) -> None:
    """Then the matrix of the channels is factorised."""
    for seed in range(3):
        (features,) = scale * scene_like(seed, 400, 250)
        exact = torch.linalg.eigh(gram_of(features)).eigenvectors[:, -k:].flip(1)
        ours = exact_directions(features[None], [k], need_values=False)[0]
        assert torch.equal(ours.abs().argmax(1), exact.abs().argmax(1))


def test_every_wrong_token_is_counted_as_undecided() -> None:
    """If the iteration stops early, the tokens in a wrong group are among those counted."""
    matrix = gram_of(scene_like(0, 400, 512)[0])
    exact = torch.linalg.eigh(matrix).eigenvectors[:, -16:].flip(1).abs().argmax(1)
    wrong = []
    for width in range(48, 133, 12):
        space = Krylov(matrix.float(), 200)
        space.grow(width)
        rows, complete = space.ritz_vectors(16)
        assert complete
        ritz = rayleigh_ritz(matrix, rows, torch.ones(16, dtype=torch.bool))
        wrong.append(int((ritz.directions().abs().argmax(0) != exact).sum()))
        assert count_undecided(ritz) >= wrong[-1]
    assert wrong[0] > 20
    assert wrong[-1] == 0
