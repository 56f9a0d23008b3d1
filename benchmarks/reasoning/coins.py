"""The third family: coins that are got and lost, one change after the other: how many are there?"""

import itertools
import random

from vecsurgery.demo.reasoning.family import Family, Problem, Problems

_MOST = 18
_CHANGES = (*range(-6, 0), *range(1, 7))
_WORDINGS = (
    "There are {0} coins: {1}. How many now?",
    "{0} coins, then {1}. How many are there?",
    "Start with {0} and {1}. How many?",
)


def coins(seed: int) -> Family:
    """Up to three changes of a number from 1 to 9, which stays from 0 to 18; the thought follows them one by one.

    The reasoning model writes both tags itself, each several tokens of text, and turns are marked by words. Llama.
    """
    generator = random.Random(f"vecsurgery demo coins {seed}")
    easy = tuple(_problem(each, generator) for each in _possible(1))
    longer = [*generator.sample(_possible(2), 700), *generator.sample(_possible(3), 1200)]
    generator.shuffle(longer)
    made = [_problem(numbers, generator) for numbers in longer]
    problems = Problems(easy, tuple(made[840:]), tuple(made[:120]), tuple(made[120:440]), tuple(made[440:840]))
    statements = [
        _step(before, change) for before in range(_MOST + 1) for change in _CHANGES if 0 <= before + change <= _MOST
    ]
    answers = tuple(str(number) for number in range(_MOST + 1))
    return Family("coins", problems, tuple(statements), answers, ("User: ", "\nAssistant:\n"), False, (), "llama")


def _possible(changes: int) -> list[tuple[int, ...]]:
    """Every start with this many changes that stays in range."""
    return [
        numbers
        for numbers in itertools.product(range(1, 10), *[_CHANGES] * changes)
        if all(0 <= total <= _MOST for total in itertools.accumulate(numbers))
    ]


def _problem(numbers: tuple[int, ...], generator: random.Random) -> Problem:
    changes = [f"{'get' if change > 0 else 'lose'} {abs(change)}" for change in numbers[1:]]
    totals = list(itertools.accumulate(numbers))
    steps = [_step(before, change) for before, change in zip(totals, numbers[1:], strict=False)]
    question = generator.choice(_WORDINGS).format(numbers[0], ", ".join(changes))
    return Problem(question, ", ".join(steps), str(totals[-1]))


def _step(before: int, change: int) -> str:
    return f"{before} {'+' if change > 0 else '-'} {abs(change)} = {before + change}"
