"""The demonstration: run the shipped recipe on the demo's models and say plainly what came out."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vecsurgery.demo.cache import Prepared, prepare
from vecsurgery.progress import Progress, silent

RECIPE = "retain"
SEEDS = (0, 1, 2)
"""Fixed with the world and the unlearner; the demo shows the first."""
_MODELS = ("original", "unlearned", "cleaned")


@dataclass(frozen=True)
class Row:
    """Answer NLL (nats) of the three models of one seed, on questions that calibration did not see."""

    seed: int
    forget: tuple[float, float, float]
    retain: tuple[float, float, float]
    output: Path
    verdict: str

    @property
    def kept(self) -> float:
        """Share of the forgetting (rise of the forget answers' NLL) that is left after cleaning."""
        original, unlearned, cleaned = self.forget
        return (cleaned - original) / (unlearned - original)

    @property
    def repaired(self) -> float:
        """Share of the damage (rise of the retain answers' NLL) that cleaning took away."""
        original, unlearned, cleaned = self.retain
        return (unlearned - cleaned) / (unlearned - original)


def show(*, seeds: int = 1, out: Path | None = None, progress: Progress = silent) -> dict[str, Any]:
    """Train (or take from the cache), clean by the shipped recipe, and measure answers, for the first `seeds` seeds.

    `out`: new folder for recipes and outputs; by default `vecsurgery-demo` in the current folder, with a number where
    it exists. Returns {"rows": [...], "out": folder, "text": the page that the command prints}.
    Raises: InputError where `out` is taken.
    """
    folder = _folder(out)
    rows = [_row(prepare(seed, progress=progress), folder, progress) for seed in SEEDS[:seeds]]
    return {
        "rows": [
            {
                "seed": row.seed,
                "forget": dict(zip(_MODELS, row.forget, strict=True)),
                "retain": dict(zip(_MODELS, row.retain, strict=True)),
                "output": str(row.output),
                "verdict": row.verdict,
            }
            for row in rows
        ],
        "out": str(folder),
        "text": _text(rows),
    }


def _folder(out: Path | None) -> Path:
    from vecsurgery.errors import InputError

    folder = Path("vecsurgery-demo") if out is None else out
    number = 2
    while out is None and folder.exists():
        folder = Path(f"vecsurgery-demo-{number}")
        number += 1
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"writing the demo to {folder}: it exists and is not empty; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def _row(prepared: Prepared, folder: Path, progress: Progress) -> Row:
    from vecsurgery.recipe import shipped
    from vecsurgery.surgery import api

    recipe = folder / f"{RECIPE}-{prepared.seed}.yaml"
    recipe.write_text(_with_models(shipped.text(RECIPE), prepared), encoding="utf-8")
    output = folder / f"cleaned-{prepared.seed}"
    record = api.run(recipe, output, progress=progress)
    models = (prepared.original, prepared.unlearned, output)
    forget, retain = (
        tuple(_answer_nll(model, prepared.data / name, progress) for model in models)
        for name in ("forget-test.jsonl", "retain-test.jsonl")
    )
    return Row(prepared.seed, forget, retain, output, record.get("verdict", ""))  # type: ignore[arg-type]


def _with_models(text: str, prepared: Prepared) -> str:
    """The shipped recipe with the demo's models and data in place of the examples; every setting stays."""
    data = [str(prepared.data / name) for name in ("retain.jsonl", "general.txt")]
    places = {
        "into: org/original": f"into: {json.dumps(str(prepared.original))}",
        "tuned: org/unlearned": f"tuned: {json.dumps(str(prepared.unlearned))}",
        "data: retain.jsonl": f"data: {json.dumps(data)}",
    }
    for example, own in places.items():
        if text.count(example) != 1:
            raise ValueError(f"the shipped recipe {RECIPE!r} names {example!r} {text.count(example)} times, expected 1")
        text = text.replace(example, own)
    return text


def _answer_nll(model: Path, data: Path, progress: Progress) -> float:
    from vecsurgery import calibration
    from vecsurgery.checkpoint import Stored
    from vecsurgery.evaluation import answer_nll
    from vecsurgery.recipe import DataSpec

    samples = calibration.prepare(DataSpec((data,)), calibration.load_tokenizer(model))
    return answer_nll(Stored(model), samples, progress=progress).mean


def _text(rows: list[Row]) -> str:
    lines = [
        "A tiny model learned facts about 40 people, then unlearned 8 of them by gradient ascent, which also hurt what",
        "it knew about the others. The shipped recipe `retain` cleans the difference of the two checkpoints.",
        "",
        "Answer NLL in nats, on questions that calibration did not see: high on forget is forgotten, low on retain is",
        "remembered.",
        "",
        f"{'seed':>4}  {'questions':<10}" + "".join(f"{model:>11}" for model in _MODELS),
    ]
    for row in rows:
        for name, values in (("forget", row.forget), ("retain", row.retain)):
            lines.append(f"{row.seed:>4}  {name:<10}" + "".join(f"{value:>11.3f}" for value in values))
    lines.append("")
    for row in rows:
        lines.append(
            f"seed {row.seed}: cleaning took away {row.repaired:.1%} of the damage to what should be retained, and "
            f"kept {row.kept:.1%} of the forgetting."
        )
    lines += [
        "Suppression alone undoes part of the forgetting too, because forgotten and retained facts share directions;",
        "how much is the second figure. A larger `keep` gives back less of both.",
        "",
    ]
    for row in rows:
        lines += [f"output: {row.output}", f"report: {row.output / 'report.html'}", row.verdict]
    return "\n".join(lines) + "\n"
