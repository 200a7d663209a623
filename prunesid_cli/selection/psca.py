"""Principal semantic component analysis (PSCA, Sec. 3.2): which tokens mean the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from prunesid_cli.runtime.device import to_device, true_rows
from prunesid_cli.selection.linalg.batched import LARGEST, STEP, DoubtOf, leading_together, portions
from prunesid_cli.selection.linalg.eigenvectors import Doubt, angle, leading, undecided, undecided_through
from prunesid_cli.selection.linalg.krylov import add_product
from prunesid_cli.selection.linalg.per_image import each_image, room, scratch

ITERATIONS = 2
ROWS = 96
"""Rows of a Gram matrix that are computed at once, up to the diagonal: of 576 tokens 7/12 of all products."""
AT_ONCE, CPU_STEP = 4 * 576**2, 8
"""Entries of the Gram matrices that a core has at once, and the step of `together.portions` there."""
SMALL = 2**25
"""Multiplications of a Gram matrix that are cheap enough in fp64."""
ROUNDING = 1e-5
"""Share of all variation below which a direction is not to be had of products in fp32: of the embedded model's tokens
they get 1 in 500 wrong a decade below it, 1 in 80 two decades, 1 in 8,000 a decade above and none further up; and where
tokens repeat each other they show directions that are not there."""


def to_fp64_device(tensor: Tensor) -> Tensor:
    """The tensor where fp64 can be had, which some accelerators (mps) do not have."""
    return tensor if tensor.device.type in ("cpu", "cuda") else tensor.cpu()


def centred(tokens: Tensor, out: Tensor | None = None) -> Tensor:
    """tokens [..., N, C] -> fp32: sigmoid, less each token's own mean over its channels."""
    tokens = tokens.float()
    activation = torch.sigmoid(tokens, out=room(tokens, *tokens.shape) if out is None else out)
    return activation.sub_(activation.mean(-1, keepdim=True))


@dataclass(frozen=True)
class Gram:
    """`matrix` [B, M, M] fp64, symmetric; `least` [B]: eigenvalues above it are hardly touched by its rounding."""

    matrix: Tensor
    least: Tensor


def gram(matrices: Tensor) -> Gram:
    """matrices [B, M, D] fp32 -> matrices @ matrices.mT [B, M, M], in fp64 where that is cheap.

    Else by products in fp32, on a CPU at half price. What all rows share is split off first: its rounding would drown
    the rest of nearly uniform images (eigenvalues below 1e-5 of the largest), of which a plain product in fp32 gets 1
    token in 10 wrong.
    """
    images, m, length = matrices.shape
    product = room(matrices, images, m, m, dtype=torch.float64)
    if m * m * length <= SMALL:
        at_once = 1 if matrices.device.type == "cpu" else images  # as below
        for some, out in zip(matrices.split(at_once), product.split(at_once), strict=True):
            exact = some.double()
            torch.bmm(exact, exact.mT, out=out)
        return Gram(product, product.new_full((images,), -math.inf))
    if matrices.device.type == "cpu":  # large operations, some of which round otherwise for another batch
        least = torch.stack([_gram(matrix, out) for matrix, out in zip(matrices, product, strict=True)])
    else:
        least = _gram(matrices, product)
    return Gram(product, least)


def _gram(matrix: Tensor, out: Tensor) -> Tensor:
    """matrix [..., M, D] fp32 -> `out` [..., M, M]; returns `least` [...]."""
    with scratch():
        common = normalize(matrix.mean(-2, keepdim=True), dim=-1)
        along = matrix @ common.mT
        rest = torch.addcmul(matrix, along, common, value=-1, out=room(matrix, *matrix.shape))
        across = (rest @ common.mT).double()  # nearly nothing, but times `along` no longer so
        _product(rest, out)
    least = ROUNDING * out.diagonal(dim1=-2, dim2=-1).sum(-1)
    along = along.double()
    add_product(out, torch.cat([along, across], -1), torch.cat([along + across, along], -1).mT, out=out)
    return least


def _product(matrix: Tensor, out: Tensor) -> None:
    """matrix [..., M, D] fp32 -> `out` [..., M, M] fp64, from products in fp32: on a CPU, of two rows once."""
    if matrix.device.type != "cpu":
        out.copy_(matrix @ matrix.mT)
        return
    m = len(matrix)
    product = room(matrix, m, m)
    for start in range(0, m, ROWS):
        stop = min(start + ROWS, m)
        torch.mm(matrix[start:stop], matrix[:stop].T, out=product[start:stop, :stop])
        product[:start, start:stop] = product[start:stop, :start].T
    out.copy_(product)


