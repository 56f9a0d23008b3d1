"""The second family: from Ada to the friend, then to the boss: who is it? Facts are known, and followed one by one."""

import itertools
import random

from vecsurgery.demo.reasoning.family import Family, Problem, Problems

_PEOPLE = (
    *("Ada", "Boris", "Clara", "Dario", "Elif", "Felix", "Greta", "Hugo"),
    *("Irene", "Jonas", "Karin", "Lucas", "Maya", "Nils", "Olga", "Pedro"),
)
_RELATIONS = ("friend", "boss", "neighbour", "teacher")
_WORDINGS = ("Who is it, from {0}?", "Go from {0}.", "Tell me whom you find from {0}.", "Start with {0}. Who is it?")


def kin(seed: int) -> Family:
    """Relations of relations, two and three deep; the thought follows them one by one.

    The reasoning model writes both tags itself, each several tokens of text, and turns are marked by words. Qwen2.
    """
    generator = random.Random(f"vecsurgery demo kin {seed}")
    facts = {relation: _permutation(generator) for relation in _RELATIONS}

    def problem(person: str, chain: tuple[str, ...]) -> Problem:
        asked, steps, now = f"{person} to the {' to the '.join(chain)}", [], person
        for relation in chain:
            steps.append(f"{relation} of {now} is {facts[relation][now]}")
            now = facts[relation][now]
        return Problem(generator.choice(_WORDINGS).format(asked), ", ".join(steps), now)

    def every(depth: int) -> list[Problem]:
        return [problem(*each) for each in itertools.product(_PEOPLE, itertools.product(_RELATIONS, repeat=depth))]

    longer = [*every(2), *every(3)]
    generator.shuffle(longer)
    problems = Problems(
        tuple(every(1)), tuple(longer[680:]), tuple(longer[:120]), tuple(longer[120:360]), tuple(longer[360:680])
    )
    wordings = ("The {0} of {1} is {2}.", "{1} has {2} as {0}.", "{0} of {1} is {2}")
    statements = [
        wording.format(relation, person, other)
        for relation in _RELATIONS
        for person, other in facts[relation].items()
        for wording in wordings
    ]
    return Family("kin", problems, tuple(statements), _PEOPLE, ("User: ", "\nAssistant:\n"), False, (), "qwen2")


def _permutation(generator: random.Random) -> dict[str, str]:
    """Everybody's relation: each person is somebody's, nobody is his own."""
    while True:
        others = generator.sample(_PEOPLE, len(_PEOPLE))
        if all(person != other for person, other in zip(_PEOPLE, others, strict=True)):
            return dict(zip(_PEOPLE, others, strict=True))
