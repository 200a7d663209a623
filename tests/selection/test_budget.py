"""Budgets are parsed strictly, and an average that is spread by information stays exact."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesid_cli.errors import NonFiniteError, UsageError
from prunesid_cli.selection.budget import MIN_PHI, Budget, Spread, token_bounds, tokens_against_reference
from tests.selection.inputs import apportion


@pytest.mark.parametrize(
    ("text", "tokens", "canonical"),
    [
        ("64", 64, "64"),
        (" 064 ", 64, "64"),
        ("1000", 1000, "1000"),
        ("11%", 63, "11%"),
        ("11.10%", 64, "11.1%"),
        ("100%", 576, "100%"),
        (".01%", 1, "0.01%"),
        ("all", 576, "all"),
        ("ALL", 576, "all"),
    ],
)
def test_parse(text: str, tokens: int, canonical: str) -> None:
    budget = Budget.parse(text)
    assert (budget.tokens(576), str(budget)) == (tokens, canonical)
    assert Budget.parse(canonical) == budget


@pytest.mark.parametrize(
    "text",
    ["0", "-3", "0%", "-1%", "101%", "0.11", "1.5", "64 tokens", "", "%", "nan", "1e3", "\u0663", "--"],
)
def test_an_invalid_budget_gives_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as error:
        Budget.parse(text)
    assert "11%" in error.value.hint


def test_share_rounds_half_up() -> None:
    assert [Budget.parse("50%").tokens(n) for n in (1, 3, 5, 576)] == [1, 2, 3, 288]
    assert Budget(share=Fraction(1, 3)).tokens(576) == 192


def test_the_spread_is_part_of_the_budget() -> None:
    assert Budget.parse("64", Spread.ACROSS_ITEMS) == Budget(count=64, spread=Spread.ACROSS_ITEMS)


PHI = st.lists(st.floats(0, 1.5), min_size=1, max_size=40)


@given(phi=PHI, mean=st.floats(1, 600), n=st.integers(1, 576))
def test_the_average_is_exact_within_the_bounds(phi: list[float], mean: float, n: int) -> None:
    floor, ceiling = token_bounds(mean, n)
    tokens = apportion(phi, mean, floor, ceiling)
    assert all(floor <= t <= ceiling for t in tokens)
    expected = int(mean * len(phi) + 0.5)
    assert sum(tokens) == min(max(expected, floor * len(phi)), ceiling * len(phi))


@given(phi=PHI, mean=st.integers(32, 100))
def test_more_information_never_gets_fewer(phi: list[float], mean: int) -> None:
    tokens = apportion(phi, mean, 16, 2 * mean)
    for i, a in enumerate(phi):
        for j, b in enumerate(phi):
            assert tokens[i] >= tokens[j] or a < max(b, MIN_PHI) + 1e-9


def test_in_proportion() -> None:
    assert apportion([0.2, 0.4, 0.6], 64, 16, 128) == [32, 64, 96]
    assert apportion([0.01, 0.5, 0.99], 64, 32, 128) == [32, 54, 106]


def test_ties_go_to_the_first() -> None:
    assert apportion([0.5, 0.5, 0.5], 64 + 1 / 3, 16, 128) == [65, 64, 64]


def test_images_without_information_get_equal_shares() -> None:
    assert apportion([0.0, -1e-8, 0.0], 64, 16, 128) == [64, 64, 64]
    assert apportion([], 64, 16, 128) == []


def test_one_image_against_an_average_one() -> None:
    assert [tokens_against_reference(phi, 0.8, 64, 32, 128) for phi in (0.8, 0.4, 0.1, 0.9, 9.0)] == [
        64,
        32,
        32,
        72,
        128,
    ]


def test_unusable_information_names_its_rows() -> None:
    with pytest.raises(NonFiniteError) as error:
        apportion([0.5, float("nan"), float("inf")], 64, 16, 128)
    assert error.value.rows == [1, 2]


@pytest.mark.parametrize(
    ("mean", "n", "expected"),
    [(64, 576, (32, 128)), (20, 576, (16, 40)), (8, 576, (8, 16)), (1, 576, (1, 2)), (64, 100, (32, 100))],
)
def test_token_bounds(mean: float, n: int, expected: tuple[int, int]) -> None:
    assert token_bounds(mean, n) == expected


def test_budgets_need_no_torch() -> None:
    modules = "prunesid_cli.selection, prunesid_cli.selection.budget"
    program = f"import sys, {modules}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
