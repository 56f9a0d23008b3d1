"""A measurement is the spectral form of the second moment, whatever interrupts it."""

import dataclasses
import shutil
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vecsurgery import linalg
from vecsurgery.errors import InputError
from vecsurgery.forward import replay
from vecsurgery.geometry import Geometry, measure
from vecsurgery.geometry.container import journal_of, open_layered, partial_of
from vecsurgery.recipe.types import Around, Between


class InterruptionError(Exception):
    """An interruption."""


def inputs(weights: Any, samples: Any) -> dict[str, Tensor]:
    rows: dict[str, list[Tensor]] = defaultdict(list)
    replay(weights, samples, sites=list(weights.layout.sites), observe=lambda site, values: rows[site].append(values))
    return {site: torch.cat(values).double() for site, values in rows.items()}


@pytest.mark.parametrize("count", [3, 20])
def test_a_geometry_is_the_spectral_form_of_the_second_moment(weights, make, tmp_path, count) -> None:
    samples = make(count)
    geometry = measure(weights, samples, tmp_path / "retain.safetensors")
    assert geometry.sites == tuple(weights.layout.sites)
    for site, rows in inputs(weights, samples).items():
        moment = rows.T @ rows / len(rows)
        subspace = geometry.subspace(site)
        rebuilt = subspace.directions.double() @ subspace.energies.diag() @ subspace.directions.double().T
        scale = float(moment.diagonal().sum())
        torch.testing.assert_close(rebuilt, moment, rtol=0, atol=1e-6 * scale)
        assert subspace.total == pytest.approx(scale, rel=1e-6)
        assert subspace.count == samples.positions
        assert (subspace.directions.dtype, subspace.energies.dtype) == (torch.float32, torch.float64)


def test_directions_beyond_the_limit_become_the_rest(weights, make, tmp_path) -> None:
    samples = make(20)
    geometry = measure(weights, samples, tmp_path / "few.safetensors", max_directions=5)
    for site, rows in inputs(weights, samples).items():
        subspace = geometry.subspace(site)
        assert subspace.rank == 5
        assert subspace.total == pytest.approx(float(rows.square().sum() / len(rows)), rel=1e-6)
        assert subspace.rest > 0


def test_the_file_is_a_plain_safetensors_file_with_every_fact(weights, make, tmp_path) -> None:
    samples = make(4)
    rule = Between("<think>", "</think>")
    path = tmp_path / "new" / "think.safetensors"
    geometry = measure(weights, samples, path, model="org/model", tokens=rule, skip_first=2)
    assert set(load_file(path)) == {
        f"{site}.{what}" for site in weights.layout.sites for what in ("directions", "energies")
    }
    info = geometry.info
    assert (info.model, info.model_fingerprint, info.data_fingerprint) == (
        "org/model",
        weights.fingerprint,
        samples.fingerprint,
    )
    assert (info.tokens, info.skip_first, info.max_directions) == ({"between": ["<think>", "</think>"]}, 2, 1024)
    assert info.counts == samples.counts
    assert info.rows == ("row0", "row1", "row2", "row3")
    for site in weights.layout.sites.values():
        assert all(geometry.site_of(tensor) == site.name for tensor in site.tensors)
    q = geometry.facts["model.layers.0.self_attn.q_proj"]["tensors"]["model.layers.0.self_attn.q_proj.weight"]
    assert q["transposed"] is False
    assert q["parts"][0]["role"] == "q"
    assert geometry.site_of("lm_head.weight") is None
    assert not partial_of(path).exists()
    assert not journal_of(path).exists()


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_an_interrupted_measurement_resumes_to_the_same_bytes(weights, make, tmp_path, layer) -> None:
    samples, whole, broken = make(6), tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    measure(weights, samples, whole)

    def interrupt(_stage: str, done: float, _total: float, _unit: str) -> None:
        if done > layer + 0.5:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        measure(weights, samples, broken, progress=interrupt)
    assert not broken.exists()
    size = partial_of(broken).stat().st_size
    again = measure(weights, samples, broken)
    assert broken.read_bytes() == whole.read_bytes()
    assert again.sites == tuple(weights.layout.sites)
    assert size <= broken.stat().st_size


def test_finished_layers_are_not_measured_again(weights, make, tmp_path, monkeypatch) -> None:
    samples, path = make(7), tmp_path / "part.safetensors"

    def interrupt(_stage: str, done: float, _total: float, _unit: str) -> None:
        if done > 2:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        measure(weights, samples, path, progress=interrupt)
    measured: list[str] = []
    own = linalg.Moment.add

    def add(self: Any, rows: Tensor) -> None:
        measured.append("rows")
        own(self, rows)

    monkeypatch.setattr(linalg.Moment, "add", add)
    measure(weights, samples, path)
    assert len(measured) == 4


def test_torn_data_and_a_torn_journal_line_are_written_again(weights, make, tmp_path) -> None:
    samples, whole, path = make(6), tmp_path / "whole.safetensors", tmp_path / "torn.safetensors"
    measure(weights, samples, whole)

    def interrupt(_stage: str, done: float, _total: float, _unit: str) -> None:
        if done > 2:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        measure(weights, samples, path, progress=interrupt)
    partial, journal = partial_of(path), journal_of(path)
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path, kept)
    with journal.open("ab") as file:
        file.write(b'{"layer": 2, "tens')
    with partial.open("ab") as file:
        file.write(b"half of a layer")
    measure(weights, samples, path)
    assert path.read_bytes() == whole.read_bytes()
    damaged = kept / "torn.safetensors"
    with partial_of(damaged).open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"???")
    measure(weights, samples, damaged)
    assert damaged.read_bytes() == whole.read_bytes()


