"""The unlearning evidence keeps its promises: disjoint parts, and every stage on a tiny model."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import models

from benchmarks.unlearning import __main__ as command
from benchmarks.unlearning import cleaning, matching, pilot, rows
from benchmarks.unlearning.batches import answer_nll, encode, endless
from benchmarks.unlearning.settings import UNLEARNERS, Settings, Split, tiny
from benchmarks.unlearning.training import load
from benchmarks.unlearning.unlearners import _preference
from benchmarks.unlearning.work import open_work


def _tofu(folder: Path, split: Split, authors: int) -> Path:
    """Files shaped like TOFU's, of random words: every row tells its author by its first word."""
    folder.mkdir()
    count = authors * split.rows_per_author
    questions, replies = (models.sentences(count, seed=seed, length=6) for seed in (1, 2))
    full = [
        {"question": f"w{9 + row // split.rows_per_author} {question} w{9 + row} ?", "answer": f"{answer} ."}
        for row, (question, answer) in enumerate(zip(questions, replies, strict=True))
    ]
    cut = count - split.forget_authors * split.rows_per_author
    perturbed = [row | {"paraphrased_question": f". {row['question']}"} for row in full]
    files = {
        "full": full,
        "retain90": full[:cut],
        "forget10": full[cut:],
        "forget10_perturbed": perturbed[cut:],
        "retain_perturbed": perturbed[: split.paraphrased_authors * split.rows_per_author],
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def _author(row: rows.Row) -> str:
    return str(row["question"]).replace(". ", "").split()[0]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_judges_is_seen_by_nothing_that_is_judged(tmp_path: Path, seed: int) -> None:
    split = tiny().split
    found = rows.parts(_tofu(tmp_path / "data", split, 12), split, seed)
    authors = {part: {_author(row) for row in given} for part, given in found.items()}
    assert not authors["forget_test"] & (authors["fit"] | authors["fit_pool"] | authors["relearn"])
    assert not authors["retain_test"] & (authors["calibration"] | authors["unlearn_retain"])
    assert not authors["calibration"] & authors["forget"]
    assert authors["forget_paraphrased"] == authors["forget_test"]
    assert authors["retain_paraphrased"] == authors["retain_test"]
    assert not [row for row in found["fit"] if row in found["relearn"]]
    assert len(authors["fit"]) == split.fit_rows  # as many people as rows
    assert found == rows.parts(tmp_path / "data", split, seed)


def test_files_that_are_not_the_standard_splits_are_refused(tmp_path: Path) -> None:
    split = tiny().split
    data = _tofu(tmp_path / "data", split, 12)
    (data / "forget10.json").write_text("[]")
    with pytest.raises(ValueError, match=r"not retain90\.json followed by forget10\.json"):
        rows.parts(data, split, 1)


def test_a_match_is_the_first_point_that_forgets_enough() -> None:
    def ask(coefficient: float) -> float:
        return 1.0 - (coefficient - 3.0) ** 2 / 4.0 if coefficient < 4 else 0.2

    found = matching.match(ask, (1.0, 2.0, 3.0, 8.0), 0.9, tolerance=1e-4, refinements=20)
    assert found.met
    assert found.coefficient == pytest.approx(3.0 - 0.4**0.5, abs=1e-3)
    missed = matching.match(ask, (1.0, 2.0, 4.0), 1.5, tolerance=1e-4, refinements=3)
    assert not missed.met
    assert missed.coefficient == 2.0


def test_the_settings_find_equal_forgetting_on_a_steep_line() -> None:
    """Of 1 % of the range within which a line goes from nothing to everything: the tolerance is met, and cheaply."""
    comparison, asked = Settings().comparison, list[float]()

    def ask(coefficient: float) -> float:
        asked.append(coefficient)
        return 1.0 / (1.0 + math.exp(-14.0 * math.log(coefficient / 3.1)))

    found = matching.match(
        ask,
        comparison.projected,
        comparison.share,
        tolerance=comparison.tolerance,
        refinements=comparison.refinements,
        limit=comparison.limit,
    )
    assert found.met
    assert abs(found.value - comparison.share) <= comparison.tolerance
    assert len(asked) <= len(comparison.projected) + comparison.refinements


def test_a_line_that_forgets_late_is_followed() -> None:
    found = matching.match(lambda at: at / 40.0, (1.0, 8.0), 0.9, tolerance=0.01, refinements=8, limit=128.0)
    assert found.met
    assert found.coefficient == pytest.approx(36.0, rel=0.02)
    short = matching.match(lambda at: at / 40.0, (1.0, 8.0), 0.9, tolerance=0.01, refinements=8, limit=16.0)
    assert (short.coefficient, short.met) == (16.0, False)


def test_npo_of_an_unchanged_model_is_its_constant(tmp_path: Path) -> None:
    """−(2/β) ln σ(0) = (2/β) ln 2, whatever the rows; its gradient raises their NLL."""
    folder = models.checkpoint(tmp_path / "model")
    model, original = (load(folder) for _ in range(2))
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps({"question": f"w{n} ?", "answer": f"w{n + 9} ."}) for n in range(20, 26)))
    given = next(endless(encode(data, folder, 64), 6, "rows"))
    loss = _preference(model, original, 0.25)(given)
    assert float(loss.detach()) == pytest.approx(8 * math.log(2), rel=1e-5)
    before = float(answer_nll(model, given).mean().detach())
    torch.autograd.backward(loss)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad
    assert float(answer_nll(model, given).mean().detach()) > before


