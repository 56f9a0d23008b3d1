"""Options of amplify: one target, a range in order."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from vecsurgery.fits.amplify import Amplify


def _options(**values: Any) -> Amplify:
    """As a recipe gives them."""
    return Amplify.model_validate_json(json.dumps(values), strict=True)


def test_the_target_is_nine_tenths_of_the_raw_forgetting_unless_said_otherwise() -> None:
    assert _options().share == 0.9
    assert _options().range == (1.0, 8.0)
    assert _options(loss=2).share is None
    assert _options(reference="org/retrained").share is None


@pytest.mark.parametrize(
    "values",
    [
        {"share": 0.9, "loss": 2.0},
        {"probability": 0.1, "reference": "org/model"},
        {"share": 0.0},
        {"share": 1.1},
        {"loss": 0.0},
        {"probability": 1.0},
        {"range": [1, 1]},
        {"range": [0, 8]},
        {"range": [1]},
        {"range": [1, 2, 3]},
        {"range": ["1", "8"]},
        {"shares": 0.9},
    ],
)
def test_options_that_contradict_themselves_or_leave_their_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        _options(**values)


def test_written_options_are_read_back_as_the_same() -> None:
    for options in (_options(), _options(loss=1.5, range=[1, 3])):
        assert _options(**options.model_dump(mode="json")) == options
