"""Principal semantic component analysis (PSCA, Sec. 3.2): which tokens mean the same.

Everything with rounding in it runs image by image on freshly allocated tensors: batched kernels may choose
another order of summation for another batch size, and a token's group must not depend on its batch mates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

# Below this share of the largest eigenvalue a direction is rounding noise.
NOISE = 1e-12
ITERATIONS = 2


def where_exact(tensor: Tensor) -> Tensor:
    """The tensor where fp64 can be had, which some accelerators (mps) do not have."""
    return tensor if tensor.device.type in ("cpu", "cuda") else tensor.cpu()


def per_image(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """Apply `function` to every row of [B, ...] on its own."""
    return torch.stack([function(image) for image in batch])


def centred(tokens: Tensor) -> Tensor:
    """tokens [N, C] -> fp32 [N, C]: sigmoid, less each token's own mean over its channels."""
    activation = torch.sigmoid(tokens.float())
    return activation - activation.mean(-1, keepdim=True)


def gram(features: Tensor) -> Tensor:
    """features [B, N, C] -> Gram matrix of the centred tokens [B, N, N] fp64."""
    return per_image(lambda tokens: _product(centred(tokens)), features)


def _product(matrix: Tensor) -> Tensor:
    """matrix [M, D] fp32 -> matrix @ matrix.T, fp64, by a product in fp32 of half the price.

    What all rows share is split off first: its rounding would drown the rest of nearly uniform images (eigenvalues
    below 1e-5 of the largest), of which a plain product in fp32 gets 1 token in 10 wrong.
    """
    common = normalize(matrix.mean(0), dim=0)
    along = matrix @ common
    rest = matrix - torch.outer(along, common)
    across = (rest @ common).double()  # nearly nothing, but times `along` no longer so
    along = along.double()
    return (rest @ rest.T).double() + torch.outer(along, along + across) + torch.outer(across, along)


def principal_directions(gram: Tensor, k: int) -> Tensor:
    """gram [B, N, N] -> exact top-k eigenvectors V [B, N, k] fp32, by descending eigenvalue.

    Directions that the input does not have (rank < k) are zero columns, so that no token can be assigned
    to a group of rounding noise.
    """
    solve = _eigh_cuda if gram.is_cuda else _eigh_cpu
    return per_image(lambda matrix: solve(matrix, k), gram)


def _eigh_cpu(matrix: Tensor, k: int) -> Tensor:
    # LAPACK's evr computes the k wanted vectors only. fp64 takes 1.5 to 1.9 x the time of fp32, and keeps
    # the groups of nearly uniform images, where fp32 loses up to 4 of 5.
    from scipy.linalg import eigh

    n = matrix.shape[0]
    values, vectors = eigh(matrix.double().numpy(), subset_by_index=[n - k, n - 1], driver="evr", check_finite=False)
    return _leading(torch.from_numpy(values), torch.from_numpy(vectors))


def _eigh_cuda(matrix: Tensor, k: int) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix.double())
    return _leading(values[-k:], vectors[:, -k:])


def _leading(values: Tensor, vectors: Tensor) -> Tensor:
    """Ascending eigenvalues [k] and vectors [N, k] -> vectors, descending, noise zeroed, fp32."""
    real = values > NOISE * values[-1].clamp(min=0)
    return (vectors * real).flip(-1).float()


def exact_directions(features: Tensor, ks: Sequence[int]) -> Tensor:
    """features [B, N, C], directions wanted of each image -> V [B, N, max(ks)], zero beyond an image's k."""
    columns = [principal_directions(gram(image), k)[0] for image, k in zip(torch.split(features, 1), ks, strict=True)]
    return _pad(columns, max(ks))


def low_rank_directions(features: Tensor, ks: Sequence[int], seed: int = 0) -> Tensor:
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
