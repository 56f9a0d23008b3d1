"""Coefficients of heads from sums of attention: exact vectors, grouped heads, and what is refused."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from vecsurgery.errors import InputError
from vecsurgery.fits import AnswerLosses, AttentionPaid, Candidate, Coefficients, FittedMatrix
from vecsurgery.fits.attention_scale import AttentionScale, attention_scale

HEADS = FittedMatrix(0, {"q": 2})


class Answers:
    """Answers with given attention; notes what it was asked."""

    def __init__(self, paid: AttentionPaid, losses: Sequence[float] = (2.0, 1.0, 3.0)) -> None:
        self.paid, self.nll = paid, losses
        self.asked: list[Candidate] = []
        self.heard: list[Candidate] = []

    def __call__(self, candidates: Sequence[Candidate]) -> list[AnswerLosses]:
        self.asked = list(candidates)
        return [AnswerLosses(nll, nll, 0.5, (nll,)) for nll in self.nll]

    def attention(self, candidate: Candidate) -> AttentionPaid:
        self.heard.append(candidate)
        return self.paid


def _paid(related: Any, unrelated: Any, counts: Sequence[tuple[int, int, int]] = ((1, 1, 1),)) -> AttentionPaid:
    """Sums [sample][layer][head] with (instruction, related, unrelated) tokens of each sample."""
    instruction, one, other = zip(*counts, strict=True)
    sums = [torch.tensor(each, dtype=torch.float64) for each in (related, unrelated)]
    return AttentionPaid(sums[0], sums[1], instruction, one, other)


def _fitted(ask: Answers, tensors: dict[str, FittedMatrix] | None = None, **options: Any) -> Coefficients:
    chosen = {"w": HEADS} if tensors is None else tensors
    return attention_scale(
        ask, step="attention_scale", delta="instruct", tensors=chosen, facts={}, options=AttentionScale(**options)
    )


def test_alpha_is_the_gain_over_the_head_room() -> None:
    found = _fitted(Answers(_paid([[[0.3, 0.1]]], [[[0.1, 0.4]]])), mean=None)
    assert found.tensors["w"]["q"] == pytest.approx((0.227273, 0.0), abs=1e-6)  # type: ignore[index]
    assert found.facts["zero"] == 0.5


@pytest.mark.parametrize(("normalise", "expected"), [("mass", 0.366667), ("paper", 0.183333)])
def test_attention_counts_per_token_or_per_pair(normalise: str, expected: float) -> None:
    """Uniform causal attention over 6 tokens, instruction {1, 2}, response {4, 5}: 2/5 + 2/6 in total."""
    total = 2 / 5 + 2 / 6
    ask = Answers(_paid([[[total, total]]], [[[0.0, 0.0]]], [(2, 2, 0)]))
    found = _fitted(ask, mean=None, normalise=normalise)
    assert found.facts["related"] == pytest.approx(expected, abs=1e-6)
    assert found.tensors["w"]["q"] == pytest.approx((expected, expected), abs=1e-6)  # type: ignore[index]


def test_samples_without_such_tokens_leave_the_mean() -> None:
    related = [[[0.4, 0.2]], [[0.0, 0.0]], [[1.2, 0.6]], [[0.0, 0.0]]]
    unrelated = [[[0.0, 0.0]], [[0.3, 0.3]], [[0.2, 0.2]], [[0.0, 0.0]]]
    ask = Answers(_paid(related, unrelated, [(1, 1, 0), (2, 0, 3), (1, 2, 1), (0, 4, 4)]))
    found = _fitted(ask, mean=None, rho=1.0)
    related_mean, unrelated_mean = (0.4 + 0.6) / 2, (0.1 + 0.2) / 2
    expected = (related_mean - unrelated_mean) / (1 + unrelated_mean)
    assert found.tensors["w"]["q"][0] == pytest.approx(expected)  # type: ignore[index]


def test_rescaled_coefficients_have_the_asked_mean_before_they_are_clipped() -> None:
    paid = _paid([[[0.3, 0.1], [0.2, 0.2]]], [[[0.0, 0.0], [0.0, 0.0]]])
    tensors = {"a": HEADS, "b": FittedMatrix(1, {"q": 2})}
    found = _fitted(Answers(paid), tensors)
    assert found.tensors["a"]["q"] == pytest.approx((1.5, 0.5))  # type: ignore[index]
    assert found.tensors["b"]["q"] == pytest.approx((1.0, 1.0))  # type: ignore[index]
    clipped = _fitted(Answers(paid), tensors, mean=2.0, range=(0.0, 2.5))
    assert clipped.tensors["a"]["q"] == pytest.approx((2.5, 1.0))  # type: ignore[index]


def test_roles_without_query_heads_take_means() -> None:
    """α = (0, 1, 0, 1) over 4 heads in 2 groups: (0.5, 0.5) for keys and values, 0.5 for the rest of the layer."""
    paid = _paid([[[0.0, 0.6, 0.0, 0.6]]], [[[0.0] * 4]])
    tensors = {
        "qkv": FittedMatrix(0, {"q": 4, "k": 2, "v": 2}),
        "o": FittedMatrix(0, {"o": 4}),
        "gate_up": FittedMatrix(0, {"gate": 0, "up": 0}),
    }
    found = _fitted(Answers(paid), tensors, mean=0.5).tensors
    assert found["qkv"] == {"q": (0, 1, 0, 1), "k": (0.5, 0.5), "v": (0.5, 0.5)}
    assert found["o"] == {"o": (0, 1, 0, 1)}
    assert found["gate_up"] == 0.5


def test_the_control_is_the_same_numbers_on_other_heads() -> None:
    paid = _paid([[[0.1, 0.2], [0.3, 0.4]]], [[[0.0] * 2] * 2])
    ask = Answers(paid)
    tensors = {"a": HEADS, "b": FittedMatrix(1, {"q": 2})}
    found = _fitted(ask, tensors, model="into")
    assert [each.kind for each in ask.heard] == ["into"]
    plain, scaled, permuted = ask.asked
    assert plain.table is None
    assert scaled.table == found.tensors

    def numbers(table: Any) -> list[float]:
        return [number for name in table for number in table[name]["q"]]

    assert numbers(permuted.table) != numbers(scaled.table)
    assert sorted(numbers(permuted.table)) == sorted(numbers(scaled.table))
    assert (found.facts["nll_unscaled"], found.facts["nll_scaled"], found.facts["nll_permuted"]) == (2.0, 1.0, 3.0)
    assert not found.warnings
    assert "the control is as good" in _fitted(Answers(paid, (2.0, 1.0, 0.9)), tensors).warnings[0]


def test_no_unrelated_text_subtracts_nothing_and_warns() -> None:
    found = _fitted(Answers(_paid([[[0.3, 0.1]]], [[[0.0, 0.0]]], [(1, 1, 0)])), mean=None)
    assert found.tensors["w"]["q"] == pytest.approx((0.3, 0.1))  # type: ignore[index]
    assert "nothing is subtracted" in found.warnings[0]


@pytest.mark.parametrize(
    ("related", "counts", "tensors", "message"),
    [
        ([[[0.0, 0.0]]], [(1, 1, 1)], None, "every coefficient would be 0"),
        ([[[0.3, 0.1]]], [(0, 1, 1)], None, "no row has a token that instructs"),
        ([[[0.3, 0.1]]], [(1, 1, 1)], {"x": FittedMatrix(0, {"other": 0})}, "tensor 'x': what its rows mean"),
        ([[[0.3, 0.1]]], [(1, 1, 1)], {"x": FittedMatrix(0, {"q": 0})}, "its part q has no heads"),
        ([[[0.3, 0.1]]], [(1, 1, 1)], {"x": FittedMatrix(0, {"o": 4})}, "its part o has 4 heads"),
    ],
)
def test_what_attention_says_nothing_about_is_refused(
    related: Any, counts: Any, tensors: dict[str, FittedMatrix] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _fitted(Answers(_paid(related, [[[0.0, 0.0]]], counts)), tensors)


def test_losses_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="nll_scaled is nan"):
        _fitted(Answers(_paid([[[0.3, 0.1]]], [[[0.0, 0.0]]]), (1.0, float("nan"), 1.0)))


@pytest.mark.parametrize("options", [{"range": (1.0, 0.5)}, {"range": (-1.0, 1.0)}, {"rho": -0.1}, {"mean": 0.0}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AttentionScale(**options)


def test_coefficients_of_heads_survive_their_file() -> None:
    paid: Tensor = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ask = Answers(AttentionPaid(paid, paid / 3, (2, 2), (3, 1), (1, 2)))
    found = _fitted(ask, {"a": FittedMatrix(2, {"q": 4, "k": 2, "v": 1}), "b": FittedMatrix(1, {"down": 0})})
    assert Coefficients.from_json(found.to_json(), where="here") == found
