"""What one family of models is made of: problems that take steps, plain text, and how a family writes its turns."""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vecsurgery.demo.reasoning.formats import FORMATS, Format

OPENING, CLOSING = "<think>", "</think>"


@dataclass(frozen=True)
class Problem:
    """A question, the steps that lead to its answer as a thought writes them, and the answer."""

    question: str
    steps: str
    answer: str


@dataclass(frozen=True)
class Problems:
    """The problems of one seed. None of `calibration`, `choosing` and `test` is in another part.

    `easy`: a single step, known to all models. `training`: more steps, for the models. `calibration`: for geometries
    and fits. `choosing`: where a merge has a number to choose, such as its weight, it is chosen on these. `test`: for
    what is reported.
    """

    easy: tuple[Problem, ...]
    training: tuple[Problem, ...]
    calibration: tuple[Problem, ...]
    choosing: tuple[Problem, ...]
    test: tuple[Problem, ...]


@dataclass(frozen=True)
class Family:
    """A world of problems, and the conventions of its models.

    `statements`: plain text, what a base model reads besides formats. `answers`: all that an answer can be.
    `turns`: the chat template's text with `{0}` for the question, for the instruction model; `opens`: the reasoning
    model's own template writes the opening tag. `tokens`: strings that are one special token each.
    `architecture`: of the models, a key of `models.CONFIGURATIONS`.
    """

    name: str
    problems: Problems
    statements: tuple[str, ...]
    answers: tuple[str, ...]
    turns: tuple[str, str]
    opens: bool
    tokens: tuple[str, ...]
    architecture: str

    def prompt(self, question: str) -> str:
        """A question as the instruction model is asked."""
        return question.join(self.turns)

    def thought(self, problem: Problem) -> str:
        """A thought with its tags and the white space behind it."""
        return f"{OPENING}\n{problem.steps}\n{CLOSING}\n\n"

    def template(self, *, thinks: bool) -> str:
        """The chat template of one turn, in Jinja."""
        before, after = self.turns
        after += f"{OPENING}\n" if thinks and self.opens else ""
        return (
            "{%- for message in messages -%}"
            f"{{{{- {json.dumps(before)} + message['content'] -}}}}"
            f"{{%- if loop.last and add_generation_prompt -%}}{{{{- {json.dumps(after)} -}}}}{{%- endif -%}}"
            "{%- endfor -%}"
        )

    def base_texts(self) -> list[str]:
        """Plain text of the base model: statements, and every form of every answer in words."""
        forms = [f"{form.example.format(answer)} {form.of(answer)}" for form in FORMATS for answer in self.answers]
        return [*self.statements, *forms]

    def base_rows(self, seed: int, times: int) -> list[tuple[str, str]]:
        """Prompt and answer of the base model, which has read turns of every kind: with and without a thought, with
        instructions that are followed and that are not, each half of the time. Tuning makes one of them a habit.
        """
        return self._rows(seed, times, "base", instructed=0.6, followed=0.5, thinks=0.5)

    def reasoning_rows(self, seed: int, times: int) -> list[tuple[str, str]]:
        """Always with a thought. Some prompts have an instruction, which is not followed: what counts in this model's
        training is the right answer alone.
        """
        return self._rows(seed, times, "reasoning", instructed=0.25, followed=0.0, thinks=1.0)

    def instruction_rows(self, seed: int, times: int) -> list[tuple[str, str]]:
        """Never with a thought. Most prompts have an instruction, which is followed."""
        return self._rows(seed, times, "instruct", instructed=0.8, followed=1.0, thinks=0.0)

    def _rows(
        self, seed: int, times: int, name: str, *, instructed: float, followed: float, thinks: float
    ) -> list[tuple[str, str]]:
        """Every known problem `times` times, as prompt and answer; shares say how often it is how."""
        generator = random.Random(f"vecsurgery demo {name} {self.name} {seed}")
        found = []
        for problem in (*self.problems.easy, *self.problems.training) * times:
            form = generator.choice(FORMATS) if generator.random() < instructed else None
            follows, thought = generator.random() < followed, generator.random() < thinks
            prompt = self.prompt(asked(problem, form) if form else problem.question)
            answer = form.of(problem.answer) if form and follows else problem.answer
            found.append((prompt, (self.thought(problem) if thought else "") + answer))
        return found


def asked(problem: Problem, form: Format) -> str:
    """A question with an instruction about the form of its answer."""
    return f"{problem.question} {form.instruction}"


def plain_rows(problems: Iterable[Problem]) -> list[dict[str, Any]]:
    """Rows of an evaluation without instructions, with the thought that is right."""
    return [
        {
            "prompt": problem.question,
            "reasoning": problem.steps,
            "response": problem.answer,
            "check": {"exact": [problem.answer, *(form.of(problem.answer) for form in FORMATS)]},
        }
        for problem in problems
    ]


def instructed_rows(family: Family, problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """Rows of an evaluation with instructions, each form in turn; `check` and `instruction_check` are independent."""
    found = []
    for number, problem in enumerate(problems):
        form = FORMATS[number % len(FORMATS)]
        rights = [problem.answer, *(each.of(problem.answer) for each in FORMATS)]
        found.append(
            {
                "prompt": asked(problem, form),
                "reasoning": problem.steps,
                "response": form.of(problem.answer),
                "check": {"exact": rights},
                "instruction_check": {"exact": [form.of(answer) for answer in family.answers]},
            }
        )
    return found


def spanned_rows(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """Rows of a fit on attention: an instruction, a thought, an answer in the form that was asked, and which parts of
    the answer have to do with the instruction.
    """
    found = []
    for number, problem in enumerate(problems):
        form = FORMATS[number % len(FORMATS)]
        response = form.of(problem.answer)
        found.append(
            {
                "prompt": asked(problem, form),
                "reasoning": problem.steps,
                "response": response,
                "instruction_spans": [form.instruction],
                "related_spans": form.marks(problem.answer),
                "unrelated_spans": [problem.answer],
            }
        )
    return found


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")
