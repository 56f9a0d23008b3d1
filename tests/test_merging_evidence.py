"""The experiment on merged fine-tunes runs from end to end at a tiny size, and its shares mean what they say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import models

from benchmarks.merging import __main__ as experiment
from benchmarks.merging.settings import AVERAGED, METHODS
from benchmarks.merging.tables import gains, tables
from benchmarks.merging.tasks import TASKS, windows
from vecsurgery.calibration import load_tokenizer


def _data(folder: Path) -> Path:
    """Files shaped like the four data sets, of random words."""
    texts = {task: models.sentences(40, seed=seed, length=24) for seed, task in enumerate(TASKS)}
    rows = [{"question": text, "answer": text} for text in texts["authors"]]
    files = {
        "tofu/retain90.json": json.dumps(rows),
        "gsm8k/train.jsonl": "\n".join(json.dumps({"question": text, "answer": "w9"}) for text in texts["sums"]),
        "wikitext2/wiki.test.txt": "\n".join(f" = w{n} = \n\n {text} " for n, text in enumerate(texts["encyclopedia"])),
        "rain_calibration/reasoning_calibration_set.json": json.dumps(
            [{"reasoning": text} for text in texts["thoughts"]]
        ),
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return folder


def test_a_share_is_of_what_the_single_fine_tune_gained() -> None:
    singles = {"base": {"a": 4.0, "b": 3.0}, "a": {"a": 2.0, "b": 5.0}, "b": {"a": 4.0, "b": 1.0}}
    found = gains(singles, {"a": 3.0, "b": 3.5})
    assert found == {"a": 0.5, "b": -0.25, "mean": 0.125}


def test_no_text_is_in_two_parts_and_another_seed_parts_them_otherwise(tmp_path: Path) -> None:
    model = models.checkpoint(tmp_path / "model", "llama")
    data, tokenizer = _data(tmp_path / "data"), load_tokenizer(model)
    whole = replace(experiment.tiny(), choosing=99, test=99, window=8)
    for task, read in TASKS.items():
        assert len(read(data)) == 40
        found, other = (windows(task, data, tokenizer, whole, seed) for seed in (1, 2))
        counts = [len(part) for part in (found.training, found.choosing, found.test)]
        assert counts[0] > counts[2] > counts[1] > 0
        lines = [{tuple(row) for row in part.tolist()} for part in (found.training, found.choosing, found.test)]
        assert not lines[0] & lines[1]
        assert not (lines[0] | lines[1]) & lines[2]
        assert not torch.equal(found.test[0], other.test[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")  # mergekit imports it by its old name
def test_the_experiment_merges_four_fine_tunes_by_every_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "LOWER", (0.5,))
    # as wide as four deltas of rank 36 need
    wide = {
        "hidden_size": 144,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 36,
        "intermediate_size": 144,
    }
    model = models.checkpoint(tmp_path / "model", "llama", num_hidden_layers=1, **wide)
    data = _data(tmp_path / "data")
    given = ["--model", str(model), "--data", str(data), "--work", str(tmp_path / "work")]
    options = experiment.parse([*given, "--size", "tiny", "--seeds", "0"])
    experiment.carry_out(options)
    experiment.show(options.work)
    members, whole, best, lower = tables(options.work).values()
    assert [row["model"] for row in members] == ["base", *TASKS]
    assert (
        [row["method"] for row in whole]
        == [row["method"] for row in best]
        == [method.name for method in (*METHODS, *AVERAGED)]
    )
    chosen = {row["method"]: float(row["weight"]) for row in lower}
    assert min(chosen.values()) < min(float(row["weight"]) for row in best)
    assert set(chosen.values()) <= {1.0, 0.5}
    shares = {row["method"]: [float(row[task]) for task in TASKS] for row in whole}
    assert shares["TSV-M"] != shares["SIFT"] != shares["sum"] != shares["TIES"]
    before = {path: path.stat().st_mtime_ns for path in options.work.rglob("*.json")}
    experiment.carry_out(options)
    assert {path: path.stat().st_mtime_ns for path in options.work.rglob("*.json")} == before
    articles = data / "wikitext2" / "wiki.test.txt"
    articles.write_text(articles.read_text().replace("w9", "w10"))
    with pytest.raises(ValueError, match="other settings, model or data"):
        experiment.carry_out(options)
