"""amplify finds the first factor that forgets enough: against a dense scan, in two passes at most."""

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vecsurgery.errors import InputError
from vecsurgery.fits import AnswerLosses, Candidate, Coefficients
from vecsurgery.fits.amplify import FIT, Amplify

INTO, RAW = 0.4, 6.0


class Model:
    """Answers for candidates by formulas, and counts the passes."""

    def __init__(self, capped: Callable[[float], float], *, into: float = INTO, raw: float = RAW) -> None:
        self.capped, self.into, self.raw = capped, into, raw
        self.asked: list[list[Candidate]] = []

    def __call__(self, candidates: Sequence[Candidate]) -> list[AnswerLosses]:
        self.asked.append(list(candidates))
        return [self._losses(candidate) for candidate in candidates]

    def _losses(self, candidate: Candidate) -> AnswerLosses:
        capped = {"into": self.into, "raw": self.raw, "reference": 3.5}.get(candidate.kind)
        capped = self.capped(candidate.factor) if capped is None else capped
        return AnswerLosses(capped, 2.0 * capped, math.exp(-capped), (capped,))


def _fit(model: Model, *, norm_ratio: float = 0.5, **options: object) -> Coefficients:
    return FIT.function(
        model,
        step="amplify",
        delta="unlearning",
        tensors=("b", "a"),
        facts={"norm_ratio": norm_ratio},
        options=Amplify(**options),
    )


def _scanned(capped: Callable[[float], float], target: float, low: float = 1.0, high: float = 8.0) -> float:
    """The first of 20,001 log-spaced factors at which the target is met."""
    grid = (low * (high / low) ** (index / 20_000) for index in range(20_001))
    return next(factor for factor in grid if capped(factor) >= target)


def _saturating(centre: float, width: float) -> Callable[[float], float]:
    """A loss that rises from near that of `into` to a plateau at 8 nats."""
    return lambda factor: INTO + (8.0 - INTO) / (1.0 + math.exp(-(math.log(factor) - centre) / width))


@settings(max_examples=40, deadline=None)
@given(st.floats(0.2, 1.6), st.floats(0.15, 0.8), st.floats(0.3, 1.0))
def test_the_factor_is_that_of_a_dense_scan(centre: float, width: float, share: float) -> None:
    capped = _saturating(centre, width)
    target = INTO + share * (RAW - INTO)
    assume(capped(8.0) > target)
    found = _fit(model := Model(capped), share=share)
    assert found.facts["factor"] == pytest.approx(_scanned(capped, target), rel=1e-3)
    assert found.facts["target"] == pytest.approx(target)
    assert found.facts["share"] == pytest.approx(max(share, (capped(1.0) - INTO) / (RAW - INTO)), abs=1e-9)
    assert found.tensors == {"a": found.facts["factor"], "b": found.facts["factor"]}
    assert found.facts["asks"] == len(model.asked) <= 2


@settings(max_examples=30, deadline=None)
@given(st.floats(0.3, 2.0), st.floats(0.2, 1.0))
def test_of_several_crossings_the_first_is_taken(peak: float, width: float) -> None:
    """Gradient ascent does this: far out the model repeats itself and the loss falls again."""

    def hill(factor: float) -> float:
        return INTO + 7.0 * math.exp(-(((math.log(factor) - peak) / width) ** 2) / 2)

    expected = _scanned(hill, INTO + 0.9 * (RAW - INTO))
    found = _fit(Model(hill))
    assert found.facts["factor"] == pytest.approx(expected, rel=1e-3)
    assert not any("not reached" in warning for warning in found.warnings)


def test_a_dip_inside_the_bracket_does_not_move_the_first_crossing() -> None:
    def wavy(factor: float) -> float:
        return 5.44 + math.sin(40 * (math.log(factor) - 0.1)) * 0.1 + 4 * (math.log(factor) - 0.6)

    found = _fit(Model(wavy), loss=5.44)
    assert wavy(found.facts["factor"]) == pytest.approx(5.44, abs=2e-2)
    assert all(point.capped < 5.44 for point in found.curve if point.factor < found.facts["factor"])


def test_the_first_pass_asks_everything_and_the_second_only_inside_the_bracket() -> None:
    found = _fit(model := Model(lambda factor: 0.9 * factor))
    first, second = model.asked
    assert [candidate.kind for candidate in first] == ["into", "raw"] + ["edited"] * 9
    factors = [candidate.factor for candidate in first[2:]]
    assert (factors[0], factors[-1]) == (1.0, 8.0)
    ratios = [high / low for low, high in itertools.pairwise(factors)]
    assert ratios == pytest.approx([8 ** (1 / 8)] * 8)
    assert [candidate.kind for candidate in second] == ["edited"] * 9
    bracket = [factor for factor in factors if 0.9 * factor < found.facts["target"]][-1]
    assert all(bracket < candidate.factor < bracket * 8 ** (1 / 8) for candidate in second)
    assert [point.factor for point in found.curve] == sorted({*factors, *(each.factor for each in second)})
    assert all(point.nll == 2 * point.capped for point in found.curve)


