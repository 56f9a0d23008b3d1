"""Streamed figures equal those of a plain transformers forward, TOFU's those of its own formulas in numpy and scipy."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from support import models
from transformers import AutoModelForCausalLM, AutoTokenizer

from vecsurgery.calibration import load_tokenizer, other_answers, prepare, rows_of
from vecsurgery.calibration.types import Sample, Samples
from vecsurgery.checkpoint import InMemory, Stored
from vecsurgery.errors import InputError
from vecsurgery.evaluation import Source, forget_quality, measure_answers, measure_sources, measure_variants
from vecsurgery.forward import Single
from vecsurgery.recipe import DataSpec


class Plain:
    """transformers' own forward over text that was put together by hand."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def logits(self, prompt: str, answer: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits before each answer token, answer ids)"""
        before = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = before + self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        opening = [self.tokenizer.bos_token_id] if self.tokenizer("w9")["input_ids"][0] == 1 else []
        ids = opening + ids
        start = len(opening) + len(before)
        with torch.no_grad():
            every = self.model(input_ids=torch.tensor([ids])).logits[0].double()
        return every[start - 1 : -1], torch.tensor(ids[start:])

    def losses(self, question: str, answer: str) -> np.ndarray[Any, Any]:
        logits, ids = self.logits(f"Question: {question}\nAnswer:", f" {answer}")
        return -logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0].numpy()


@pytest.fixture
def plain(folder: Path) -> Plain:
    return Plain(folder)


def _source(folder: Path, path: Path, **options: Any) -> Source:
    spec, tokenizer = DataSpec((path,), **options), load_tokenizer(folder)
    samples = prepare(spec, tokenizer)
    return Source(samples, other_answers(rows_of(spec, samples), spec, tokenizer))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answer_measures_equal_a_plain_forward(folder, tofu, plain) -> None:
    path = tofu(6)
    measured = measure_answers(Stored(folder), _source(folder, path).samples)
    losses = [plain.losses(row["question"], row["answer"]) for row in _rows(path)]
    cap = math.log(models.VOCABULARY)
    assert measured["nll"] == pytest.approx(np.mean([each.mean() for each in losses]), abs=1e-5)
    assert measured["capped_loss"] == pytest.approx(np.mean([each.clip(max=cap).mean() for each in losses]), abs=1e-5)
    assert measured["token_probability"] == pytest.approx(np.mean([np.exp(-each).mean() for each in losses]), abs=1e-6)
    assert measured["row_probability"] == pytest.approx(np.mean([np.exp(-each.mean()) for each in losses]), abs=1e-6)
    assert (measured.rows, measured.tokens) == (6, sum(map(len, losses)))
    for number, entry in enumerate(measured.figures["row_probability"].by_index.values()):
        assert entry["avg_loss"] == pytest.approx(losses[number].mean(), abs=1e-5)
        assert entry["prob"] == pytest.approx(math.exp(-losses[number].mean()), abs=1e-6)


def test_accuracy_counts_tokens_that_greedy_decoding_would_choose(folder, tofu, plain, tmp_path) -> None:
    rows = _rows(tofu(4, plain=True))
    for row in rows[:2]:  # rows whose answer is what the model itself would say, but for its last word
        answer = ""
        for _ in range(3):
            logits, _ids = plain.logits(f"Question: {row['question']}\nAnswer:{answer}", " w9")
            answer += f" {plain.tokenizer.convert_ids_to_tokens(int(logits[0].argmax()))}"
        row["answer"] = f"{answer.strip()} {row['answer'].split()[0]}"
    path = tmp_path / "greedy.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    measured = measure_answers(Stored(folder), _source(folder, path).samples)
    expected = []
    for row in rows:
        logits, ids = plain.logits(f"Question: {row['question']}\nAnswer:", f" {row['answer']}")
        expected.append((logits.argmax(-1) == ids).double().mean().item())
    assert measured.figures["accuracy"].per_row == pytest.approx(expected)
    assert min(expected[:2]) >= 0.75


