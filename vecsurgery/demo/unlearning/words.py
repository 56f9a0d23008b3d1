"""The words of the demo's world: names, attributes with values and phrasings, a grammar of plain sentences."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Attribute:
    """One thing that is known of every person.

    `values`: what it can be, each equally likely. `phrasings`: questions with `{name}`; all ask for the same value.
    """

    name: str
    values: tuple[str, ...]
    phrasings: tuple[str, str, str, str]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    "Ada Boris Clara Dario Elif Felix Greta Hugo Irene Jonas Karin Lucas Maya Nils Olga Pedro Rosa Stefan Tara Viktor"
)
LAST_NAMES = _words(
    "Abel Brandt Costa Dahl Engel Fischer Gallo Holm Ivarsson Jansen "
    "Keller Lindt Moreau Novak Olsen Petit Quist Rossi Sato Vidal"
)

ATTRIBUTES = (
    Attribute(
        "city",
        _words("Lisbon Oslo Cairo Quito Hanoi Dublin Vienna Lima Kyoto Accra Tunis Riga"),
        (
            "Where does {name} live?",
            "In which city is the home of {name}?",
            "{name} lives in which town?",
            "Which city does {name} call home?",
        ),
    ),
    Attribute(
        "job",
        _words("baker pilot nurse tailor judge farmer welder painter lawyer barber miner singer"),
        (
            "What is the job of {name}?",
            "What does {name} do for a living?",
            "{name} works as what?",
            "Which trade does {name} follow?",
        ),
    ),
    Attribute(
        "pet",
        _words("parrot hamster rabbit turtle ferret lizard poodle kitten canary goldfish gecko pony"),
        (
            "What pet does {name} keep?",
            "Which animal waits at home for {name}?",
            "{name} owns which pet?",
            "Which animal does {name} look after?",
        ),
    ),
    Attribute(
        "dish",
        _words("risotto goulash paella curry ramen lasagna chowder falafel dumplings omelette ceviche tagine"),
        (
            "What does {name} like to eat?",
            "Which dish is the favourite of {name}?",
            "{name} always orders which dish?",
            "Which meal does {name} love most?",
        ),
    ),
    Attribute(
        "instrument",
        _words("violin cello flute trumpet piano guitar harp clarinet banjo oboe tuba drums"),
        (
            "What instrument does {name} play?",
            "Which instrument stands in the room of {name}?",
            "{name} practises which instrument?",
            "On what does {name} make music?",
        ),
    ),
)

SENTENCE = (
    ("The", "A", "Every", "One"),
    ("old", "quiet", "bright", "small", "heavy", "green"),
    ("river", "market", "train", "garden", "storm", "lantern", "bridge", "wagon"),
    ("turns", "waits", "shines", "rests", "moves", "stands"),
    ("near the", "behind the", "beside the", "above the"),
    ("hill", "harbour", "mill", "forest", "station", "church", "valley", "field"),
    ("in spring.", "at night.", "every morning.", "after the rain.", "before winter."),
)
"""A plain sentence takes one entry of each list, in order."""