def test_met_at_the_least_factor_needs_one_pass_and_changes_nothing() -> None:
    found = _fit(model := Model(lambda factor: 5.8 + 0.01 * factor))
    assert (found.facts["factor"], found.facts["asks"], len(model.asked)) == (1.0, 1.0, 1)
    assert found.facts["reached"] == pytest.approx(5.81)
    assert len(found.curve) == 9
    assert not found.warnings


def test_a_target_out_of_reach_takes_the_best_factor_with_a_warning() -> None:
    found = _fit(model := Model(lambda factor: 4.0 - (math.log(factor) - math.log(8) / 2) ** 2))
    assert found.facts["factor"] == pytest.approx(8**0.5)
    assert (found.facts["reached"], found.facts["asks"], len(model.asked)) == (pytest.approx(4.0), 1.0, 1)
    assert found.facts["share"] == pytest.approx((4.0 - INTO) / (RAW - INTO))
    (warning,) = found.warnings
    assert "is not reached by any factor of 1 to 8" in warning
    assert "capped answer loss 5.44" in warning


@pytest.mark.parametrize(
    ("options", "target", "reached"),
    [
        ({"loss": 2.5}, 2.5, 2.5),
        ({"reference": "retrained"}, 3.5, 3.5),
        ({"probability": 0.1}, 0.1, -math.log(0.1)),
        ({}, INTO + 0.9 * (RAW - INTO), INTO + 0.9 * (RAW - INTO)),
    ],
)
def test_every_kind_of_target_is_reached(options: dict[str, object], target: float, reached: float) -> None:
    capped = _saturating(0.8, 0.3)
    found = _fit(model := Model(capped), **options)
    assert found.facts["target"] == pytest.approx(target)
    assert found.facts["reached"] == pytest.approx(target)
    assert found.facts["factor"] == pytest.approx(_scanned(capped, reached), rel=1e-3)
    assert found.facts["share"] == pytest.approx((reached - INTO) / (RAW - INTO), abs=1e-3)
    assert ("reference" in [each.kind for each in model.asked[0]]) == ("reference" in options)
    if "probability" in options:
        assert found.facts["into"] == pytest.approx(math.exp(-INTO))
        assert found.facts["raw"] == pytest.approx(math.exp(-RAW))
    else:
        assert (found.facts["into"], found.facts["raw"]) == (INTO, RAW)


def test_a_probability_that_is_never_reached_names_it() -> None:
    found = _fit(Model(lambda factor: 0.1 * factor), probability=0.05)
    assert found.facts["factor"] == 8.0
    assert "answer probability 0.05" in found.warnings[0]


def test_another_range_is_kept_to() -> None:
    capped = _saturating(-0.3, 0.3)
    found = _fit(Model(capped), range=(0.25, 2.0), loss=3.0)
    assert found.facts["factor"] == pytest.approx(_scanned(capped, 3.0, 0.25, 2.0), rel=1e-3)


@pytest.mark.parametrize("raw", [INTO, INTO - 0.1])
def test_a_raw_delta_that_forgets_nothing_is_refused(raw: float) -> None:
    with pytest.raises(InputError, match="does not raise the capped answer loss"):
        _fit(Model(lambda factor: factor, raw=raw), loss=1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("place", "named"), [("into", "`into`"), ("raw", "raw delta"), ("edited", "at factor 8")])
def test_losses_that_are_no_numbers_are_refused_by_name(bad: float, place: str, named: str) -> None:
    models = {
        "into": Model(lambda factor: factor, into=bad),
        "raw": Model(lambda factor: factor, raw=bad),
        "edited": Model(lambda factor: factor if factor < 7.9 else bad),
    }
    with pytest.raises(InputError, match=f"{named}.* is {bad}, expected a finite number"):
        _fit(models[place])


def test_a_delta_that_grows_beyond_three_times_its_norm_is_warned_about() -> None:
    found = _fit(Model(lambda factor: factor), norm_ratio=0.8, loss=4.0)
    assert found.facts["norm_growth"] == pytest.approx(3.2, rel=1e-3)
    assert any("3.2 times the norm of the raw delta" in warning for warning in found.warnings)
    assert not _fit(Model(lambda factor: factor), norm_ratio=0.7, loss=4.0).warnings


def test_a_target_that_into_meets_is_warned_about() -> None:
    found = _fit(Model(lambda factor: 2.0 + factor), loss=0.3)
    assert found.facts["factor"] == 1.0
    assert "`into` itself meets the target" in found.warnings[0]


def test_what_is_found_survives_its_file() -> None:
    found = _fit(Model(lambda factor: factor))
    assert Coefficients.from_json(found.to_json(), where="here") == found
    assert (found.step, found.method, found.delta) == ("amplify", "amplify", "unlearning")


def test_answers_that_into_hardly_knew_are_told() -> None:
    model = Model(lambda factor: 4.0 + 0.5 * factor, into=4.0, raw=6.0)
    (warning,) = _fit(model, share=0.5).warnings
    assert "mean token probability of 0.018: it hardly knew them" in warning
    assert _fit(Model(lambda factor: factor), share=0.5).warnings == ()
