"""Every number of the reasoning demo's training, in one place.

They were fixed on the first seed, before a model of any other was trained.
"""

from dataclasses import dataclass, field

from vecsurgery.demo.training import Course


@dataclass(frozen=True)
class Settings:
    """Size of the models, and the three courses: the base on plain text and turns, the others from the base on turns.

    `times`: how often each training problem is asked, anew with or without an instruction.
    """

    vocabulary: int = 512
    context: int = 128
    hidden: int = 96
    intermediate: int = 256
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2

    base: Course = field(default_factory=lambda: Course(steps=1500, batch=32, rate=3e-3, warm_up=40, other_weight=1.0))
    reasoning: Course = field(
        default_factory=lambda: Course(steps=400, batch=32, rate=5e-4, warm_up=20, other_weight=0.1)
    )
    instruct: Course = field(
        default_factory=lambda: Course(steps=200, batch=32, rate=3e-4, warm_up=20, other_weight=0.1)
    )
    times: int = 4

    threads: int = 1
