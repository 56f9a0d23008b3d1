"""Who is who: TOFU's rows by author, and the seed's disjoint parts of them."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.unlearning.settings import Split

Row = Mapping[str, Any]


def read(path: Path) -> list[Row]:
    """Rows of a JSON list or of JSON Lines."""
    text = path.read_text(encoding="utf-8")
    rows: list[Row] = json.loads(text) if text.lstrip().startswith("[") else list(map(json.loads, text.splitlines()))
    return rows


def parts(data: Path, split: Split, seed: int) -> dict[str, list[Row]]:
    """Every part of a seed by name.

    `unlearn_retain`, what the unlearners may repair with, is `retain` without the evaluation authors. The parts
    `calibration`, `fit_pool` (with `fit` and `relearn` in it), `forget_test` and `retain_test` share no author.
    Raises ValueError where the files are not the standard splits.
    """
    full, size = read(data / "full.json"), split.rows_per_author
    authors = [full[start : start + size] for start in range(0, len(full), size)]
    retain, forget = authors[: -split.forget_authors], authors[-split.forget_authors :]
    if read(data / "retain90.json") != _flat(retain) or read(data / "forget10.json") != _flat(forget):
        raise ValueError(f"{data}: full.json is not retain90.json followed by forget10.json, {size} rows an author")
    retain = retain[: split.retain_authors]
    draw = random.Random(f"authors {seed}")
    fit_to, test_to = split.fit_authors, split.fit_authors + split.evaluation_authors
    drawn = draw.sample(range(len(forget)), len(forget))
    fit_authors, forget_test = drawn[:fit_to], drawn[fit_to:test_to]
    retain_test = draw.sample(range(split.paraphrased_authors), split.evaluation_authors)
    left = [index for index in range(len(retain)) if index not in retain_test]
    calibration = draw.sample(left, split.calibration_authors)
    pool = [draw.sample(forget[author], size) for author in fit_authors]
    """Each fit author's rows in drawn order: the fit takes the first ones, relearning the next."""
    by_turn = [author[turn] for turn in range(size) for author in pool]
    first = split.fit_rows
    found = {
        "learned": _flat(retain) + _flat(forget),
        "retain": _flat(retain),
        "forget": _flat(forget),
        "unlearn_retain": _flat([retain[author] for author in left]),
        "calibration": _flat([retain[author] for author in sorted(calibration)]),
        "fit_pool": by_turn,
        "fit": by_turn[:first],
        "relearn": by_turn[first : first + split.relearn_rows],
        "forget_test": _flat([draw.sample(forget[author], split.evaluation_rows) for author in forget_test]),
        "retain_test": _flat([draw.sample(retain[author], split.evaluation_rows) for author in retain_test]),
    }
    for role, file in (("forget", "forget10_perturbed.json"), ("retain", "retain_perturbed.json")):
        found[f"{role}_paraphrased"] = _paraphrased(found[f"{role}_test"], read(data / file))
    return found


def write(folder: Path, found: Mapping[str, Sequence[Row]]) -> None:
    """One JSON Lines file a part: what recipes name, and what a reader can check."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in found.items():
        lines = [json.dumps({"question": row["question"], "answer": row["answer"]}) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def _flat(authors: Sequence[Sequence[Row]]) -> list[Row]:
    return [row for author in authors for row in author]


def _paraphrased(rows: Sequence[Row], perturbed: Sequence[Row]) -> list[Row]:
    """The same answers to the paraphrased questions."""
    known = {(row["question"], row["answer"]): row["paraphrased_question"] for row in perturbed}
    return [{"question": known[row["question"], row["answer"]], "answer": row["answer"]} for row in rows]
