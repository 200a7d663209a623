"""Principal semantic component analysis (PSCA, Sec. 3.2): which tokens mean the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from prunesid_cli.selection.eigen import Doubt, angle, leading, undecided, undecided_through
from prunesid_cli.selection.parallel import each_image, room
from prunesid_cli.selection.together import STEP, leading_together, portions

ITERATIONS = 2
ROWS = 96
"""Rows of a Gram matrix that are computed at once, up to the diagonal: of 576 tokens 7/12 of all products."""
ROUNDING = 1e-5
"""Share of all variation below which a direction is not to be had of products in fp32: of the embedded model's tokens
they get 1 in 500 wrong a decade below it, 1 in 80 two decades, 1 in 8,000 a decade above and none further up; and where
tokens repeat each other they show directions that are not there."""


def where_exact(tensor: Tensor) -> Tensor:
    """The tensor where fp64 can be had, which some accelerators (mps) do not have."""
    return tensor if tensor.device.type in ("cpu", "cuda") else tensor.cpu()


def centred(tokens: Tensor) -> Tensor:
    """tokens [..., N, C] -> fp32: sigmoid, less each token's own mean over its channels."""
    tokens = tokens.float()
    activation = torch.sigmoid(tokens, out=room(tokens, *tokens.shape))
    return activation.sub_(activation.mean(-1, keepdim=True))


@dataclass(frozen=True)
class Gram:
    """`matrix` [..., M, M] fp64, symmetric; `least` [...]: eigenvalues above it are hardly touched by its rounding."""

    matrix: Tensor
    least: Tensor


def gram(matrix: Tensor) -> Gram:
    """matrix [..., M, D] fp32 -> matrix @ matrix.mT [..., M, M], by products in fp32, of one matrix at half price.

    What all rows share is split off first: its rounding would drown the rest of nearly uniform images (eigenvalues
    below 1e-5 of the largest), of which a plain product in fp32 gets 1 token in 10 wrong.
    """
    common = normalize(matrix.mean(-2, keepdim=True), dim=-1)
    along = matrix @ common.mT
    rest = torch.addcmul(matrix, along, common, value=-1, out=room(matrix, *matrix.shape))
    across = (rest @ common.mT).double()  # nearly nothing, but times `along` no longer so
    along = along.double()
    product = _symmetric_product(rest) if rest.ndim == 2 else (rest @ rest.mT).double()
    least = ROUNDING * product.diagonal(dim1=-2, dim2=-1).sum(-1)
    return Gram(product.addcmul_(along, (along + across).mT).addcmul_(across, along.mT), least)


def _symmetric_product(matrix: Tensor) -> Tensor:
    """matrix [M, D] fp32 -> matrix @ matrix.T [M, M] fp64, each product of two rows once."""
    m = len(matrix)
    product = room(matrix, m, m)
    for start in range(0, m, ROWS):
        stop = min(start + ROWS, m)
        torch.mm(matrix[start:stop], matrix[:stop].T, out=product[start:stop, :stop])
        product[:start, start:stop] = product[start:stop, :start].T
    return room(matrix, m, m, dtype=torch.float64).copy_(product)


def principal_directions(tokens: Tensor, k: int, loadings: bool = True) -> Tensor:
    """tokens [N, C] -> exact top-k eigenvectors V [N, k] of the Gram matrix, by descending eigenvalue.

    Directions that the input does not have (rank < k) are zero columns, so that no token can be assigned to a group of
    rounding noise. Of more tokens than channels it is the channels' matrix that is factorised, and V = X W / |X W|.

    loadings: whether the values of V matter, and not only which is the greatest of a token.
    """
    matrix = centred(tokens)
    n, channels = matrix.shape
    if n <= channels:
        return _leading(matrix, k, angle if loadings else undecided).float().T
    common = normalize(matrix.mean(0), dim=0)
    along = matrix @ common
    rest = torch.addr(matrix, along, common, alpha=-1)
    weights = _leading(matrix.T, min(k, channels), angle if loadings else undecided_through(matrix)).T
    # As in `gram`: what all tokens share would drown the rest.
    found = (rest @ weights.float()).double() + torch.outer(along.double(), common.double() @ weights)
    return torch.nn.functional.pad(normalize(found, dim=0).float(), (0, k - weights.shape[1]))


