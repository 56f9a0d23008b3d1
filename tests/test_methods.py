"""Projectors and fits are found by being there: built-in modules, and entry points that are checked by name."""

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from vecsurgery import methods
from vecsurgery.errors import InputError
from vecsurgery.fits import Coefficients, Fit
from vecsurgery.merges import Merge, Merged
from vecsurgery.methods import available, builtin
from vecsurgery.projectors import Projector


def never_called(ask: Any, **given: Any) -> Coefficients:
    pytest.fail("it is only listed")


def never_merging(deltas: Any, weights: Any, *, options: Any, tensor: Any) -> Merged:
    pytest.fail("it is only listed")


def _register(monkeypatch: pytest.MonkeyPatch, value: str, loaded: object) -> None:
    class Entry(EntryPoint):
        dist = SimpleNamespace(name="some-plugin")

        def load(self) -> object:
            if isinstance(loaded, Exception):
                raise loaded
            return loaded

    points = EntryPoints([Entry("extra", value, "vecsurgery.steps")])
    monkeypatch.setattr(methods, "entry_points", lambda *, group: points.select(group=group))


def test_the_built_in_methods_are_found_under_their_names() -> None:
    found = builtin()
    assert {"retain_energy", "null_space"} <= {name for name, each in found.items() if isinstance(each, Projector)}
    assert all(method.name == name for name, method in found.items())
    assert getattr(found["null_space"], "unprotected_warning", None) is True
    assert getattr(found["retain_energy"], "joint", None) is False


def test_every_option_is_described_in_a_sentence_and_unknown_ones_are_refused() -> None:
    for method in builtin().values():
        for name, field in method.options.model_fields.items():
            assert field.description, name
            assert field.description.endswith(".")
        assert method.options.model_config["extra"] == "forbid"
        geometry = method.options.model_fields.get("geometry")
        if geometry is not None:
            assert geometry.json_schema_extra == {"reference": "geometry"}


def test_an_entry_point_adds_a_projector_a_fit_or_a_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    base = builtin()["retain_energy"]
    assert isinstance(base, Projector)
    _register(monkeypatch, "plugin:PROJECTOR", Projector("mine", base.options, base.function))
    assert set(available()) == {*builtin(), "mine"}
    fit = Fit("mine", base.options, never_called)
    _register(monkeypatch, "plugin:FIT", fit)
    assert available()["mine"] is fit
    merge = Merge("mine", base.options, never_merging)
    _register(monkeypatch, "plugin:MERGE", merge)
    assert available()["mine"] is merge


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        (builtin()["null_space"], "'null_space': vecsurgery and some-plugin"),
        (Fit("null_space", BaseModel, never_called), "'null_space': vecsurgery and some-"),
        (object(), "some-plugin is of type object"),
        (ImportError("no module named plugin"), "some-plugin cannot be imported: no module named plugin"),
    ],
)
def test_a_bad_entry_point_is_refused_by_the_name_of_its_distribution(
    monkeypatch: pytest.MonkeyPatch, loaded: object, message: str
) -> None:
    _register(monkeypatch, "plugin:PROJECTOR", loaded)
    with pytest.raises(InputError, match=message):
        available()


def test_listing_the_methods_does_not_import_torch() -> None:
    code = "import sys; from vecsurgery.methods import available; available(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
