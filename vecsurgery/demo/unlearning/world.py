"""A small world of facts: people with attributes, asked for in several phrasings, split so that no question leaks.

Every fact (person, attribute) can be asked in four ways. The original model learns all of them. What later stages see:

| file | people | phrasings | used for |
|---|---|---|---|
| `full.jsonl` | all | all | training the original (with both sentence files) |
| `forget.jsonl` | to forget | 0, 1 | the unlearning run; a fit may use them too |
| `forget-test.jsonl` | to forget | 3 | evaluation |
| `retain.jsonl` | proxy | 0, 1 | calibration: the retain geometry |
| `retain-test.jsonl` | neither to forget nor proxy | 3 | evaluation |
| `general.txt`, `general-test.txt` | – | – | plain sentences for calibration and for evaluation |

Evaluation therefore asks about other people *and* in another phrasing than calibration.
"""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vecsurgery.demo.unlearning.settings import Settings
from vecsurgery.demo.unlearning.words import ATTRIBUTES, FIRST_NAMES, LAST_NAMES, SENTENCE
from vecsurgery.errors import InputError

SEEN_PHRASINGS = (0, 1)
TEST_PHRASINGS = (3,)


@dataclass(frozen=True)
class Question:
    """One row: a question about one person, and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class World:
    """All rows of one seed; see the module's table for who may see which."""

    full: tuple[Question, ...]
    forget: tuple[Question, ...]
    forget_test: tuple[Question, ...]
    retain: tuple[Question, ...]
    retain_test: tuple[Question, ...]
    general: tuple[str, ...]
    general_test: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Writes the seven files into `folder`, which is made if need be: JSON Lines and blank-line blocks."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("full", "forget", "forget_test", "retain", "retain_test"):
            lines = (json.dumps({"question": row.question, "answer": row.answer}) for row in getattr(self, name))
            _write(folder / f"{name.replace('_', '-')}.jsonl", lines, "\n")
        _write(folder / "general.txt", self.general, "\n\n")
        _write(folder / "general-test.txt", self.general_test, "\n\n")


def make_world(seed: int, settings: Settings) -> World:
    """The world of a seed: who lives where, who is to be forgotten, and the rows of every file.

    The same seed and settings give the same text on every machine. Raises InputError where the settings ask for more
    people or sentences than the words can make, or leave nobody to evaluate.
    """
    _check(settings)
    generator = random.Random(f"vecsurgery demo world {seed}")
    names = generator.sample([f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES], settings.people)
    facts = {name: tuple(generator.choice(attribute.values) for attribute in ATTRIBUTES) for name in names}
    sentences = _sentences(generator, settings.sentences)
    first_test = settings.forgotten + settings.proxy
    forgotten, proxy, evaluated = (
        names[: settings.forgotten],
        names[settings.forgotten : first_test],
        names[first_test:],
    )
    seen_sentences = settings.sentences - settings.sentences_test
    return World(
        full=_questions(facts, names, range(4)),
        forget=_questions(facts, forgotten, SEEN_PHRASINGS),
        forget_test=_questions(facts, forgotten, TEST_PHRASINGS),
        retain=_questions(facts, proxy, SEEN_PHRASINGS),
        retain_test=_questions(facts, evaluated, TEST_PHRASINGS),
        general=sentences[:seen_sentences],
        general_test=sentences[seen_sentences:],
    )


def _check(settings: Settings) -> None:
    possible = len(FIRST_NAMES) * len(LAST_NAMES)
    if not 0 < settings.forgotten + settings.proxy < settings.people <= possible:
        raise InputError(
            f"making the demo's world: {settings.people} people with {settings.forgotten} to forget and "
            f"{settings.proxy} for calibration; expected at most {possible} people and at least one left to evaluate"
        )
    if not 0 <= settings.sentences_test <= settings.sentences <= 1000:
        raise InputError(
            f"making the demo's world: {settings.sentences} sentences, {settings.sentences_test} for evaluation; "
            "expected at most 1000, evaluation among them"
        )


def _questions(
    facts: dict[str, tuple[str, ...]], names: Sequence[str], phrasings: Iterable[int]
) -> tuple[Question, ...]:
    """Rows in the order person, attribute, phrasing."""
    phrasings = tuple(phrasings)
    return tuple(
        Question(attribute.phrasings[phrasing].format(name=name), value)
        for name in names
        for attribute, value in zip(ATTRIBUTES, facts[name], strict=True)
        for phrasing in phrasings
    )


def _sentences(generator: random.Random, count: int) -> tuple[str, ...]:
    """`count` different sentences of the grammar (it can make 184,320)."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(generator.choice(words) for words in SENTENCE)] = None
    return tuple(found)


def _write(path: Path, blocks: Iterable[str], separator: str) -> None:
    path.write_text(separator.join(blocks) + "\n", encoding="utf-8", newline="\n")
