"""Divergence of thoughts is that of whole models at the tokens of the thought, and behind it."""

from pathlib import Path

import pytest
import torch
from support import models
from transformers import AutoModelForCausalLM

from vecsurgery.calibration import Sample, asking_rows, load_tokenizer, thoughts
from vecsurgery.checkpoint import Stored
from vecsurgery.evaluation import diverging, think_divergences
from vecsurgery.recipe import DataSpec

_TAGS = ("<think>", "</think>")


@pytest.fixture
def samples(folder: Path, tmp_path: Path) -> list[Sample]:
    path = models.write_thoughts(tmp_path / "thoughts.jsonl", 4)
    spec = DataSpec((path,))
    found = thoughts(asking_rows(spec), spec, load_tokenizer(folder), _TAGS)
    assert len(found) == 4
    return found


@pytest.fixture
def moved(folder: Path, tmp_path: Path) -> Path:
    return models.perturbed(folder, tmp_path / "moved", seed=5, size=0.05)


def _divergences(folder: Path, other: Path, sample: Sample) -> torch.Tensor:
    logs = []
    for each in (folder, other):
        model = AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32).eval()
        with torch.no_grad():
            logs.append(model(input_ids=torch.tensor([sample.ids])).logits[0].double().log_softmax(-1))
    p, q = logs
    return (p.exp() * (p - q)).sum(-1)


def test_both_figures_are_means_over_rows_of_whole_models(folder: Path, moved: Path, samples: list[Sample]) -> None:
    (found,) = think_divergences(Stored(folder), [Stored(moved)], samples, after=3)
    thinking, answering = [], []
    for sample in samples:
        own = _divergences(folder, moved, sample)
        last = sample.positions[-1]
        thinking.append(float(own[list(sample.positions)].mean()))
        answering.append(float(own[last : last + 3].mean()))
    assert found["think_kl"].value == pytest.approx(sum(thinking) / 4, abs=1e-5)
    assert found["answer_kl"].value == pytest.approx(sum(answering) / 4, abs=1e-5)
    assert found["think_kl"].per_row == pytest.approx(thinking, abs=1e-5)
    assert found["answer_kl"].by_index["0"]["tokens"] == 3
    assert found["think_kl"].by_index["0"]["tokens"] == len(samples[0].positions)


def test_the_tokens_behind_the_thought_end_with_the_row(folder: Path, moved: Path, samples: list[Sample]) -> None:
    (found,) = think_divergences(Stored(folder), [Stored(moved)], samples, after=1000)
    sample = samples[0]
    last = sample.positions[-1]
    assert found["answer_kl"].by_index["0"]["tokens"] == len(sample.ids) - 1 - last
    assert set(think_divergences(Stored(folder), [Stored(moved)], samples, after=0)[0]) == {"think_kl"}


def test_text_that_does_not_fit_into_one_pass_has_the_same_figures(
    folder: Path, moved: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    (expected,) = think_divergences(Stored(folder), [Stored(moved)], samples)
    monkeypatch.setattr(diverging, "_STATE_BYTES", 3 * 4 * 32 * 30)
    (found,) = think_divergences(Stored(folder), [Stored(moved)], samples)
    assert found["think_kl"].per_row == pytest.approx(expected["think_kl"].per_row, rel=1e-9)
