"""The demonstration: run the shipped recipe on the demo's models and say plainly what came out."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vecsurgery.demo.output import filled_in, output_folder
from vecsurgery.demo.unlearning.cache import Prepared, prepare
from vecsurgery.progress import Progress, silent

RECIPE = "sage"
SEEDS = (0, 1, 2)
"""Fixed with the world and the unlearner; the demo shows the first."""


@dataclass(frozen=True)
class Model:
    """One model on questions that neither calibration nor fit saw: answer NLL in nats (forget also with every token's
    NLL cut at ln(vocabulary)), and the mean probability of an answer token.
    """

    name: str
    forget_nll: float
    forget_capped: float
    forget_probability: float
    retain_nll: float
    retain_probability: float


@dataclass(frozen=True)
class Row:
    """The models of one seed: original, unlearned, cleaned by the recipe, and the raw delta scaled by one number.

    `factor`: what the fit multiplied the projected matrices by. `scale`: what the raw delta is multiplied by to forget
    as much as the cleaned model (equal capped answer loss on the forget questions).
    """

    seed: int
    models: tuple[Model, ...]
    factor: float
    scale: float | None
    output: Path
    verdict: str

    @property
    def forgetting(self) -> float:
        """Share of the unlearned model's forgetting that the cleaned one has, in capped answer loss."""
        original, unlearned, cleaned = (model.forget_capped for model in self.models[:3])
        return (cleaned - original) / (unlearned - original)

    @property
    def ratio(self) -> float | None:
        """Retain NLL of the cleaned model over that of the scaled delta, at equal forgetting."""
        return self.models[2].retain_nll / self.models[3].retain_nll if len(self.models) > 3 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "seed": self.seed,
            "models": [asdict(model) for model in self.models],
            "factor": self.factor,
            "scale": self.scale,
            "forgetting": self.forgetting,
            "ratio": self.ratio,
            "output": str(self.output),
            "verdict": self.verdict,
        }


def show(*, seeds: int = 1, out: Path | None = None, progress: Progress = silent) -> dict[str, Any]:
    """Train (or take from the cache), clean by the shipped recipe, and compare, for the first `seeds` seeds.

    `out`: new folder for recipes and outputs; by default `vecsurgery-demo` in the current folder, with a number where
    it exists. Returns {"rows": [...], "out": folder, "text": the page that the command prints}.
    Raises: InputError where `out` is taken; GateError where a result does not pass the recipe's gates.
    """
    folder = output_folder(out)
    rows = [_row(prepare(seed, progress=progress), folder, progress) for seed in SEEDS[:seeds]]
    return {"rows": [row.to_dict() for row in rows], "out": str(folder), "text": _text(rows)}


def _row(prepared: Prepared, folder: Path, progress: Progress) -> Row:
    from vecsurgery.recipe import shipped
    from vecsurgery.studies import curves
    from vecsurgery.surgery import api

    recipe = folder / f"{RECIPE}-{prepared.seed}.yaml"
    recipe.write_text(with_own_files(shipped.text(RECIPE), prepared), encoding="utf-8")
    output = folder / f"cleaned-{prepared.seed}"
    record = api.run(recipe, output, progress=progress)
    models = tuple(
        _model(name, *(record["evaluation"][data]["figures"][key] for data in ("forget", "retain")))
        for name, key in (("original", "into"), ("unlearned", "raw"), ("cleaned", "edited"))
    )
    scaled = curves.scaled_to(recipe, models[2].forget_capped, progress=progress)
    if scaled is not None:
        forget = (scaled.forget_nll, scaled.forget_capped, scaled.forget_probability)
        models += (Model(f"scaled {scaled.factor:.2f}", *forget, scaled.retain_nll, scaled.retain_probability),)
    factor = record["fits"][0]["facts"]["factor"]
    scale = None if scaled is None else scaled.factor
    return Row(prepared.seed, models, factor, scale, output, record.get("verdict", ""))


def _model(name: str, forget: dict[str, float], retain: dict[str, float]) -> Model:
    return Model(
        name,
        forget["nll"],
        forget["capped_loss"],
        forget["token_probability"],
        retain["nll"],
        retain["token_probability"],
    )


def with_own_files(text: str, prepared: Prepared) -> str:
    """The shipped recipe with the demo's models and data in place of the examples; every setting stays."""

    def data(*names: str) -> str:
        files = [str(prepared.data / name) for name in names]
        return json.dumps(files if len(files) > 1 else files[0])

    places = {
        "into: org/original": f"into: {json.dumps(str(prepared.original))}",
        "tuned: org/unlearned": f"tuned: {json.dumps(str(prepared.unlearned))}",
        "data: retain.jsonl": f"data: {data('retain.jsonl', 'general.txt')}",
        "data: forget.jsonl": f"data: {data('forget.jsonl')}",
        "forget: forget-test.jsonl": f"forget: {data('forget-test.jsonl')}",
        "retain: retain-test.jsonl": f"retain: {data('retain-test.jsonl')}",
        "data: general.txt": f"data: {data('general-test.txt')}",
    }
    return filled_in(RECIPE, text, places)


def _text(rows: list[Row]) -> str:
    heads = ("forget NLL", "capped", "p", "retain NLL", "p")
    lines = [
        "A tiny model learned facts about 40 people, then unlearned 8 of them by gradient ascent, which also hurt what",
        "it knew about the others. The shipped recipe `sage` cleans the difference of the two checkpoints: it",
        "suppresses it where retained text is active, and multiplies the rest by one number to forget as much again.",
        "",
        "Answers to questions that neither calibration nor fit saw: NLL in nats (capped: every token's cut at",
        "ln(vocabulary)), p the mean probability of an answer token. Forget: high NLL is forgotten. Retain: low NLL is",
        "remembered. `scaled`, the trivial alternative: the raw difference times one number, chosen to forget as much.",
        "",
        f"{'seed':>4}  {'model':<12}" + "".join(f"{head:>12}" for head in heads),
    ]
    for row in rows:
        for model in row.models:
            values = (
                model.forget_nll,
                model.forget_capped,
                model.forget_probability,
                model.retain_nll,
                model.retain_probability,
            )
            lines.append(f"{row.seed:>4}  {model.name:<12}" + "".join(f"{value:>12.3f}" for value in values))
    lines.append("")
    for row in rows:
        head = (
            f"seed {row.seed}: amplified by {row.factor:.2f}, cleaning keeps {row.forgetting:.0%} of the forgetting; "
        )
        if row.ratio is None:
            lines.append(head + "scaling the raw difference never forgets as much.")
        else:
            lines.append(head + f"retain NLL is {row.ratio:.2f} times that of scaling, which forgets as much.")
    lines += [
        "The ratio is what the method is worth here: below 1 it does less damage than scaling at equal forgetting.",
        "",
    ]
    for row in rows:
        recipe = row.output.parent / f"{RECIPE}-{row.seed}.yaml"
        lines += [f"recipe: {recipe} (it names the models and their data)"]
        lines += [f"output: {row.output}", f"report: {row.output / 'report.html'}", row.verdict]
    return "\n".join(lines) + "\n"
