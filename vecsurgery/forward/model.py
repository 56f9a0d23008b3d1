"""A model whose blocks are not there: everything outside of them loaded, blocks run from tensors handed in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vecsurgery.checkpoint import skeleton
from vecsurgery.checkpoint.skeleton import Call
from vecsurgery.errors import InputError, UnsupportedError

from .loading import Compute, Loader, Parts, compute_dtype
from .variants import Variants, Versions, held, version

_CHECK_TOKENS = 16
_HEAD_BYTES = 1 << 26
"""Of the head's rows that are held at once."""
FAULTS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""What a module raises where it is not called as it expects."""


class _Enough(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward behind the last block that is wanted."""


def context_length(config: Any) -> int | None:
    """How many tokens the model of a configuration was made for; None where it does not say."""
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)


class StreamedModel:
    """The causal model of some variants, one block at a time; `select` says of which variant it is at the moment.

    Of the embedding only the rows of the given token ids are read, and of those that `use` names later; the head is
    read by rows, when it is needed.

    Args:
        variants: the models.
        ids: sequences of token ids.
        compute: "float32", or "stored" for arithmetic in the configuration's type.
        hold_below: bytes. Where the parameters of all variants are fewer in float32, were none shared, the blocks and
            the head are read once and held: for passes that are many.
    """

    def __init__(
        self,
        variants: Variants,
        ids: Sequence[Sequence[int]],
        *,
        compute: Compute = "float32",
        hold_below: int = 0,
    ) -> None:
        self.count = variants.count
        self._model = cast(Any, skeleton.build(variants.config, dtype=compute_dtype(variants, compute)))
        self._prefix, self.blocks = skeleton.decoder_blocks(self._model)
        self._modules = dict(self._model.named_modules())
        self._takes_positions = "position_ids" in inspect.signature(self._model.forward).parameters
        self.context = context_length(variants.config)
        self._loader = Loader(variants, self._model)
        self._returns_tuple = False
        self._selected: int | None = None
        self.held = self._loader.float32_bytes() * self.count < hold_below
        """Whether blocks and head are held once they were read."""
        self._blocks: dict[int, Parts] = {}
        self._heads: dict[int, Callable[[int], None]] = {}
        self._used = torch.empty(0, dtype=torch.int64)
        self._table: Versions | None = None
        self._embedding = self._embedding_by_rows()
        self.use(token for sequence in ids for token in sequence)
        inside = f"{self._prefix}."
        outside = [name for name in self._loader.names() if not name.startswith(inside) and name != self._embedding]
        head = _module_name(self._model, self._model.get_output_embeddings())
        self._head_names = [name for name in outside if head and name.startswith(f"{head}.")]
        self._outside = self._loader.read(name for name in outside if name not in self._head_names)
        if self.held:
            self._outside.hold(self.count)
        self.select(0)

    @property
    def varied_outside(self) -> bool:
        """Whether the variants differ before their first block, or in what stands behind the last but the head."""
        return self._outside.varied or callable(self._table)

    @property
    def architecture(self) -> str:
        """`model_type` of the configuration."""
        return str(self._model.config.model_type)

    def attend_by(self, name: str) -> None:
        """Attend through the function that transformers' registry has under this name. Errors: ValueError."""
        self._model.set_attn_implementation(name)

    def select(self, variant: int) -> None:
        """Put the parameters outside of blocks and head of this variant in place."""
        if self._selected is not None and (variant == self._selected or not self.varied_outside):
            return
        self._install(self._outside.of(variant))
        self._install_table(variant)
        self._selected = variant

    def use(self, ids: Iterable[int]) -> None:
        """Read the embedding rows of those of these token ids that were not read before.

        From the second call on, the rows in use are made for every variant and kept.

        Raises:
            InputError: an id that the embedding has no row for.
        """
        new = torch.tensor(sorted(set(ids) - set(self._used.tolist())), dtype=torch.int64)
        if not len(new):
            return
        embedding = self._model.get_input_embeddings()
        count = getattr(embedding, "num_embeddings", None)
        if count is not None and (int(new[0]) < 0 or int(new[-1]) >= count):
            raise InputError(
                f"the samples have token ids {int(new[0])} to {int(new[-1])}, the model's embedding has {count} rows: "
                "they were made with another tokenizer."
            )
        self._used, order = torch.cat([self._used, new]).sort()
        if self._embedding is None:
            return
        rows = cast(Versions, self._loader.rows(self._embedding, new))
        self._table = rows if self._table is None else _joined(self._table, rows, order, self.count)
        if self._selected is not None:
            self._install_table(self._selected)

    def read_block(self, index: int) -> Parts:
        """The parameters of one block; safe to call from another thread."""
        if index in self._blocks:
            return self._blocks[index]
        parts = self._loader.read(self._loader.names(f"{self._prefix}.{index}."))
        if self.held:
            self._blocks[index] = parts.hold(self.count)
        return parts

    def new_cache(self) -> Any:
        """An empty key-value cache, as transformers' own `generate` makes it; the blocks that are run fill it."""
        from transformers import DynamicCache

        return DynamicCache(config=self._model.config.get_text_config(decoder=True))

    def calls(self, ids: Tensor, count: int, *, cache: Any = None, past: int = 0) -> list[Call]:
        """What the first `count` blocks are called with for a batch (batch, length) of token ids.

        `cache`: of the blocks run on the `past` tokens before these.
        """
        inputs = _inputs(ids) if cache is None else self._cached_inputs(ids, cache, past)
        return skeleton.block_calls(self._model, self.blocks, inputs, returns_tuple=self._returns_tuple, count=count)

    @contextmanager
    def holding(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """While open, the module has these parameters (by full name)."""
        before = {}
        for name in tensors:
            slots, attribute = self._slot(name)
            before[name] = slots[attribute]
        self._install(tensors)
        try:
            yield
        finally:
            self._install(before)

    def run_block(self, index: int, call: Call, hidden: Tensor) -> Tensor:
        """The hidden states behind a block that is held, called as `call` says on the hidden states before it."""
        args, kwargs = skeleton.with_hidden(call, hidden)
        with torch.no_grad():
            return skeleton.hidden_result(self.blocks[index](*args, **kwargs))

    def check(self, ids: Sequence[int], loaded: Sequence[Mapping[str, Tensor]]) -> None:
        """Run a short text through the first blocks, whose parameters are `loaded`, both ways: replayed block by block,
        and in one forward of the model.

        Raises:
            UnsupportedError: the two differ, so this architecture cannot be streamed. States that are not finite in
                both ways are equal: what comes of them is told by whoever asks for the result.
        """
        batch = torch.tensor([list(ids[:_CHECK_TOKENS])])
        try:
            expected = self._forward_through(batch, loaded)
            replayed = self._replay(batch, loaded)
        except FAULTS as fault:
            raise UnsupportedError(
                f"{type(self._model).__name__}: its first blocks cannot be run one by one ({fault!r}). This "
                "architecture is not supported."
            ) from fault
        for index, (hidden, wanted) in enumerate(zip(replayed, expected, strict=True)):
            if not torch.allclose(hidden, wanted, rtol=0.0, atol=0.0, equal_nan=True):
                raise UnsupportedError(
                    f"{type(self._model).__name__}: replayed alone, block {index} differs from the model's own forward "
                    f"by {float((hidden - wanted).abs().max()):.3g}. This architecture is not supported."
                )

    @property
    def reads_head_by_rows(self) -> bool:
        """Whether runs of the head's rows can be read alone."""
        sizes = {self._loader.length(name) for name in self._head_names}
        return len(sizes) == 1 and all(self._by_rows(name) for name in self._head_names)

    def head_rows(self) -> Iterator[tuple[int, int]]:
        """The vocabulary in runs [start, stop) whose rows of the head are held at once; read each before `logits`."""
        sizes = {self._loader.length(name) for name in self._head_names}
        if not self.reads_head_by_rows:
            yield 0, max(sizes, default=0)
            return
        (total,) = sizes
        step = max(1, _HEAD_BYTES // max(self._loader.row_bytes(name) for name in self._head_names))
        for start in range(0, total, step):
            yield start, min(start + step, total)

    def read_head(self, start: int, stop: int) -> Callable[[int], None]:
        """Read these rows of the head; the function that puts those of a variant in place."""
        if start not in self._heads:
            place = self._read_head(start, stop)
            if not self.held:
                return place
            self._heads[start] = place
        return self._heads[start]

    def _read_head(self, start: int, stop: int) -> Callable[[int], None]:
        if not all(self._by_rows(name) for name in self._head_names):
            parts = self._loader.read(self._head_names)
            if self.held:
                parts.hold(self.count)
            return lambda variant: self._install(parts.of(variant))
        rows = {name: cast(Versions, self._loader.rows(name, slice(start, stop))) for name in self._head_names}
        if self.held:
            rows = {name: held(part, self.count) for name, part in rows.items()}
        return lambda variant: self._install({name: version(part, variant) for name, part in rows.items()})

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's own norm, head and caps on states (n, hidden) behind the last block: (n, rows of the head).

        The head has the rows that were put in place last: what comes behind it treats every logit alike.
        """
        last = len(self.blocks) - 1
        states = hidden.unsqueeze(0)

        def stand_in(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            result = states if index == last else skeleton.hidden_states((args, kwargs))
            return (result, None) if self._returns_tuple else result

        # What comes behind the blocks treats every position alike, so any ids of this number do.
        ids = self._used[:1].expand(1, len(hidden))
        with torch.no_grad(), skeleton.replaced_forwards(self.blocks, stand_in):
            output: Tensor = self._model(**_inputs(ids), use_cache=False).logits[0]
        return output

    def _by_rows(self, name: str) -> bool:
        return self._loader.is_plain(name)

    @contextmanager
    def watching(self, functions: Mapping[str, Callable[[Tensor], None]]) -> Iterator[None]:
        """While open, the named linear maps hand each input they get to their function."""

        def hook(function: Callable[[Tensor], None]) -> Callable[..., None]:
            return lambda _module, args, kwargs: function(args[0] if args else kwargs["input"])

        with ExitStack() as stack:
            for name, function in functions.items():
                module = self._modules[name]
                stack.callback(module.register_forward_pre_hook(hook(function), with_kwargs=True).remove)
            yield

    def _replay(self, batch: Tensor, loaded: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
        """Hidden states behind each of the loaded blocks, run one by one."""
        calls = self.calls(batch, len(loaded))
        behind = [skeleton.hidden_states(calls[0])]
        for index, (call, tensors) in enumerate(zip(calls, loaded, strict=True)):
            with self.holding(tensors):
                behind.append(self.run_block(index, call, behind[-1]))
        return behind[1:]

    def _forward_through(self, batch: Tensor, loaded: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
        """Hidden states behind each of the loaded blocks in the model's own forward; learns what a block returns."""
        results: list[Any] = []

        def keep(_module: nn.Module, _args: Any, result: Any) -> None:
            results.append(result)
            if len(results) == len(loaded):
                raise _Enough

        tensors = {name: tensor for block in loaded for name, tensor in block.items()}
        with torch.no_grad(), ExitStack() as stack:
            for block in self.blocks[: len(loaded)]:
                stack.callback(block.register_forward_hook(keep).remove)
            stack.enter_context(suppress(_Enough))
            functional_call(self._model, tensors, kwargs={**_inputs(batch), "use_cache": False})
        self._returns_tuple = isinstance(results[0], tuple)
        return [skeleton.hidden_result(result) for result in results]

    def _embedding_by_rows(self) -> str | None:
        """The parameter of the token embedding, whose module from now on looks ids up among those in use; None where
        its rows cannot be read alone."""
        embedding = self._model.get_input_embeddings()
        name = f"{_module_name(self._model, embedding)}.weight"
        if not isinstance(embedding, nn.Embedding) or not self._loader.is_plain(name):
            return None
        # The row that is padding has another number in the table, and numbers matter for training alone.
        embedding.padding_idx = None
        embedding.register_forward_pre_hook(
            lambda _module, args: (torch.searchsorted(self._used, args[0].contiguous()), *args[1:])
        )
        return name

    def _install_table(self, variant: int) -> None:
        if self._table is not None:
            embedding = self._model.get_input_embeddings()
            embedding.weight = nn.Parameter(version(self._table, variant), requires_grad=False)

    def _cached_inputs(self, ids: Tensor, cache: Any, past: int) -> dict[str, Any]:
        """What `generate` hands to the model's forward: a mask over all tokens, and positions where it takes them."""
        every = past + ids.shape[1]
        inputs = {"attention_mask": ids.new_ones(len(ids), every), "past_key_values": cache, "use_cache": True}
        if self._takes_positions:
            inputs["position_ids"] = torch.arange(past, every).expand(len(ids), -1)
        return {"input_ids": ids, **inputs}

    def _slot(self, name: str) -> tuple[dict[str, Tensor], str]:
        """The dictionary of a module in which a parameter or buffer stands, and its name there."""
        owner, _, attribute = name.rpartition(".")
        module = self._modules[owner]
        return cast(Any, module._buffers if attribute in module._buffers else module._parameters), attribute

    def _install(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            slots, attribute = self._slot(name)
            parameter = isinstance(slots[attribute], nn.Parameter)
            slots[attribute] = nn.Parameter(tensor, requires_grad=False) if parameter else tensor


def _joined(known: Versions, new: Versions, order: Tensor, count: int) -> Versions:
    """Rows known and new of each variant as one table, in this order."""
    if isinstance(known, Tensor) and isinstance(new, Tensor):
        return torch.cat([known, new])[order]
    return held(lambda variant: torch.cat([version(known, variant), version(new, variant)])[order], count)


def _inputs(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _module_name(model: nn.Module, wanted: nn.Module | None) -> str | None:
    return next((name for name, module in model.named_modules() if module is wanted), None)
