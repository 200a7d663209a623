"""Compare selection with reference cases of the published implementation: python -m tests.golden DIR

A case is a .safetensors file of inputs, intermediate results and the result (see tests/data/golden/README.md). Every
stage is computed from the stored directions V and compared. If V is the exact decomposition, it is also computed from
the tokens and compared as far as tests/golden_exact.py finds it determined; comparisons that had to be left out are
printed. The last line is the number of cases passed and failed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from prunesid_cli.selection import select
from prunesid_cli.selection.methods.explanation import Explanation, explain
from prunesid_cli.selection.prunesid_variants import PUBLISHED_LLAVA, PUBLISHED_QWEN, PruneSIDVariant
from prunesid_cli.selection.psca import exact_directions
from prunesid_cli.selection.similarity import compute_phi, cosine_similarity, pair_mean
from tests.golden_exact import compare

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# One unit in the last place of a value near 1, or the noise of fp32 sums.
TOLERANCE = {"float32": 1e-5, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@dataclass(frozen=True)
class Case:
    """Inputs in the precision of the run and the results of the reference, all with a batch axis."""

    variant: PruneSIDVariant
    features: Tensor
    saliency: Tensor | None
    budget_with_cls: int
    num_cls: int
    run_dtype: str
    stored: dict[str, Tensor]

    def run(self, directions: Callable[[Tensor, Sequence[int], bool], Tensor]) -> list[Explanation]:
        variant = replace(self.variant, directions=directions)
        budgets_with_cls = [self.budget_with_cls] * len(self.features)
        return explain(self.features, self.saliency, budgets_with_cls, variant, self.num_cls)


def published_qwen_budget(configured: int, n: int) -> int:
    """The published Qwen2-VL code's budget of an image of n tokens; `configured` is that of 576 tokens."""
    return max(round(n * configured / 576), 16)


def load(path: Path) -> Case:
    with safe_open(path, "pt") as file:
        meta: dict[str, str] = file.metadata() or {}
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    return LOADERS[meta["variant"]](meta, stored)


def _llava(meta: dict[str, str], stored: dict[str, Tensor]) -> Case:
    dtype = DTYPES[meta["run_dtype"]]
    saliency = stored["cls_attention"][:, :, 1:].to(dtype).sum(1).float()
    features = stored["hidden_states"][:, 1:].to(dtype)
    budget_with_cls = int(meta["need_token_num"])
    return Case(PUBLISHED_LLAVA, features, saliency, budget_with_cls, 1, meta["run_dtype"], stored)


def _qwen(meta: dict[str, str], stored: dict[str, Tensor]) -> Case:
    per_image = {name: tensor.unsqueeze(0) for name, tensor in stored.items()}
    features = per_image["tokens"].to(DTYPES[meta["run_dtype"]])
    budget_with_cls = published_qwen_budget(int(meta["need_cfg"]), features.shape[1])
    return Case(PUBLISHED_QWEN, features, None, budget_with_cls, 0, meta["run_dtype"], per_image)


PER_IMAGE = ("eigenvalues", "group", "score", "V", "indices", "indices_fixed")
LOADERS = {"llava": _llava, "qwen": _qwen}


def _result(case: Case, explanation: Explanation) -> Tensor:
    """Indices as the reference counts them: behind the CLS token where there is one."""
    indices = explanation.indices
    return torch.cat([indices.new_zeros(1), indices + 1]) if case.num_cls else indices


def _nms_round(case: Case, image: Explanation) -> Tensor:
    """The round of its group's greedy loop in which a token was kept; 0 if it was not."""
    order = image.saliency.argsort(descending=True, stable=True)
    kept = torch.nn.functional.one_hot(image.group, len(image.groups.size)) * image.survivor[:, None].long()
    rounds = torch.empty_like(kept).index_copy(0, order, kept[order].cumsum(0))
    return (rounds * kept).sum(-1)