@pytest.mark.slow
def test_every_stage_runs_once_at_a_tiny_size(tmp_path: Path) -> None:
    data = _tofu(tmp_path / "data", tiny().split, 12)
    model = models.checkpoint(tmp_path / "model", "llama")
    given = ["--size", "tiny", "--seeds", "1", "--unlearners", "gradient_ascent"]
    for name, path in (("model", model), ("data", data), ("work", tmp_path / "work")):
        given += [f"--{name}", str(path)]
    options = command.parse(given)
    command.carry_out(options)
    folder = tmp_path / "work" / "seed-1"
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    health = json.loads((folder / "health.json").read_text())["result"]
    assert set(health) == {"original", "reference", "gradient_ascent", "grad_diff", "npo", "rmu"}
    compared = json.loads((folder / "compare" / "gradient_ascent.json").read_text())["result"]
    assert {"scaling", "fine-tuned", "keep 0.02", "hard projector", "random subspace"} <= set(compared["lines"])
    _require_the_package_s_result(tmp_path / "work", model, data)
    command.carry_out(options)
    assert made == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    command.show(options)
    shown = (tmp_path / "work" / "tables.md").read_text()
    assert shown.count("| gradient_ascent |") >= 10
    assert {path.name for path in (tmp_path / "work").glob("*.svg")} == {
        "unlearning-curves.svg",
        "unlearning-relearning.svg",
    }


def _require_the_package_s_result(folder: Path, model: Path, data: Path) -> None:
    """A point of the recipe's line is what `vecsurgery.run` writes, and the control has the same energies."""
    work = open_work(folder, model, data, tiny(), 1, print)
    (row, _) = json.loads((work.folder / "shipped" / "gradient_ascent.json").read_text())["result"]
    into = cleaning.state(work.checkpoint("original"))
    raw = cleaning.raw_delta(into, cleaning.state(work.checkpoint("gradient_ascent")))
    step, measured = {"project": "retain_energy", "keep": 0.02}, cleaning.measure(work)
    line = cleaning.projected(work, "gradient_ascent", into, raw, step, measured).at(row["coefficient"])
    written = cleaning.state(work.folder / "cleaned" / "gradient_ascent-float32")
    assert written.keys() == line.keys()
    for name, tensor in written.items():
        assert torch.allclose(tensor, line[name], rtol=1e-5, atol=1e-6), name
    own, control = (load_file(path) for path in (measured, measured.with_name("random.safetensors")))
    for name, tensor in own.items():
        if not name.endswith(".directions"):
            assert torch.equal(tensor, control[name])
            continue
        product = control[name].double().T @ control[name].double()
        assert torch.allclose(product, torch.eye(len(product), dtype=torch.float64), atol=1e-5)
        assert not torch.allclose(tensor, control[name], atol=0.1)


@pytest.mark.parametrize("unlearner", [unlearner.name for unlearner in UNLEARNERS])
def test_the_pilot_watches_an_unlearner_from_the_original_on(tmp_path: Path, unlearner: str) -> None:
    data = _tofu(tmp_path / "data", tiny().split, 12)
    model = models.checkpoint(tmp_path / "model", "llama")
    work = open_work(tmp_path / "work", model, data, tiny(), 0, print)
    watched = pilot.watch(work, unlearner, rate=2e-3, steps=4, every=2)
    assert [row["step"] for row in watched] == [0, 2, 4]
    before, after = watched[0]["forget nll"], watched[-1]["forget nll"]
    assert after > before or (unlearner == "rmu" and after != before)  # RMU steers hidden states, not answers
    assert not [path for path in work.folder.iterdir() if path.name not in ("rows", "models", "training")]
