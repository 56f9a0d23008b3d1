"""The family of the demo: sums of several numbers, worked out one addition at a time."""

import itertools
import random

from vecsurgery.demo.reasoning.family import Family, Problem, Problems

_WORDINGS = ("What is {0}?", "Work out {0}.", "How much is {0}?", "Add up {0}.")


def sums(seed: int) -> Family:
    """Sums of two to four numbers from 1 to 9; the thought adds from left to right.

    The reasoning model's template opens the thought; tags and roles are special tokens. Llama.
    """
    generator = random.Random(f"vecsurgery demo sums {seed}")
    easy = tuple(_problem(pair, generator) for pair in itertools.product(range(1, 10), repeat=2))
    longer = [*itertools.product(range(1, 10), repeat=3), *_some_fours(generator, 1200)]
    generator.shuffle(longer)
    made = [_problem(numbers, generator) for numbers in longer]
    problems = Problems(easy, tuple(made[840:]), tuple(made[:120]), tuple(made[120:440]), tuple(made[440:840]))
    additions = [f"{a} + {b} = {a + b}" for a in range(1, 28) for b in range(1, 10)]
    statements = additions + [f"{a} + {b} = {a + b}, {a + b} + {c} = {a + b + c}" for a, b, c in _triples(generator)]
    return Family(
        "sums",
        problems,
        tuple(statements),
        tuple(str(number) for number in range(2, 37)),
        ("<|user|>", "<|assistant|>"),
        True,
        ("<|user|>", "<|assistant|>", "<think>", "</think>"),
        "llama",
    )


def _triples(generator: random.Random) -> list[tuple[int, int, int]]:
    return [(generator.randint(1, 18), generator.randint(1, 9), generator.randint(1, 9)) for _ in range(400)]


def _some_fours(generator: random.Random, count: int) -> list[tuple[int, ...]]:
    return generator.sample(list(itertools.product(range(1, 10), repeat=4)), count)


def _problem(numbers: tuple[int, ...], generator: random.Random) -> Problem:
    """A sum in one of the wordings, added from left to right."""
    question = generator.choice(_WORDINGS).format(" + ".join(map(str, numbers)))
    totals = list(itertools.accumulate(numbers))
    steps = [
        f"{before} + {number} = {after}" for before, number, after in zip(totals, numbers[1:], totals[1:], strict=False)
    ]
    return Problem(question, ", ".join(steps), str(totals[-1]))
