"""Greedy continuation of prompts by layer streaming: key-value caches propose, passes without them decide."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from vecsurgery.checkpoint import skeleton
from vecsurgery.errors import InputError, NotFiniteError
from vecsurgery.progress import Progress, silent

from .batches import make_batches
from .head import scored
from .loading import Compute, Parts, compute_dtype
from .model import FAULTS, StreamedModel, context_length
from .variants import Variants

HELD_BYTES = 1 << 30
"""Models whose variants have fewer bytes in float32 are read once and held; larger ones are read in every pass."""
_TRIED = 2
"""New tokens after which the caches are tested for the first time: the second is the first that depends on them."""


def greedy(
    variants: Variants,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int = 64,
    stop: Collection[int] = (),
    compute: Compute = "float32",
    stage: str = "generating",
    progress: Progress = silent,
) -> list[list[list[int]]]:
    """The most probable next token, again and again: what `generate(do_sample=False)` of transformers continues with.

    Each pass over the blocks makes one token of every prompt under every variant. It feeds the last token only, beside
    transformers' key-value cache. The caches only propose: after two tokens and at the end, a pass over the whole
    sequences without a cache tests every proposed token and makes one more. A token that is not the most probable one
    in its place (within √ε nats, the rounding of the arithmetic) is replaced, and from there on every token is made
    without a cache. So architectures that do not work with the cache are slower and never wrong.

    No padding: sequences are batched by equal length. Memory is that of one block of all variants, of the caches and of
    the head's rows at hand; models of less than 1 GB in float32, all variants together, are held and read once. Larger
    ones are read once in every pass.

    Args:
        variants: the models; each continues every prompt by itself.
        prompts: token ids, one or more each.
        tokens: how many new tokens at most; fewer where prompt and continuation fill the model's context.
        stop: ids that end a continuation; the one that did is its last.
        compute: "float32", or "stored" for arithmetic in the configuration's type.

    Returns:
        The new ids, [variant][prompt].

    Raises:
        InputError: an empty prompt, one longer than the model's context, an id that the embedding does not have.
        NotFiniteError: logits that are NaN or infinite.
        UnsupportedError: an architecture that does not replay exactly.
    """
    context = context_length(variants.config)
    rows = [
        [_Sequence(variant, tuple(prompt), _room(number, len(prompt), tokens, context), frozenset(stop))
         for number, prompt in enumerate(prompts)]
        for variant in range(variants.count)
    ]  # fmt: skip
    every = [sequence for own in rows for sequence in own]
    if any(not sequence.ended for sequence in every):
        model = StreamedModel(variants, prompts, compute=compute, hold_below=HELD_BYTES)
        tie = torch.finfo(compute_dtype(variants, compute)).eps ** 0.5
        told = 0.0

        def tell(part: float) -> None:
            nonlocal told
            made = min((len(each.new) for each in every if not each.finished), default=tokens)
            # A token is no more than one, however many passes it takes, and one that was wrong was made all the same.
            told = max(told, min(made + part, tokens))
            progress(stage, told, tokens, "tokens")

        run = _Run(model, every, tie, tell)
        for until in (_TRIED, tokens):
            run.propose(until)
            run.decide()
        while not run.finished:
            run.decide()
        progress(stage, tokens, tokens, "tokens")
    return [[sequence.new for sequence in own] for own in rows]


def _room(number: int, length: int, tokens: int, context: int | None) -> int:
    """How many tokens prompt `number` may be continued by."""
    if not length:
        raise InputError(f"continuing prompt {number}: it has no tokens, expected one at least.")
    if context is not None and length > context:
        raise InputError(
            f"continuing prompt {number}: it has {length} tokens, the model's context {context} "
            "(max_position_embeddings in config.json). Shorten the prompt."
        )
    return tokens if context is None else min(tokens, context - length)


@dataclass
class _Sequence:
    """A prompt under one variant, and what was generated behind it."""

    variant: int
    prompt: tuple[int, ...]
    room: int
    """New tokens at most."""
    stop: frozenset[int]
    new: list[int] = field(default_factory=list)
    decided: int = 0
    """How many of the new tokens are known to be right."""

    @property
    def ids(self) -> tuple[int, ...]:
        return (*self.prompt, *self.new)

    @property
    def ended(self) -> bool:
        return len(self.new) >= self.room or (bool(self.new) and self.new[-1] in self.stop)

    @property
    def finished(self) -> bool:
        return self.ended and self.decided == len(self.new)

    @property
    def open(self) -> bool:
        """Whether a cache may propose its next token: the last one is left to the pass that decides."""
        return not self.ended and len(self.new) < self.room - 1

    @property
    def undecided(self) -> list[int]:
        """The tokens that a cache proposed since the last decision."""
        return self.new[self.decided :]

    def questions(self) -> tuple[tuple[int, ...], int]:
        """What to feed to decide, and the first place of it whose state tells: it scores the first undecided token."""
        return self.ids[:-1] if self.ended else self.ids, len(self.prompt) + self.decided - 1

    def decide(self, best: Sequence[int], missed: Sequence[float], tie: float) -> bool:
        """Replace the first undecided token that is `missed` by more than `tie`, or append the next; whether all were
        right."""
        wrong = next((place for place, _ in enumerate(self.undecided) if missed[place] > tie), None)
        if wrong is not None:
            self.new[self.decided + wrong :] = [best[wrong]]
        elif not self.ended:
            self.new.append(best[-1])
        self.decided = len(self.new)
        return wrong is None


@dataclass
class _Feed:
    """Tokens (batch, length) that go through the blocks of a variant, behind `past` others that its cache knows."""

    variant: int
    ids: Tensor
    cache: Any = None
    past: int = 0


class _InStep:
    """Sequences of one variant that are fed by one cache: at any time the same number of tokens of each.

    What a longer prompt has beyond `length` is fed token by token, while the shorter ones are continued.
    """

    def __init__(self, sequences: Sequence[_Sequence], length: int, cache: Any) -> None:
        self.sequences, self._length, self._cache, self._fed = sequences, length, cache, 0

    @property
    def open(self) -> bool:
        return any(sequence.open for sequence in self.sequences)

    def feed(self) -> _Feed:
        """What comes next: the first `length` ids of each prompt, then one token of each sequence."""
        past, self._fed = self._fed, self._fed + 1 if self._fed else self._length
        # A sequence that has ended is fed its last token until the others have ended, too.
        ids = [each.ids[past : self._fed] or each.ids[-1:] for each in self.sequences]
        return _Feed(self.sequences[0].variant, torch.tensor(ids), self._cache, past)

    def take(self, best: Sequence[int]) -> None:
        """Append the most probable next id to each sequence of which every id was fed."""
        for sequence, token in zip(self.sequences, best, strict=True):
            if sequence.open and len(sequence.ids) == self._fed:
                sequence.new.append(token)


class _Run:
    """The passes over one model that continue some sequences, given in the order of their variants."""

    def __init__(
        self, model: StreamedModel, sequences: Sequence[_Sequence], tie: float, tell: Callable[[float], None]
    ) -> None:
        self._model, self._sequences, self._tie, self._tell = model, sequences, tie, tell
        self._checked = False
        self._batches = self._in_step()

    @property
    def finished(self) -> bool:
        return all(sequence.finished for sequence in self._sequences)

    def propose(self, until: int) -> None:
        """Continue sequences by their caches, until each has `until` new tokens or may have no more."""
        while any(each.open and len(each.new) < until for batch in self._batches for each in batch.sequences):
            open_ones = [batch for batch in self._batches if batch.open]
            try:
                behind = self._through([batch.feed() for batch in open_ones])
            except FAULTS:
                # These blocks cannot be called with this cache: every token is made without one, and a fault that has
                # another cause comes up there again.
                self._batches = []
                return
            sizes = [len(batch.sequences) for batch in open_ones]
            asked = [
                (batch.sequences[0].variant, hidden[:, -1], torch.zeros(size, dtype=torch.int64))
                for batch, hidden, size in zip(open_ones, behind, sizes, strict=True)
            ]
            for batch, (best, _) in zip(open_ones, self._answers(asked), strict=True):
                batch.take(best)

    def decide(self) -> None:
        """Feed whole sequences without a cache: replace the first wrong token of each, or append the next one.

        A wrong token ends the use of caches.
        """
        if self.finished:
            return
        feeds, fed, asked = [], [], []
        for variant, group in groupby(self._unfinished(), lambda each: each.variant):
            own = list(group)
            for batch in make_batches([each.questions()[0] for each in own]):
                feeds.append(_Feed(variant, batch.ids))
                fed.append([own[member] for member in batch.members])
        for feed, hidden, batch_of in zip(feeds, self._through(feeds), fed, strict=True):
            for states, sequence in zip(hidden, batch_of, strict=True):
                ids, first = sequence.questions()
                targets = torch.zeros(len(ids) - first, dtype=torch.int64)
                targets[: len(sequence.undecided)] = torch.tensor(sequence.undecided, dtype=torch.int64)
                asked.append((feed.variant, states[first:], targets))
        decided = [sequence for group in fed for sequence in group]
        for sequence, (best, missed) in zip(decided, self._answers(asked), strict=True):
            if not sequence.decide(best, missed, self._tie):
                self._batches = []

    def _unfinished(self) -> list[_Sequence]:
        return [sequence for sequence in self._sequences if not sequence.finished]

    def _in_step(self) -> list[_InStep]:
        """The open sequences in batches. Where a pass costs next to nothing, those of near lengths share one."""
        batches = []
        for _, group in groupby(self._sequences, lambda each: each.variant):
            own = [sequence for sequence in group if sequence.open]
            near = max((sequence.room for sequence in own), default=0) if self._model.held else 1
            begin = _beginnings([len(sequence.prompt) for sequence in own], near)
            for batch in make_batches([sequence.prompt[: begin[len(sequence.prompt)]] for sequence in own]):
                members = [own[member] for member in batch.members]
                batches.append(_InStep(members, batch.ids.shape[1], self._model.new_cache()))
        return batches

    def _through(self, feeds: Sequence[_Feed]) -> list[Tensor]:
        """The hidden states (batch, length, hidden) behind the last block, of each feed; one pass over the blocks."""
        model = self._model
        model.use(token for feed in feeds for token in feed.ids.flatten().tolist())
        count = len(model.blocks)
        calls: list[list[skeleton.Call]] = []
        hidden: list[Tensor] = []
        for index in range(count):
            parts = model.read_block(index)
            if index == 0:
                self._check(feeds[0], parts)
                for feed in feeds:
                    model.select(feed.variant)
                    calls.append(model.calls(feed.ids, count, cache=feed.cache, past=feed.past))
                    hidden.append(skeleton.hidden_states(calls[-1][0]))
            for variant, numbers in groupby(range(len(feeds)), lambda number: feeds[number].variant):
                with model.holding(parts.of(variant)):
                    for number in numbers:
                        hidden[number] = model.run_block(index, calls[number][index], hidden[number])
            del parts
            self._tell((index + 1) / count)
        return hidden

    def _check(self, feed: _Feed, parts: Parts) -> None:
        """In the first pass, run the first block both ways on a short text."""
        if not self._checked:
            self._model.select(feed.variant)
            self._model.check(feed.ids[0].tolist(), [parts.of(feed.variant)])
            self._checked = True

    def _answers(self, asked: Sequence[tuple[int, Tensor, Tensor]]) -> list[tuple[list[int], list[float]]]:
        """For each (variant, states, ids looked for), in the order of variants: the most probable ids in these places,
        and by how many nats the ids looked for miss them."""
        nothing = (asked[0][1][:0], asked[0][2][:0])
        states, targets = [], []
        for variant in range(self._model.count):
            own = [(states_, ids) for number, states_, ids in asked if number == variant] or [nothing]
            states.append(torch.cat([part for part, _ in own]))
            targets.append(torch.cat([part for _, part in own]))
        scores = scored(self._model, states, targets)
        if not all(bool(own.normaliser.isfinite().all()) for own in scores):
            raise NotFiniteError("continuing prompts: the logits are not finite (NaN or infinity).")
        sizes = [len(ids) for _, _, ids in asked]
        best = torch.split(torch.cat([own.best for own in scores]), sizes)
        missed = torch.split(torch.cat([own.missed for own in scores]), sizes)
        return [(own.tolist(), by.tolist()) for own, by in zip(best, missed, strict=True)]


def _beginnings(lengths: Sequence[int], near: int) -> dict[int, int]:
    """Length of a prompt → how much of it is fed at first: as much as the shortest one that is less than `near` shorter
    than it and no part of a shorter group has."""
    begin: dict[int, int] = {}
    start = 0
    for length in sorted(set(lengths)):
        start = start if start and length - start < near else length
        begin[length] = start
    return begin