def _leading(rows: Tensor, k: int, doubt: Doubt) -> Tensor:
    """rows [M, D] fp32 -> first k eigenvectors of rows @ rows.T as rows [k, M], from products as exact as need be."""
    quick = gram(rows)
    found = leading(quick.matrix, k, doubt)
    if bool(found[-1] @ quick.matrix @ found[-1] > quick.least):
        return found
    exact = rows.double()
    return leading(exact @ exact.T, k, doubt)


def exact_directions(features: Tensor, ks: Sequence[int], loadings: bool = True) -> Tensor:
    """features [B, N, C], directions wanted of each image -> V [B, N, max(ks)], zero beyond an image's k."""
    if features.device.type != "cpu" and features.shape[1] <= features.shape[2]:
        return directions_together(features, ks, loadings)
    columns = each_image(lambda row: principal_directions(features[row], ks[row], loadings), len(ks), features.device)
    return _pad(columns, max(ks))


def directions_together(features: Tensor, ks: Sequence[int], loadings: bool = True) -> Tensor:
    """As `exact_directions`, in as few launches as possible; no more tokens than channels."""
    n, most = features.shape[1], max(ks)
    directions = torch.zeros(len(ks), n, -(-most // STEP) * STEP, device=features.device)
    for width, rows in portions(ks, n):
        some = slice(None) if len(rows) == len(ks) else rows  # an index would be sent over, and its images copied
        quick, own = gram(centred(features[some])), [ks[row] for row in rows]
        found, doubtful = leading_together(quick.matrix, own, width, loadings, quick.least)
        directions[some, :, :width] = found.mT.float()
        for row in [rows[at] for at in doubtful.nonzero().flatten().tolist()]:
            directions[row] = torch.nn.functional.pad(
                principal_directions(features[row], ks[row], loadings), (0, directions.shape[-1] - ks[row])
            )
    return directions[..., :most]


def low_rank_directions(features: Tensor, ks: Sequence[int], loadings: bool = True, seed: int = 0) -> Tensor:
    """The published code's randomised PCA (torch.pca_lowrank(q=k, niter=2)) with a seeded start of its own.

    features [B, N, C] -> V [B, N, max(ks)]. Every image starts from the same draw, as in the published code.
    """
    columns = [_halko(centred(tokens).T, k, seed) for tokens, k in zip(features, ks, strict=True)]
    return _pad(columns, max(ks))


def _halko(matrix: Tensor, k: int, seed: int) -> Tensor:
    """matrix [C, N] -> approximate right singular vectors [N, k] (Halko et al. 2009, alg. 4.4 and 5.1)."""
    wide = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T if wide else matrix
    k = min(k, tall.shape[1])
    generator = torch.Generator().manual_seed(seed)
    basis = tall @ torch.randn(tall.shape[1], k, generator=generator).to(matrix.device)
    basis = torch.linalg.qr(basis).Q
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(tall.T @ basis).Q
        basis = torch.linalg.qr(tall @ basis).Q
    left: Tensor
    right: Tensor
    left, _, right = torch.linalg.svd(basis.T @ tall, full_matrices=False)
    return basis @ left if wide else right.T


def _pad(columns: Sequence[Tensor], width: int) -> Tensor:
    """B x [N, k] -> [B, N, width]. A zero column wins no token (all-zero rows go to group 0)."""
    return torch.stack([torch.nn.functional.pad(v, (0, width - v.shape[1])) for v in columns])


def groups(directions: Tensor) -> Tensor:
    """V [B, N, G] -> group of each token [B, N] int64: argmax |V|, the first on ties."""
    magnitude = directions.abs()
    # argmax promises no order among equals; a maximum of a 0/1 mask weighted by falling columns does.
    falling = torch.arange(magnitude.shape[-1], 0, -1, device=directions.device)
    return ((magnitude == magnitude.amax(-1, keepdim=True)) * falling).argmax(-1)
