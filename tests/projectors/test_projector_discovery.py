"""Projectors are found by being there: built-in modules, and entry points that are checked by name."""

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from types import SimpleNamespace

import pytest

from vecsurgery.errors import InputError
from vecsurgery.projectors import Projector, _discovery, available, builtin


def _register(monkeypatch: pytest.MonkeyPatch, value: str, loaded: object) -> None:
    class Entry(EntryPoint):
        dist = SimpleNamespace(name="some-plugin")

        def load(self) -> object:
            if isinstance(loaded, Exception):
                raise loaded
            return loaded

    points = EntryPoints([Entry("extra", value, "vecsurgery.steps")])
    monkeypatch.setattr(_discovery, "entry_points", lambda *, group: points.select(group=group))


def test_the_built_in_projectors_are_found_under_their_names() -> None:
    found = builtin()
    assert {"retain_energy", "null_space"} <= set(found)
    assert all(projector.name == name for name, projector in found.items())
    assert found["null_space"].unprotected_warning
    assert not found["retain_energy"].joint


def test_every_option_is_described_in_a_sentence_and_geometry_is_marked_as_a_reference() -> None:
    for projector in builtin().values():
        for name, field in projector.options.model_fields.items():
            assert field.description, name
            assert field.description.endswith(".")
        assert projector.options.model_fields["geometry"].json_schema_extra == {"reference": "geometry"}
        assert projector.options.model_config["extra"] == "forbid"


def test_an_entry_point_adds_a_projector(monkeypatch: pytest.MonkeyPatch) -> None:
    base = builtin()["retain_energy"]
    _register(monkeypatch, "plugin:PROJECTOR", Projector("mine", base.options, base.function))
    assert set(available()) == {*builtin(), "mine"}


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        (builtin()["null_space"], "'null_space': vecsurgery and some-plugin"),
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


def test_listing_the_projectors_does_not_import_torch() -> None:
    code = "import sys; from vecsurgery.projectors import available; available(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