def test_perplexity_is_the_exponential_of_the_mean_over_all_predicted_tokens(folder, plain, tmp_path) -> None:
    path = models.write_texts(tmp_path / "texts.jsonl", 3, seed=8)
    path.write_text(path.read_text() + json.dumps({"text": "w10 w11 w12"}) + "\n")
    measured = measure_answers(Stored(folder), _source(folder, path).samples)
    losses = []
    for row in _rows(path):
        first, rest = row["text"].split(" ", 1)
        logits, ids = plain.logits(first, f" {rest}")
        losses.append(-logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0].numpy())
    assert measured["perplexity"] == pytest.approx(np.exp(np.concatenate(losses).mean()), rel=1e-5)
    assert measured.tokens == sum(map(len, losses)) == 3 * 11 + 2
    assert set(measured.figures) == {"perplexity"}


def _ratios(plain: Plain, rows: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """open-unlearning's truth ratio of each row."""
    right = np.array([plain.losses(row["question"], row["paraphrased_answer"]).mean() for row in rows])
    wrong = np.array([[plain.losses(row["question"], text).mean() for text in row["perturbed_answer"]] for row in rows])
    return np.exp(-wrong.mean(axis=1)) / (np.exp(-right) + 1e-10)


def test_truth_ratio_is_that_of_open_unlearning_for_both_roles(folder, tofu, plain) -> None:
    path = tofu(6)
    expected = _ratios(plain, _rows(path))
    source = _source(folder, path)
    found = measure_sources(Stored(folder), {"forget": source, "retain": source})
    for measured in found.values():
        assert measured.figures["truth_ratio"].per_row == pytest.approx(expected, rel=1e-4)
    forget, retain = np.minimum(expected, 1 / (expected + 1e-10)).mean(), np.maximum(0, 1 - expected).mean()
    assert found["forget"]["truth_ratio"] == pytest.approx(forget, rel=1e-4)
    assert found["retain"]["truth_ratio"] == pytest.approx(retain, rel=1e-4)


def test_without_a_paraphrase_the_rows_own_answer_is_the_right_one(folder, tofu, plain, tmp_path) -> None:
    rows = [{**row, "paraphrased_answer": row["answer"]} for row in _rows(tofu(4))]
    path = tmp_path / "facts.jsonl"
    bare = [{name: value for name, value in row.items() if name != "paraphrased_answer"} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in bare))
    measured = measure_answers(Stored(folder), (source := _source(folder, path)).samples, others=source.others)
    assert measured.figures["truth_ratio"].per_row == pytest.approx(_ratios(plain, rows), rel=1e-4)
    assert "paraphrased_probability" not in measured.figures


def test_the_parts_of_the_truth_ratio_stand_beside_it(folder, tofu, plain) -> None:
    path = tofu(3)
    source = _source(folder, path)
    measured = measure_answers(Stored(folder), source.samples, others=source.others)
    wrong = measured.figures["perturbed_probability"].by_index["1"]
    row = _rows(path)[1]
    expected = [plain.losses(row["question"], text).mean() for text in row["perturbed_answer"]]
    assert wrong["avg_loss"] == pytest.approx(expected, abs=1e-5)
    assert wrong["prob"] == pytest.approx(np.exp(-np.array(expected)), abs=1e-6)
    right = plain.losses(row["question"], row["paraphrased_answer"]).mean()
    assert measured.figures["paraphrased_probability"].by_index["1"]["avg_loss"] == pytest.approx(right, abs=1e-5)


def test_rows_without_wrong_answers_have_no_part_in_the_truth_ratio(folder, tofu, tmp_path) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_text(tofu(2, plain=True, seed=1).read_text() + tofu(2, name="b.jsonl").read_text())
    source = _source(folder, path)
    measured = measure_answers(Stored(folder), source.samples, others=source.others)
    assert set(measured.figures["truth_ratio"].by_index) == {"2", "3"}
    assert set(measured.figures["nll"].by_index) == {"0", "1", "2", "3"}


