"""The experiment on merged reasoning models runs from end to end at a tiny size, and chooses as it says."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks._controls import random_geometry
from benchmarks.reasoning import __main__ as experiment
from benchmarks.reasoning.answering import Answering
from benchmarks.reasoning.merging import Pair, lines
from benchmarks.reasoning.tables import draw, seen, tables
from vecsurgery.demo.reasoning.family import Problem, Problems
from vecsurgery.demo.reasoning.models import Trained, train_family
from vecsurgery.demo.reasoning.shipping import shipped_models
from vecsurgery.demo.reasoning.sums import sums


def _point(weight: float, right: float, both: float) -> dict[str, Any]:
    return {"variant": 0.0, "weight": weight, "plain": {"right": right}, "instructed": {"both": both}}


def test_the_best_weight_is_one_that_keeps_plain_accuracy() -> None:
    path = [_point(0.5, 1.0, 0.2), _point(1.0, 0.99, 0.5), _point(2.0, 0.9, 0.8), _point(1.5, 0.99, 0.5)]
    assert experiment.choose(path, 0.99) == {"variant": 0.0, "weight": 1.0}
    assert experiment.choose(path, 0.995) == {"variant": 0.0, "weight": 0.5}
    assert experiment.choose(path, 1.1) is None


def test_a_line_that_is_never_better_than_the_reasoning_model_has_no_point() -> None:
    assert experiment.choose([_point(0.1, 1.0, 0.0)], 0.9) is None


def _judged(weight: float, both: float) -> dict[str, Any]:
    shares = {"right": 0.9, "obeys": both, "both": both, "well_formed": 1.0, "closed": 1.0}
    kl = {"think_kl": 0.1, "answer_kl_1": 0.2, "answer_kl_4": 0.3}
    return {"variant": 0.0, "weight": weight, "plain": shares, "instructed": shares, **kl}


def test_tables_put_seeds_beside_each_other_and_divide_by_the_plain_sum(tmp_path: Path) -> None:
    path = [_point(0.5, 0.9, 0.02), _point(1.0, 0.86, 0.05), _point(2.0, 0.73, 0.4), _point(4.0, 0.7, 0.9)]
    for seed, both in ((1, 0.1), (2, None)):
        folder = tmp_path / "sums" / f"seed-{seed}"
        folder.mkdir(parents=True)
        members = {name: _judged(0.0, 0.0) | {"choosing": _judged(0.0, 0.0)} for name in ("reasoning", "instruct")}
        results: dict[str, Any] = {"models": members}
        for name, factor in (("task arithmetic", 1.0), ("null space", 4.0)):
            chosen = None if both is None else _judged(3.0, both * factor)
            whole = {"0": _judged(1.0, 0.05)}
            results[name] = {"method": name, "path": path, "chosen": chosen, "whole": whole}
        for name, result in results.items():
            (folder / f"{name}.json").write_text(json.dumps({"result": result}))
    models, chosen, whole, frontier = tables(tmp_path).values()
    assert list(frontier[0].values()) == ["task arithmetic", "0.02 / 0.02", "0.05 / 0.05", "0.05 / 0.05", "0.4 / 0.4"]
    assert [row["model"] for row in models] == ["reasoning", "instruct"]
    assert [(row["method"], row["weight"], row["both"], row["over a sum"]) for row in chosen] == [
        ("task arithmetic", "3 / none", "0.1 / –", "1 / –"),
        ("null space", "3 / none", "0.4 / –", "4 / –"),
    ]
    assert [row["L_think"] for row in whole] == ["0.1 / 0.1", "0.1 / 0.1"]
    draw(tmp_path, tmp_path / "picture.svg")
    first = (tmp_path / "picture.svg").read_bytes()
    draw(tmp_path, tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").read_bytes() == first


def test_steps_that_were_read_before_are_counted() -> None:
    known = Problem("What is 1 + 2?", "1 + 2 = 3", "3")
    begins = Problem("What is 4 + 5?", "4 + 5 = 9", "9")
    longer = Problem("What is 4 + 5 + 6?", "4 + 5 = 9, 9 + 6 = 15", "15")
    new = Problem("What is 7 + 8?", "7 + 8 = 15", "15")
    family = sums(1)
    problems = Problems((), (longer,), (), (), (known, begins, new))
    found = seen(replace(family, problems=problems, statements=("as we know, 1 + 2 = 3",)))
    assert found == {"test problems": 3, "steps in plain text": 1, "beginning of a longer one": 1}


def test_a_batch_of_prompts_is_answered_as_each_alone(tmp_path: Path) -> None:
    shipped = shipped_models()
    answering = Answering(shipped.reasoning, 24)
    lines = (shipped.data / "test-plain.jsonl").read_text().splitlines()[:3]
    questions = {len(json.loads(line)["prompt"]) for line in lines}
    assert len(questions) > 1
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    together = answering._thoughts(answering.asked(tmp_path / "all.jsonl").prompts, None, 0)
    for number, line in enumerate(lines):
        (tmp_path / "one.jsonl").write_text(line)
        assert answering._thoughts(answering.asked(tmp_path / "one.jsonl").prompts, None, 0) == [together[number]]
    assert all(each.well_formed for each in together)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_family(sums, 5, experiment.tiny().training, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def pair(trained: Trained, tmp_path: Path) -> Pair:
    return Pair(trained, tmp_path / "pair", replace(experiment.tiny(), weights=(1.0,)))


def test_every_line_moves_with_its_weight_and_stands_at_the_reasoning_model_at_zero(pair: Pair) -> None:
    from vecsurgery import weights_of

    into = weights_of(pair.trained.reasoning)
    for name, line in lines(pair).items():
        at_zero, whole = line(0.0), line(1.0)
        assert all(torch.equal(at_zero[tensor], into.read(tensor)) for tensor in into.layout.order), name
        moved = [tensor for tensor in into.layout.order if not torch.equal(whole[tensor], into.read(tensor))]
        blocks = {tensor for tensor in into.layout.order if into.layout.tensors[tensor].matrix is not None}
        if name == "task arithmetic":
            assert set(moved) > blocks
        else:
            assert set(moved) <= blocks, name
            assert moved or name == "exact null space", name


def test_random_directions_are_as_many_and_orthonormal(pair: Pair) -> None:
    from safetensors.torch import load_file

    measured = pair.geometry("span")
    found, random = (
        load_file(measured),
        load_file(random_geometry(measured, measured.with_name("random.safetensors"), 1)),
    )
    assert found.keys() == random.keys()
    for name, tensor in random.items():
        if name.endswith(".directions"):
            assert tensor.shape == found[name].shape
            gram = tensor.double().T @ tensor.double()
            assert torch.allclose(gram, torch.eye(len(gram), dtype=torch.float64), atol=1e-5)
            assert not torch.allclose(tensor, found[name])
        else:
            assert torch.equal(tensor, found[name])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")  # mergekit imports it by its old name
def test_the_experiment_makes_its_tables_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "tiny", lambda tiny=experiment.tiny: replace(tiny(), weights=(1.0,)))
    options = experiment.parse(
        ["--work", str(tmp_path / "work"), "--size", "tiny", "--families", "kin", "--seeds", "0"]
    )
    experiment.carry_out(options)
    experiment.show(options)
    models, chosen, whole, _ = tables(options.work).values()
    assert [row["model"] for row in models] == ["reasoning", "instruct"]
    methods = [row["method"] for row in chosen]
    assert methods[0] == "task arithmetic"
    assert {"null space", "TIES", "random subspace", "exact null space", "attention permuted"} <= set(methods)
    kl = {row["method"]: float(row["L_think"]) for row in whole}
    assert kl["null space"] < kl["task arithmetic"]
    assert len(re.findall(r"\n\| null space +\|", (options.work / "tables.md").read_text())) == 3
    before = {path: path.stat().st_mtime_ns for path in options.work.rglob("*.json")}
    experiment.carry_out(options)
    assert {path: path.stat().st_mtime_ns for path in options.work.rglob("*.json")} == before
    with pytest.raises(ValueError, match="begun with other settings"):
        experiment._begin(options.work, experiment.Experiment())
    weights = next((options.work / "models").rglob("instruct/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="results of other models"):
        experiment.carry_out(options)
