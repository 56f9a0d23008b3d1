"""Parts of the data measured apart add up exactly."""

from typing import Any

import pytest
import torch

from vecsurgery.calibration.types import Samples
from vecsurgery.errors import InputError
from vecsurgery.geometry import measure, measure_moments, union


def _together(first: Samples, second: Samples) -> Samples:
    counts = {name: first.counts[name] + second.counts[name] for name in first.counts}
    return Samples(first.samples + second.samples, counts, "both")


@pytest.fixture
def parts(weights, make, tmp_path) -> Any:
    first, second = make(10, seed=1, names="a"), make(14, seed=2, names="b")
    paths = [
        measure_moments(weights, samples, tmp_path / f"part{number}", max_directions=20)
        for number, samples in enumerate((first, second))
    ]
    return first, second, paths


def test_the_union_of_parts_is_the_measurement_of_everything(weights, parts, tmp_path) -> None:
    first, second, paths = parts
    united = union(paths, tmp_path / "united")
    direct = measure(weights, _together(first, second), tmp_path / "direct", max_directions=20)
    assert united.sites == direct.sites
    assert united.info.rows == direct.info.rows
    assert united.info.counts == direct.info.counts
    for site in direct.sites:
        ours, theirs = united.subspace(site), direct.subspace(site)
        assert ours.count == theirs.count
        # Chunks of rows are multiplied in float32, and the chunks of the parts are others.
        assert ours.rest == pytest.approx(theirs.rest, rel=1e-5)
        torch.testing.assert_close(ours.energies, theirs.energies, rtol=1e-5, atol=1e-7 * ours.total)
        forms = [(s.directions.double() * s.energies) @ s.directions.double().T for s in (ours, theirs)]
        torch.testing.assert_close(*forms, rtol=0, atol=1e-6 * ours.total)


def test_the_order_of_parts_does_not_matter(parts, tmp_path) -> None:
    _, _, paths = parts
    union(paths, tmp_path / "a")
    union(paths[::-1], tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_parts_that_share_rows_are_refused_by_name(weights, make, parts, tmp_path) -> None:
    _, _, paths = parts
    overlapping = measure_moments(weights, make(2, seed=1, names="a"), tmp_path / "again", max_directions=20)
    with pytest.raises(InputError, match="share 2 rows"):
        union([*paths, overlapping], tmp_path / "united")


def test_parts_of_another_rule_are_refused(weights, make, parts, tmp_path) -> None:
    _, _, paths = parts
    other = measure_moments(weights, make(2, seed=3, names="c"), tmp_path / "other", max_directions=20, skip_first=0)
    with pytest.raises(InputError, match="skip first"):
        union([*paths, other], tmp_path / "united")


def test_finished_geometries_cannot_be_united(weights, make, tmp_path) -> None:
    measure(weights, make(3), tmp_path / "g")
    with pytest.raises(InputError, match="holds subspaces, expected moments"):
        union([tmp_path / "g"], tmp_path / "united")


def test_an_existing_moments_file_is_not_overwritten(weights, make, tmp_path) -> None:
    measure_moments(weights, make(3), tmp_path / "m")
    with pytest.raises(InputError, match="exists"):
        measure_moments(weights, make(3), tmp_path / "m")