def test_forget_quality_is_the_ks_test_of_scipy_and_of_inverse_ratios_too() -> None:
    generator = np.random.default_rng(0)
    ours, reference = generator.gamma(2.0, size=40), generator.gamma(2.6, size=55)
    found = forget_quality(list(ours), list(reference))
    assert found == scipy.stats.ks_2samp(ours, reference).pvalue
    assert found == pytest.approx(scipy.stats.ks_2samp(1 / (ours + 1e-10), 1 / (reference + 1e-10)).pvalue)
    assert forget_quality(list(ours), list(ours)) == 1.0
    with pytest.raises(InputError, match="perturbed_answer"):
        forget_quality([], list(reference))


def test_all_sources_and_their_other_answers_are_measured_in_one_pass(folder, tofu) -> None:
    reads: list[str] = []

    class Counted(Stored):
        def read(self, tensor: str, rows: Any = None) -> torch.Tensor:
            reads.append(tensor)
            return super().read(tensor, rows)

    sources = {"forget": _source(folder, tofu(4)), "retain": _source(folder, tofu(3, seed=2, name="retain.jsonl"))}
    together = measure_sources(Counted(folder), sources)
    blocks = [name for name in reads if ".layers." in name]
    assert len(blocks) == len(set(blocks)) > 0
    for name, source in sources.items():
        alone = measure_answers(Stored(folder), source.samples, others=source.others, role=name)
        assert together[name].values() == pytest.approx(alone.values(), abs=1e-6)


def test_variants_have_the_figures_that_each_has_alone(folder, tofu) -> None:
    source = {"forget": _source(folder, tofu(4))}
    (found,) = measure_variants(Single(Stored(folder)), source)
    assert found["forget"].to_dict() == measure_sources(Stored(folder), source)["forget"].to_dict()


def test_rows_whose_answer_was_cut_away_are_left_out_and_are_no_text(folder, tofu) -> None:
    path = tofu(4)
    whole = _source(folder, path)
    begins = whole.samples.samples[0].answer[0]
    with pytest.raises(InputError, match="no token of its 4 samples"):
        measure_answers(Stored(folder), _source(folder, path, max_length=begins).samples)
    cut = measure_answers(Stored(folder), _source(folder, path, max_length=begins + 1).samples)
    assert set(cut.figures) == {"capped_loss", "nll", "token_probability", "row_probability", "accuracy"}
    assert cut.tokens == 4


def test_more_text_than_fits_takes_more_passes_with_the_same_figures(folder, tofu, monkeypatch) -> None:
    source = _source(folder, tofu(5))
    once = measure_answers(Stored(folder), source.samples, others=source.others)
    monkeypatch.setattr("vecsurgery.evaluation.scoring._HIDDEN_BYTES", 4 * 32 * 30)
    again = measure_answers(Stored(folder), source.samples, others=source.others)
    assert again.values() == pytest.approx(once.values(), abs=1e-6)


def test_nothing_to_score_is_an_error(folder) -> None:
    samples = Samples((Sample((9,), (0,), (), "row", "rows.jsonl:1"),), {}, "")
    with pytest.raises(InputError, match="no token of its 1 samples"):
        measure_answers(Stored(folder), samples, role="forget")


def test_logits_that_are_not_finite_are_an_error_that_names_the_row(folder, tofu) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight[40] = 3e38
        model.model.norm.weight.fill_(1e30)
    with pytest.raises(InputError, match=r"forget\.jsonl:1.*not finite"):
        measure_answers(InMemory(model), _source(folder, tofu(2)).samples)


def test_a_figure_without_bound_is_no_number_in_json() -> None:
    from vecsurgery.evaluation import Figure

    assert Figure(math.inf).to_dict() == {"agg_value": None}