def exact_directions(features: Tensor, ks: Sequence[int], loadings: bool = True) -> Tensor:
    """features [B, N, C], directions wanted of each image -> V [B, N, max(ks)]: exact top-k eigenvectors of the Gram
    matrix, by descending eigenvalue; zero beyond an image's k.

    Directions that the input does not have (rank < k) are zero columns, so that no token can be assigned to a group of
    rounding noise.

    loadings: whether the values of V matter, and not only which is the greatest of a token.
    """
    images, n, channels = features.shape
    if features.device.type != "cpu":
        return directions_together(features, ks, loadings)
    if n > channels:
        of = lambda row: _through_channels(features[row], ks[row], loadings)  # noqa: E731
        return _pad(each_image(of, images, features.device), max(ks))
    at_once = max(1, min(AT_ONCE // n**2, -(-images // torch.get_num_threads())))
    parts = list(portions(ks, n, CPU_STEP, at_once))
    found = each_image(lambda part: _directions(features, ks, parts[part], loadings), len(parts), features.device)
    directions = torch.zeros(images, n, max(ks))
    for (_, rows), own in zip(parts, found, strict=True):
        directions[rows] = _to_width(own, max(ks))
    return directions


def _directions(features: Tensor, ks: Sequence[int], part: tuple[int, list[int]], loadings: bool) -> Tensor:
    """(directions to find, rows) of the batch -> V [b, N, directions] of those rows."""
    width, rows = part
    matrices = room(features, len(rows), *features.shape[1:], dtype=torch.float32)
    for row, out in zip(rows, matrices, strict=True):  # one by one, as in `gram`
        centred(features[row], out)
    wanted = torch.arange(width) < torch.tensor([ks[row] for row in rows])[:, None]
    return _leading(matrices, wanted, angle if loadings else undecided).float().mT


def _through_channels(tokens: Tensor, k: int, loadings: bool) -> Tensor:
    """tokens [N, C] -> V [N, k], of more tokens than channels: of those the matrix is factorised."""
    matrix = centred(tokens)
    wanted = torch.ones(1, min(k, matrix.shape[1]), dtype=torch.bool)
    (weights,) = _leading(matrix.T[None], wanted, angle if loadings else undecided_through(matrix)).mT
    return _to_width(_seen_through(matrix, weights), k)


def _seen_through(matrix: Tensor, weights: Tensor) -> Tensor:
    """X [..., N, C] fp32, eigenvectors W [..., C, k] of X^T X fp64 -> V = X W / |X W| [..., N, k] fp32."""
    common = normalize(matrix.mean(-2, keepdim=True), dim=-1)
    along = matrix @ common.mT
    # As in `gram`: what all tokens share would drown the rest.
    rest = torch.addcmul(matrix, along, common, value=-1)
    found = (rest @ weights.float()).double() + along.double() @ (common.double() @ weights)
    return normalize(found, dim=-2).float()


def _leading(rows: Tensor, wanted: Tensor, doubt: Doubt) -> Tensor:
    """rows [B, M, D] fp32 -> first K eigenvectors of rows @ rows.mT, where wanted [B, K], as rows [B, K, M], from
    products as exact as need be."""
    quick = gram(rows)
    found = leading(quick.matrix, wanted, doubt)
    last = found[torch.arange(len(found), device=found.device), wanted.sum(-1) - 1].unsqueeze(1)
    faint = (last @ quick.matrix @ last.mT).flatten() <= quick.least
    for row in true_rows(faint):
        exact = rows[row].double()
        found[row] = leading((exact @ exact.T)[None], wanted[row : row + 1], doubt)[0]
    return found


def directions_together(features: Tensor, ks: Sequence[int], loadings: bool = True) -> Tensor:
    """As `exact_directions`, in as few launches as possible."""
    directions, doubtful = quick_directions(features, ks, loadings)
    if doubtful:  # few, if any: the CPU's own way
        exact = exact_directions(features[doubtful].cpu(), [ks[row] for row in doubtful], loadings)
        directions[doubtful] = _to_width(exact, max(ks)).to(features.device)
    return directions


def quick_directions(features: Tensor, ks: Sequence[int], loadings: bool) -> tuple[Tensor, list[int]]:
    """The same, and the images of which they may be wrong."""
    (n, channels), doubtful = features.shape[1:], list[int]()
    side, by_tokens = min(n, channels), n <= channels

    def doubt_of(matrix: Tensor) -> DoubtOf:
        if loadings or by_tokens:
            return lambda some: angle if loadings else undecided
        return lambda some: undecided_through(matrix[some])

    directions = torch.zeros(len(ks), n, -(-max(ks) // STEP) * STEP, device=features.device)
    for width, rows in portions(ks, side, STEP, max(1, LARGEST // (n * side))):
        some = slice(None) if len(rows) == len(ks) else rows  # an index would be sent over, and its images copied
        matrix, own = centred(features[some]), [ks[row] for row in rows]
        quick = gram(matrix if by_tokens else matrix.mT)
        found, unsure = leading_together(quick.matrix, own, width, doubt_of(matrix), quick.least)
        directions[some, :, :width] = found.mT.float() if by_tokens else _seen_through(matrix, found.mT)
        doubtful += [rows[at] for at in unsure]
    return directions[..., : max(ks)], doubtful


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
    basis = tall @ to_device(torch.randn(tall.shape[1], k, generator=generator), matrix.device)
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
    return torch.stack([_to_width(v, width) for v in columns])


def _to_width(directions: Tensor, width: int) -> Tensor:
    """V [..., k] -> [..., width]: less of it, or zeros beside it."""
    return torch.nn.functional.pad(directions, (0, width - directions.shape[-1]))


def groups(directions: Tensor) -> Tensor:
    """V [B, N, G] -> group of each token [B, N] int64: argmax |V|, the first on ties."""
    magnitude = directions.abs()
    # argmax promises no order among equals; a maximum of a 0/1 mask weighted by falling columns does.
    falling = torch.arange(magnitude.shape[-1], 0, -1, device=directions.device)
    return ((magnitude == magnitude.amax(-1, keepdim=True)) * falling).argmax(-1)