def test_a_complete_measurement_is_not_made_again(weights, make, tmp_path) -> None:
    path = tmp_path / "done.safetensors"
    measure(weights, make(4), path)
    before = path.stat()
    told: list[Any] = []
    measure(weights, make(4), path, progress=lambda *news: told.append(news))
    assert path.stat() == before
    assert told == []


def test_another_measurement_is_never_overwritten(weights, make, tmp_path) -> None:
    path = tmp_path / "done.safetensors"
    measure(weights, make(4), path)
    with pytest.raises(InputError, match="data fingerprint"):
        measure(weights, make(5), path)
    with pytest.raises(InputError, match="max directions"):
        measure(weights, make(4), path, max_directions=3)


def test_an_interrupted_file_of_another_measurement_is_refused(weights, make, tmp_path) -> None:
    path = tmp_path / "g.safetensors"

    def interrupt(*_news: Any) -> None:
        raise InterruptionError

    with pytest.raises(InterruptionError):
        measure(weights, make(4), path, progress=interrupt)
    with pytest.raises(InputError, match="begun for something else"):
        measure(weights, make(5), path)


def test_two_writers_of_one_file_are_refused(tmp_path) -> None:
    options: dict[str, Any] = {"identity": {}, "metadata": {}, "tensors": {}}
    with (
        open_layered(tmp_path / "g", **options),
        pytest.raises(InputError, match="another process"),
        open_layered(tmp_path / "g", **options),
    ):
        pass


def test_without_positions_every_site_has_rank_zero(weights, make, tmp_path) -> None:
    samples = make(3)
    empty = dataclasses.replace(
        samples, samples=tuple(dataclasses.replace(sample, positions=()) for sample in samples.samples)
    )
    geometry = measure(weights, empty, tmp_path / "none.safetensors")
    assert {geometry.subspace(site).rank for site in geometry.sites} == {0}
    assert {geometry.subspace(site).total for site in geometry.sites} == {0.0}


def test_only_the_wanted_sites_are_measured(weights, make, tmp_path) -> None:
    wanted = [site.name for site in weights.layout.sites.values() if site.layer == 1][:2]
    geometry = measure(weights, make(3), tmp_path / "two.safetensors", sites=wanted)
    assert geometry.sites == tuple(wanted)
    with pytest.raises(InputError, match="nowhere"):
        measure(weights, make(3), tmp_path / "three.safetensors", sites=["nowhere"])


def test_the_same_samples_give_the_same_bytes(weights, make, tmp_path) -> None:
    for name in ("a", "b"):
        measure(weights, make(5), tmp_path / name, tokens=Around(("<think>",), before=1, after=2))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_differences_of_two_measurements_are_all_named(weights, make, tmp_path) -> None:
    info = measure(weights, make(3), tmp_path / "g.safetensors").info
    assert info.differences(model_fingerprint=weights.fingerprint, tokens="all", data_fingerprint=None) == []
    first, second = info.differences(model_fingerprint="other", skip_first=0)
    assert first == f"model fingerprint: the geometry has '{weights.fingerprint}', expected 'other'"
    assert second == "skip first: the geometry has 1, expected 0"


def test_a_geometry_of_other_weights_is_refused_with_both_named(weights, make, tmp_path) -> None:
    geometry = measure(weights, make(3), tmp_path / "g.safetensors")
    geometry.require_model(weights, "measure it again")
    other = types.SimpleNamespace(fingerprint="0123456789abcdef", folder=tmp_path / "other")
    with pytest.raises(
        InputError, match=r"was measured on .*, not on \S*other \(fingerprint 0123456789ab\).*measure it again"
    ):
        geometry.require_model(other, "measure it again")


def test_files_that_are_no_geometry_are_refused(weights, make, tmp_path, folder) -> None:
    with pytest.raises(InputError, match="not a geometry file"):
        Geometry.open(folder / "model.safetensors")
    with pytest.raises(InputError, match="cannot be opened"):
        Geometry.open(tmp_path / "missing.safetensors")
    good = Path(measure(weights, make(3), tmp_path / "g.safetensors").path)
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cut\.safetensors"):
        Geometry.open(tmp_path / "cut.safetensors")


def test_damaged_energies_are_an_error(weights, make, tmp_path) -> None:
    path = tmp_path / "g.safetensors"
    geometry = measure(weights, make(3), path)
    site = geometry.sites[0]
    data = path.read_bytes()
    energies = geometry.subspace(site).energies
    place = data.index(energies.numpy().tobytes())
    path.write_bytes(data[:place] + torch.flip(energies, [0]).numpy().tobytes() + data[place + 8 * len(energies) :])
    with pytest.raises(InputError, match="damaged"):
        Geometry.open(path).subspace(site)
    with pytest.raises(InputError, match="was not measured"):
        Geometry.open(path).subspace("nowhere")