# Stored name -> ours, of one image.
EQUAL: dict[str, Callable[[Case, Explanation], Tensor]] = {
    "group": lambda case, image: image.group,
    "nms_keep": lambda case, image: image.survivor,
    "nms_round": _nms_round,
    "group_count": lambda case, image: image.groups.size,
    "nms_count": lambda case, image: image.groups.survivors,
    "lower": lambda case, image: image.groups.lower,
    "upper": lambda case, image: image.groups.upper,
    "alloc": lambda case, image: image.groups.taken,
    "indices": _result,
}
CLOSE: dict[str, Callable[[Case, Explanation], Tensor]] = {
    "score": lambda case, image: image.saliency,
    "rho": lambda case, image: image.redundancy,
    "sim_mean_triu0": lambda case, image: image.redundancy,
    "tau": lambda case, image: image.tau,
}


# Stored name -> ours, of the whole batch, from the tokens alone.
FROM_TOKENS: dict[str, Callable[[Case], Tensor]] = {
    "phi": lambda case: compute_phi(case.features),
    "rho_eq4": lambda case: torch.stack([pair_mean(tokens) for tokens in case.features]),
    "similarity": lambda case: torch.stack([cosine_similarity(tokens, tokens.dtype) for tokens in case.features]),
    "need_token_num": lambda case: torch.tensor([case.budget_with_cls]),
}


def check_stages(case: Case) -> list[str]:
    """Names of the intermediates that differ, with the stored directions."""
    images = case.run(lambda features, ks, need_values: case.stored["V"].float())
    stored = dict(case.stored)
    # The published code returned duplicates: the reference holds the answer without them.
    stored["indices"] = stored.get("indices_fixed", stored["indices"])
    wrong = [
        name
        for name, ours in EQUAL.items()
        if name in stored and not _equal(torch.stack([ours(case, image) for image in images]), stored[name])
    ]
    tolerance = TOLERANCE[case.run_dtype]
    values = {name: torch.stack([ours(case, image) for image in images]) for name, ours in CLOSE.items()}
    values |= {name: ours(case) for name, ours in FROM_TOKENS.items()}
    return wrong + [n for n, ours in values.items() if n in stored and not _close(ours, stored[n], tolerance)]


def _equal(ours: Tensor, stored: Tensor) -> bool:
    return torch.equal(ours.long(), stored.long())


def _close(ours: Tensor, stored: Tensor, tolerance: float) -> bool:
    stored = stored.float().reshape(ours.shape)
    return torch.allclose(ours.float(), stored, rtol=tolerance, atol=tolerance)


def check_exact(case: Case) -> tuple[list[str], str]:
    """What differs with directions computed from the tokens, and what could not be compared."""
    wrong: list[str] = []
    left_out: list[str] = []
    for row, image in enumerate(case.run(exact_directions)):
        of_image = {name: case.stored[name][row] for name in PER_IMAGE if name in case.stored}
        bad, unclear = compare(image, _result(case, image), of_image)
        wrong += [f"{finding} of image {row}" for finding in bad]
        left_out += [f"image {row}: {reason}" for reason in unclear]
    return wrong, "; ".join(["exact V checked", *(f"left out, {reason}" for reason in left_out)])


def check(path: Path) -> tuple[list[str], str]:
    """What is wrong with a case, and a note."""
    case = load(path)
    n = case.features.shape[1]
    if "V" not in case.stored:
        kept = select(case.features, case.saliency, [case.budget_with_cls] * len(case.features), "prunesid-published")
        return [] if all(_equal(image, torch.arange(n)) for image in kept) else ["indices"], "keeps all"
    wrong = check_stages(case)
    if "eigenvalues" not in case.stored:
        return wrong, "exact V: not stored"
    more, note = check_exact(case)
    return wrong + more, note


def run(directory: Path) -> tuple[int, int]:
    """Print a line for each case; return how many passed and failed. An unreadable case has failed."""
    failed = 0
    paths = sorted(directory.glob("*.safetensors"))
    for path in paths:
        try:
            wrong, note = check(path)
        except Exception as error:  # any damage to a file is that file's failure
            wrong, note = [f"{type(error).__name__}: {error}"], "not read"
        failed += bool(wrong)
        print(f"{'FAIL' if wrong else 'ok  '} {path.name}  {'; '.join([*wrong, note])}")
    return len(paths) - failed, failed


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m tests.golden DIR", file=sys.stderr)
        return 2
    passed, failed = run(Path(arguments[0]))
    print(f"{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
