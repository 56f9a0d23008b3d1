"""Projectors without a geometry, from checkpoint to checkpoint: what is written is what they promise."""

from pathlib import Path

import pytest
import torch
import yaml
from support import models
from support.results import same_bits, tensors_of
from torch import Tensor

import vecsurgery
from vecsurgery.editing import Edited

NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 model and two tuned ones, with the same values as in bfloat16, so that sums are exact."""
    root = tmp_path_factory.mktemp("pair")
    models.checkpoint(root / "into", seed=1, num_hidden_layers=2)
    models.perturbed(root / "into", root / "one", seed=2)
    models.perturbed(root / "into", root / "two", seed=3)
    return root


def _edit(pair: Path, *steps: dict[str, object], **changes: object) -> Edited:
    deltas = {"one": pair / "one", "two": pair / "two"}
    settings: dict[str, object] = {"into": pair / "into", "deltas": deltas, "weights": {"two": 0.0}, "dtype": "float64"}
    return vecsurgery.edit(steps=steps, **{**settings, **changes})  # type: ignore[arg-type]


def _changes(pair: Path, edited: dict[str, Tensor], tuned: str = "one") -> dict[str, tuple[Tensor, Tensor]]:
    """Block matrix → (delta as loaded, delta as written), in float64."""
    into, other = tensors_of(pair / "into"), tensors_of(pair / tuned)
    return {
        name: (other[name].double() - into[name].double(), edited[name].double() - into[name].double())
        for name in into
        if name.endswith("proj.weight")
    }


def test_a_trimmed_delta_has_the_largest_tenth_of_each_matrix(pair: Path) -> None:
    for raw, written in _changes(pair, _edit(pair, {"project": "trim", "density": 0.1}).state_dict()).values():
        count = int(0.1 * raw.numel())
        border = raw.float().abs().flatten().sort(descending=True).values[count - 1]
        expected = torch.where(raw.float().abs() >= border, raw, 0.0)
        torch.testing.assert_close(written, expected, rtol=0, atol=1e-7)
        assert int((written != 0).sum()) == count


def test_a_cut_delta_is_the_best_of_its_rank_in_each_matrix(pair: Path) -> None:
    for raw, written in _changes(pair, _edit(pair, {"project": "low_rank", "rank": 3}).state_dict()).values():
        left, values, right = torch.linalg.svd(raw, full_matrices=False)
        torch.testing.assert_close(written, left[:, :3] * values[:3] @ right[:3], rtol=0, atol=1e-6)


def test_every_matrix_and_every_delta_is_dropped_by_its_own_chance(pair: Path) -> None:
    step = {"project": "drop_rescale", "density": 0.5}
    one = _changes(pair, _edit(pair, step).state_dict())
    two = _changes(pair, _edit(pair, step, weights={"one": 0.0}).state_dict(), "two")
    for changes in (one, two):
        for raw, written in changes.values():
            torch.testing.assert_close(written, torch.where(written != 0, 2 * raw, 0.0), rtol=0, atol=1e-6)
    masks = [written != 0 for changes in (one, two) for _, written in changes.values()]
    square = [mask for mask in masks if mask.shape == (32, 32)]
    assert len(square) == 8
    agreement = [float((a == b).double().mean()) for i, a in enumerate(square) for b in square[:i]]
    assert all(0.4 < share < 0.6 for share in agreement)


def test_two_steps_of_one_seed_drop_independently(pair: Path) -> None:
    steps = [{"project": "drop_rescale", "density": 0.5, "id": name} for name in ("first", "second")]
    changes = _changes(pair, _edit(pair, *steps).state_dict())
    kept = torch.cat([(written != 0).flatten() for _, written in changes.values()])
    assert float(kept.double().mean()) == pytest.approx(0.25, abs=0.02)


def test_what_is_no_block_matrix_follows_others(pair: Path) -> None:
    into, tuned = tensors_of(pair / "into"), tensors_of(pair / "one")
    kept, dropped = (
        _edit(pair, {"project": "trim", "density": 0.1, "others": treatment}, dtype="stored").read(NORM)
        for treatment in ("source", "drop")
    )
    assert same_bits(kept, tuned[NORM])
    assert same_bits(dropped, into[NORM])


def test_a_run_with_all_three_writes_the_bytes_that_other_threads_compute(pair: Path, tmp_path: Path) -> None:
    steps = [
        {"project": "drop_rescale", "delta": "one", "density": 0.3, "seed": 5},
        {"project": "low_rank", "delta": "two", "energy": 0.5},
        {"project": "trim", "delta": "two", "density": 0.2},
    ]
    deltas = {name: {"tuned": str(pair / name)} for name in ("one", "two")}
    recipe = tmp_path / "recipe.yaml"
    content = {"into": str(pair / "into"), "deltas": deltas, "steps": steps, "weights": {"two": 0.0}, "gates": []}
    recipe.write_text(yaml.safe_dump(content))
    record = vecsurgery.run(recipe, tmp_path / "out")
    done = record["matrices"][0]["steps"]
    norms = {"norm", "norm_ratio", "energy_removed"}
    assert [set(step["facts"]) - norms for step in done] == [{"kept"}, {"rank"}, {"kept"}]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = _edit(pair, *steps, dtype="stored").state_dict()
    finally:
        torch.set_num_threads(threads)
    written = tensors_of(tmp_path / "out")
    assert all(same_bits(again[name], tensor) for name, tensor in written.items())
