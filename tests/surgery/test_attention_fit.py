"""A fit of attention in a run: what it reads, its file, its report, resuming, and what it refuses."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from support import models
from support.results import contents, tensors_of
from support.workspace import Workspace

import vecsurgery
from vecsurgery.cli import main
from vecsurgery.errors import InputError, UnsupportedError
from vecsurgery.forward import stream
from vecsurgery.report.record import read
from vecsurgery.surgery import fitting


@pytest.fixture
def heads(rain: Workspace) -> Workspace:
    """The null-space recipe with a fit of attention behind it."""
    rows = []
    for number, (asked, told) in enumerate(
        zip(models.sentences(6, seed=7, length=6), models.sentences(6, seed=8, length=8), strict=True)
    ):
        words, reply = asked.split(), told.split()
        spans = {"instruction_spans": [" ".join(words[1:4])], "related_spans": [" ".join(reply[:3])]}
        unrelated = [] if number == 2 else [reply[6]]
        rows.append({"prompt": f"{asked} ", "response": told, **spans, "unrelated_spans": unrelated})
    (rain.root / "spans.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rain.recipe["steps"].append({"fit": "attention_scale", "data": "spans.jsonl", "rho": 0.25})
    return rain


def test_attention_takes_one_pass_and_its_control_another(heads: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: Counter[str] = Counter()
    walk = stream.walk

    def counted(*args: Any, stage: str = "forward", **options: Any) -> Any:
        passes[stage] += 1
        return walk(*args, stage=stage, **options)

    for module in ("stream", "attention", "losses"):
        monkeypatch.setattr(f"vecsurgery.forward.{module}.walk", counted)
    vecsurgery.run(heads.write(), heads.out)
    assert {stage: count for stage, count in passes.items() if stage != "attention"} == {
        "measuring thinking": 1,
        "fitting attention_scale, attention": 1,
        "fitting attention_scale, pass 1": 1,
    }
    assert passes["attention"] == 1  # on zeros, to see that the model can be heard


def test_coefficients_of_one_without_a_projection_add_the_plain_difference(heads: Workspace) -> None:
    """into + (tuned − base), where base is not `into` and two heads share a key."""
    heads.recipe["steps"] = [heads.recipe["steps"][-1] | {"range": [1.0, 1.000000000001]}]
    del heads.recipe["geometry"]
    vecsurgery.run(heads.write(), heads.out)
    into, tuned, base = (tensors_of(heads.root / name) for name in ("into", "tuned", "base"))
    for name, found in tensors_of(heads.out).items():
        expected = into[name].double() + (tuned[name].double() - base[name].double())
        above = torch.nextafter(found.float(), torch.tensor(torch.inf)).double() - found.double()
        spacing = above * (torch.finfo(found.dtype).eps / torch.finfo(torch.float32).eps)
        assert bool(((found.double() - expected).abs() <= spacing).all()), name
    assert not torch.equal(tensors_of(heads.root / "base")[name], into[name])


def _mean(out: Path) -> float:
    """Of the coefficients of all query heads, as the file has them."""
    tensors = json.loads((out / "surgery" / "attention_scale.coefficients.json").read_text())["tensors"]
    rows = [each["q"] for each in tensors.values() if isinstance(each, dict) and "q" in each]
    return float(torch.tensor(rows, dtype=torch.float64).mean())


def test_no_file_of_a_run_with_a_fit_is_larger_than_the_geometry(heads: Workspace) -> None:
    vecsurgery.run(heads.write(), heads.out)
    sizes = {path.name: path.stat().st_size for path in (heads.out / "surgery").iterdir()}
    assert set(sizes) == {"thinking.safetensors", "attention_scale.coefficients.json"}
    assert max(sizes, key=lambda name: sizes[name]) == "thinking.safetensors"


def test_the_record_has_the_control_and_the_report_tells_of_it(heads: Workspace) -> None:
    vecsurgery.run(heads.write(), heads.out)
    (fit,) = read(heads.out)["fits"]
    assert fit["method"] == "attention_scale"
    assert fit["facts"]["mean"] == pytest.approx(_mean(heads.out), rel=1e-6)
    assert {"nll_unscaled", "nll_scaled", "nll_permuted", "related", "unrelated"} <= set(fit["facts"])
    text = CliRunner().invoke(main, ["report", str(heads.out)]).output
    assert "with them permuted over the heads, the control" in text
    matrix = next(each for each in read(heads.out)["matrices"] if each["tensor"].endswith("0.self_attn.q_proj.weight"))
    assert {"factor_mean", "factor_least", "factor_largest"} == set(matrix["steps"][-1]["facts"])
    plan = vecsurgery.plan(heads.write()).text()
    assert "fit attention_scale (attention_scale of instruct): 21 matrices" in plan


def test_a_run_cut_off_behind_the_fit_reads_its_file(heads: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = heads.write()
    vecsurgery.run(recipe, heads.root / "whole")

    def stop(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("vecsurgery.surgery.running.write_all", stop)
        with pytest.raises(KeyboardInterrupt):
            vecsurgery.run(recipe, heads.out)
    monkeypatch.setattr(fitting, "attention_mass", stop)
    vecsurgery.run(recipe, heads.out)
    first, second = (contents(folder) for folder in (heads.root / "whole", heads.out))
    assert {name: data for name, data in first.items() if name.endswith("safetensors")} == {
        name: data for name, data in second.items() if name.endswith("safetensors")
    }


def test_two_runs_have_the_same_bytes(heads: Workspace) -> None:
    recipe = heads.write()
    folders = [heads.root / name for name in ("one", "two")]
    for folder in folders:
        vecsurgery.run(recipe, folder)
    one, two = ((folder / "surgery" / "attention_scale.coefficients.json").read_bytes() for folder in folders)
    assert one == two
    weights = [sorted(folder.glob("*.safetensors")) for folder in folders]
    assert [path.read_bytes() for path in weights[0]] == [path.read_bytes() for path in weights[1]]


def test_everything_beside_block_matrices_is_that_of_into(heads: Workspace) -> None:
    vecsurgery.run(heads.write(), heads.out)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (heads.out / name).read_bytes() == (heads.root / "into" / name).read_bytes()
    written, into = (vecsurgery.weights_of(folder) for folder in (heads.out, heads.root / "into"))
    others = [name for name, info in into.layout.tensors.items() if info.matrix is None]
    assert len(others) == 9  # norms of 3 blocks and the last, embedding, head
    assert all(written.read(name).equal(into.read(name)) for name in others)


def test_rows_without_spans_are_refused_before_anything_heavy(heads: Workspace) -> None:
    heads.recipe["steps"][-1]["data"] = "thoughts.jsonl"
    heads.recipe["geometry"]["thinking"]["limit"] = 2
    with pytest.raises(InputError, match=r"step 'attention_scale': .*thoughts\.jsonl:1: the row has no spans"):
        vecsurgery.check(heads.write())


def test_a_model_that_cannot_be_heard_is_refused_by_check(heads: Workspace, tmp_path: Path) -> None:
    folder = models.checkpoint(tmp_path / "falcon", "falcon")
    models.perturbed(folder, tmp_path / "other", seed=2)
    heads.recipe |= {"into": str(folder), "deltas": {"instruct": {"tuned": str(tmp_path / "other")}}}
    with pytest.raises(UnsupportedError, match="step 'attention_scale': listening to the attention"):
        vecsurgery.check(heads.write())
