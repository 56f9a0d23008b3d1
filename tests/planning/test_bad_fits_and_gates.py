"""What a user can get wrong about fits, evaluation and gates: one clear error, and no output."""

import json
from typing import Any

import pytest
from support import models
from support.workspace import Workspace

from tests.planning.bad_inputs import Spoil, Table, require_refused

CASES = Table()
case = CASES.case


def _fit(work: Workspace, **keys: Any) -> None:
    """A fit on six rows with answers."""
    asked, answered = models.sentences(6, seed=70, length=4), models.sentences(6, seed=71, length=4)
    rows = [{"question": each, "answer": answer} for each, answer in zip(asked, answered, strict=True)]
    (work.root / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    work.recipe["steps"].append({"fit": "amplify", "data": "forget.jsonl", **keys})


@case("a typo in the name of a fit", "recipe.yaml:", "steps[1].fit", "amplfy", "did you mean 'amplify'?")
def _(work: Workspace) -> None:
    _fit(work, fit="amplfy")


@case("a fit without data", "steps[1].data", "required")
def _(work: Workspace) -> None:
    _fit(work, data=None)


@case("a fit with two targets", "steps[1]", "share and loss")
def _(work: Workspace) -> None:
    _fit(work, share=0.9, loss=2.0)


@case("a range that runs backwards", "steps[1]", "0 < least < largest")
def _(work: Workspace) -> None:
    _fit(work, range=[8, 1])


@case("a reference model that does not exist", "steps[1].reference", "nowhere")
def _(work: Workspace) -> None:
    _fit(work, reference="./nowhere")


@case("a fit on rows without answers", "step 'amplify'", "no answer", "general.jsonl:1")
def _(work: Workspace) -> None:
    models.write_texts(work.root / "general.jsonl", 3, seed=80)
    _fit(work, data="general.jsonl")


@case("a fit of two deltas at once", "steps[1].delta", "one delta", "change, other")
def _(work: Workspace) -> None:
    work.recipe["deltas"]["other"] = {"tuned": "base"}
    _fit(work)


@case("evaluation on rows of the fit", "evaluate.forget", "share 6 rows", "forget.jsonl:1")
def _(work: Workspace) -> None:
    _fit(work)
    work.recipe["evaluate"] = {"forget": "forget.jsonl"}


@case("evaluation on rows of the geometry", "evaluate.general", "share 24 rows", "retain.jsonl:1")
def _(work: Workspace) -> None:
    work.recipe["evaluate"] = {"general": "retain.jsonl"}


@case("a retain role without answers", "evaluate.retain", "no answer")
def _(work: Workspace) -> None:
    models.write_texts(work.root / "general.jsonl", 3, seed=80)
    work.recipe["evaluate"] = {"retain": "general.jsonl"}


@case("an unknown measure of a gate", "gates[0].measure", "did you mean 'retention'?")
def _(work: Workspace) -> None:
    work.recipe["gates"] = [{"measure": "retension", "max": 1.0, "data": "retain.jsonl"}]


@case("a gate without its limit", "gates[0].max", "required for perplexity_ratio")
def _(work: Workspace) -> None:
    work.recipe["gates"] = [{"measure": "perplexity_ratio", "data": "retain.jsonl"}]


@case("a gate without rows", "gates[0].data", "evaluate.forget")
def _(work: Workspace) -> None:
    work.recipe["gates"] = [{"measure": "forgetting", "min": 0.9}]


@case("gates that are no list", "gates", "[] for none")
def _(work: Workspace) -> None:
    work.recipe["gates"] = "none"


@pytest.mark.parametrize(("name", "spoil", "expected"), CASES.entries, ids=CASES.names)
def test_bad_input_is_one_clear_error(workspace: Workspace, name: str, spoil: Spoil, expected: tuple[str, ...]) -> None:
    require_refused(workspace, spoil, expected)
