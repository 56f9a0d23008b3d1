"""Every number of the demo, in one place. They were fixed before any projector was run on these models."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """World, model, training of the original and the unlearning run.

    `people`: how many there are; `forgotten` of them are to be forgotten, `proxy` of the others may be seen by
    calibration, the rest is left for evaluation. `sentences`: plain sentences, the last `sentences_test` of which are
    left for evaluation. `train_*`: Adam with a linear warm-up and a cosine decay on all tokens, those outside an answer
    with `train_other_weight`. `unlearn_*`: gradient
    ascent by Adam on the answers of the people to forget, over the linear maps of the blocks.
    """

    people: int = 40
    forgotten: int = 8
    proxy: int = 16
    sentences: int = 160
    sentences_test: int = 40

    vocabulary: int = 1024
    context: int = 128
    hidden: int = 96
    intermediate: int = 256
    layers: int = 3
    heads: int = 4
    key_value_heads: int = 2

    train_steps: int = 320
    train_batch: int = 48
    train_rate: float = 3e-3
    train_warm_up: int = 40
    train_other_weight: float = 0.1

    unlearn_steps: int = 20
    unlearn_batch: int = 16
    unlearn_rate: float = 3e-4

    threads: int = 1
