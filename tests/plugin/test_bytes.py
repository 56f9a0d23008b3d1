"""vecsurgery-mergekit writes the bytes that a run of the same recipe writes, for every method and storage type."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.results import QUERY, same_bits, tensors_of
from torch import Tensor

from tests.plugin.conftest import Family, merged
from vecsurgery import methods
from vecsurgery.fits import Coefficients
from vecsurgery.projectors import Projector

pytestmark = pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")  # mergekit imports it by its old name
TYPES = ("bfloat16", "float32")
GIVEN = {"drop_rescale": {"density": 0.4, "seed": 3}, "trim": {"density": 0.2}, "low_rank": {"rank": 4}}
FREE = sorted(
    name
    for name, each in methods.builtin().items()
    if isinstance(each, Projector) and "geometry" not in each.options.model_fields
)
"""Projectors without a geometry, whichever there are."""


def _require_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    different = [name for name, tensor in expected.items() if not same_bits(found[name], tensor)]
    assert not different


@pytest.mark.parametrize("dtype", TYPES)
def test_retained_energy_of_two_models_with_weights_and_options_of_their_own(
    families: Callable[[str], Family], dtype: str, tmp_path: Path
) -> None:
    family = families(dtype)
    names = ("one", "two")
    steps = [
        {"project": "retain_energy", "id": name, "delta": name, "geometry": "retain", "keep": keep}
        for name, keep in zip(names, (0.1, 0.4), strict=True)
    ]
    expected = family.run(
        tmp_path / "run",
        deltas={name: {"tuned": str(family.root / name)} for name in names},
        steps=steps,
        weights={"two": 0.7},
    )
    content = family.configuration(
        "vecsurgery_retain_energy",
        *names,
        parameters={"geometry": str(family.root / "geometry.safetensors"), "keep": 0.1},
    )
    content["models"][1]["parameters"] = {"keep": 0.4, "weight": 0.7}
    _require_equal(merged(content, tmp_path / "merged"), expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_null_space_of_a_delta_from_another_base(
    families: Callable[[str], Family], dtype: str, tmp_path: Path
) -> None:
    family = families(dtype)
    expected = family.run(
        tmp_path / "run",
        deltas={"one": {"tuned": str(family.root / "one"), "base": str(family.root / "base")}},
        steps=[{"project": "null_space", "geometry": "retain", "rtol": 0.3}],
    )
    parameters = {
        "geometry": str(family.root / "geometry.safetensors"),
        "base": str(family.root / "base"),
        "rtol": 0.3,
    }
    content = family.configuration("vecsurgery_null_space", parameters=parameters)
    _require_equal(merged(content, tmp_path / "merged"), expected)
    into = tensors_of(family.root / "into")
    assert same_bits(expected["model.norm.weight"], into["model.norm.weight"])
    assert not same_bits(expected[QUERY], into[QUERY])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", FREE)
def test_every_projector_without_a_geometry(
    families: Callable[[str], Family], name: str, dtype: str, tmp_path: Path
) -> None:
    family = families(dtype)
    options: dict[str, Any] = GIVEN.get(name, {})
    names = ("one", "two")
    expected = family.run(
        tmp_path / "run",
        deltas={each: {"tuned": str(family.root / each)} for each in names},
        geometry={},
        steps=[{"project": name, **options}],
    )
    content = family.configuration(f"vecsurgery_{name}", *names, parameters=options)
    _require_equal(merged(content, tmp_path / "merged"), expected)


@pytest.mark.parametrize("named", [{"dtype": "float32"}, {"dtype": "float32", "out_dtype": "float16"}])
def test_one_rounding_to_the_type_that_the_configuration_names(
    families: Callable[[str], Family], named: dict[str, str], tmp_path: Path
) -> None:
    family = families("bfloat16")
    wanted = named.get("out_dtype", "float32")
    expected = family.run(tmp_path / "run", output={"dtype": wanted})
    content = family.configuration(
        "vecsurgery_retain_energy",
        parameters={"geometry": str(family.root / "geometry.safetensors"), "keep": 0.1},
        **named,
    )
    found = merged(content, tmp_path / "merged")
    assert found[QUERY].dtype == getattr(torch, wanted)
    _require_equal(found, expected)


def test_coefficients_of_a_file_multiply_what_the_projector_leaves(
    families: Callable[[str], Family], tmp_path: Path
) -> None:
    family = families("float32")
    heads = {"q": (2.0, 0.5, 1.0, 0.0)}
    found = Coefficients("heads", "attention_scale", "one", {QUERY: heads}, {}, ())
    (tmp_path / "heads.json").write_text(found.to_json())
    content = family.configuration("vecsurgery_trim", parameters={"density": 0.5})
    plain = merged(content, tmp_path / "plain")
    content["parameters"]["coefficients"] = str(tmp_path / "heads.json")
    scaled = merged(content, tmp_path / "scaled")
    into = tensors_of(family.root / "into")
    factors = torch.tensor(heads["q"]).repeat_interleave(8)[:, None]
    torch.testing.assert_close(scaled[QUERY] - into[QUERY], factors * (plain[QUERY] - into[QUERY]), rtol=0, atol=1e-6)
    assert [name for name in into if not same_bits(scaled[name], plain[name])] == [QUERY]


def test_the_method_scale_only_multiplies(families: Callable[[str], Family], tmp_path: Path) -> None:
    family = families("float32")
    found = Coefficients("amplify", "amplify", "one", {QUERY: 3.0}, {}, ())
    (tmp_path / "file.json").write_text(found.to_json())
    parameters = {"coefficients": str(tmp_path / "file.json"), "weight": 0.5}
    scaled = merged(family.configuration("vecsurgery_scale", parameters=parameters), tmp_path / "scaled")
    into, one = (tensors_of(family.root / name) for name in ("into", "one"))
    for name in into:
        factor = 1.5 if name == QUERY else 0.5
        expected = into[name].double() + factor * (one[name].double() - into[name].double())
        torch.testing.assert_close(scaled[name].double(), expected, rtol=0, atol=1e-6)
