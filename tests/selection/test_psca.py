"""Directions and groups: the exact ones, and the published random ones from a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from prunesid_cli.selection.linalg.gram import gram
from prunesid_cli.selection.methods.explanation import explain
from prunesid_cli.selection.psca import assign_groups, centre_tokens, exact_directions, low_rank_directions
from prunesid_cli.selection.similarity import compute_phi, normalize_tokens, pair_mean, rounded_pair_mean, triangle_mean
from tests.selection.inputs import batch, repeated, scene_like, tokens

Directions = Callable[[Tensor, Sequence[int]], Tensor]
GOLDEN = Path(__file__).parent.parent / "data" / "golden"


def centre_exactly(features: Tensor) -> Tensor:
    activation = features.double().sigmoid()
    return activation - activation.mean(-1, keepdim=True)


@pytest.mark.parametrize("n", [48, 300])
def test_gram_is_of_centred_tokens(n: int) -> None:
    (features,) = tokens(0, n)
    exact = centre_exactly(features)
    assert torch.allclose(gram(centre_tokens(features)[None]).matrix[0], exact @ exact.T, atol=1e-4)


@pytest.mark.parametrize("n", [48, 300])
def test_directions_are_the_leading_eigenvectors(n: int) -> None:
    """For fewer tokens than channels (64), and for more."""
    (features,) = tokens(0, n)
    exact = centre_exactly(features)
    reference = torch.linalg.eigh(exact @ exact.T).eigenvectors[:, -5:].flip(-1)
    assert torch.allclose(exact_directions(features[None], [5])[0].abs(), reference.abs().float(), atol=1e-4)


def test_columns_are_nested() -> None:
    (features,) = tokens(0)
    few, many = exact_directions(features[None], [3])[0], exact_directions(features[None], [8])[0]
    assert torch.allclose(few.abs(), many[:, :3].abs(), atol=1e-6)


@pytest.mark.parametrize("directions", [exact_directions, low_rank_directions])
def test_images_of_different_k_do_not_mix(directions: Directions) -> None:
    features, _ = batch(3)
    in_batch = directions(features, [2, 7, 4])
    for row, k in enumerate([2, 7, 4]):
        assert torch.equal(in_batch[row, :, :k], directions(features[row : row + 1], [k])[0])
        assert not in_batch[row, :, k:].any()


@pytest.mark.parametrize("need_values", [True, False])
def test_a_shared_operation_changes_no_image(need_values: bool) -> None:
    """Some need only the first steps, others more, or LAPACK; all are equal to the last bit to those computed alone."""
    kinds = [tokens(0, 196, 300), scene_like(1, 196, 300), repeated(2, 196, 300), repeated(3, 196, 300, 1e-4)]
    features = torch.cat([*kinds, 0.05 * kinds[0], torch.zeros(1, 196, 300), 4 * kinds[1], kinds[1]])
    in_batch = exact_directions(features, [13] * 8, need_values)
    for row in range(8):
        assert torch.equal(in_batch[row], exact_directions(features[row : row + 1], [13], need_values)[0])


def test_missing_directions_get_no_tokens() -> None:
    same = tokens(0, 1).expand(1, 20, -1)
    assert exact_directions(same, [4])[0, :, 1:].count_nonzero() == 0
    assert assign_groups(exact_directions(same, [4])).tolist() == [[0] * 20]
    constant = torch.ones(1, 20, 8)
    assert assign_groups(exact_directions(constant, [4])).tolist() == [[0] * 20]


@pytest.mark.parametrize("threads", [1, 2])
def test_repeated_tokens_have_as_many_directions_as_they_are(threads: int) -> None:
    """Equal rows of a product in fp32 may be rounded differently, which would look like a direction."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for seed, n in [(6, 324), (7, 324), (8, 576)]:
            found = exact_directions(repeated(seed, n, 512), [12])[0]
            assert found.any(0).tolist() == [True] * 3 + [False] * 9
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("noise", "k"), [(1e-4, 5), (1e-4, 40), (3e-3, 16)])
def test_faint_directions_are_found(noise: float, k: int) -> None:
    """They are too faint for products in fp32."""
    for seed in range(4):
        (features,) = repeated(seed, 300, 512, noise)
        exact = centre_tokens(features).double()
        reference = torch.linalg.eigh(exact @ exact.T).eigenvectors[:, -k:].flip(1)
        assert torch.equal(exact_directions(features[None], [k], False)[0].abs().argmax(1), reference.abs().argmax(1))


def test_the_first_of_equal_loadings_wins() -> None:
    v = torch.tensor([[[0.5, -0.5, 0.1], [0.1, -0.7, 0.7], [0.0, 0.0, 0.0]]])
    assert assign_groups(v).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("width", [24, 96])
def test_low_rank_is_torch_pca_lowrank(width: int) -> None:
    """The same draws give the same directions; the draws here come from a separate generator."""
    (matrix,) = tokens(3, 48, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _, _, v = torch.pca_lowrank(matrix.sigmoid().T, q=8)
    ours = low_rank_directions(matrix.unsqueeze(0), [8])[0]
    assert torch.allclose(ours.abs(), v.abs(), atol=1e-4)
    assert centre_tokens(matrix).mean(-1).abs().max() < 1e-6


def test_low_rank_groups_are_the_published_ones() -> None:
    """A reference case stores the random directions of the published implementation at seed 0."""
    case = load_file(GOLDEN / "llava_14_redundant_b48.safetensors")
    features = case["hidden_states"][:, 1:].float()
    ours = assign_groups(low_rank_directions(features, [case["V"].shape[-1]]))
    assert (ours == case["group"]).float().mean() > 0.99


def test_rho_without_the_pairs_is_rho() -> None:
    for image in batch(4)[0]:
        unit = normalize_tokens(image)
        n, cosines = len(unit), unit.double() @ unit.double().T
        slow = (cosines.sum() - cosines.trace()) / (n * (n - 1))
        assert torch.allclose(pair_mean(unit).double(), slow, atol=1e-6)
        assert torch.allclose(rounded_pair_mean(unit).double(), slow, atol=1e-6)
        assert torch.allclose(compute_phi(image[None]).double(), 1 - slow, atol=1e-6)


def test_the_published_slip_is_about_half() -> None:
    unit = normalize_tokens(tokens(0)[0])
    n = len(unit)
    expected = (pair_mean(unit) * n * (n - 1) / 2 + n) / n**2
    assert torch.allclose(triangle_mean(unit), expected, atol=1e-6)


def test_phi_of_one_token_and_of_equal_ones() -> None:
    assert compute_phi(torch.ones(1, 1, 4)).tolist() == [1.0]
    assert compute_phi(torch.ones(1, 9, 4)).abs().item() < 1e-6


def test_a_zero_token_resembles_no_other() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        image = torch.cat([torch.zeros(1, 4), torch.ones(2, 4)])
        assert normalize_tokens(image, dtype)[0].tolist() == [0.0] * 4


def test_explanation_adds_up() -> None:
    features, saliency = batch(2)
    for image in explain(features, saliency, [12, 20], num_cls=1):
        assert int(image.groups.taken.sum()) == len(image.indices)
        taken = torch.bincount(image.group[image.indices], minlength=len(image.groups.taken))
        assert torch.equal(taken, image.groups.taken)
        assert int(image.groups.survivors.sum()) == int(image.survivor.sum())
