"""A model whose blocks are not there: everything outside of them loaded, blocks run from tensors handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vecsurgery.checkpoint import skeleton
from vecsurgery.checkpoint.skeleton import Call
from vecsurgery.errors import InputError, UnsupportedError

from .loading import Compute, Loader, Parts, compute_dtype
from .variants import Variants, Versions, version

_CHECK_TOKENS = 16
_HEAD_BYTES = 1 << 26
"""Of the head's rows that are held at once."""
_FAULTS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""What a module raises where it is not called as it expects."""


class _Enough(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward behind the last block that is wanted."""


class StreamedModel:
    """The causal model of some variants, one block at a time; `select` says of which variant it is at the moment.

    Of the embedding only the rows of the given token ids are read; the head is read by rows, when it is needed.
    """

    def __init__(self, variants: Variants, ids: Sequence[Sequence[int]], *, compute: Compute = "float32") -> None:
        self.count = variants.count
        self._model = cast(Any, skeleton.build(variants.config, dtype=compute_dtype(variants, compute)))
        self._prefix, self.blocks = skeleton.decoder_blocks(self._model)
        self._modules = dict(self._model.named_modules())
        self._loader = Loader(variants, self._model)
        self._returns_tuple = False
        self._selected: int | None = None
        self._table: Versions | None = None
        embedding = self._load_embedding(torch.tensor(sorted({token for sequence in ids for token in sequence})))
        inside = f"{self._prefix}."
        outside = [name for name in self._loader.names() if not name.startswith(inside) and name not in embedding]
        head = _module_name(self._model, self._model.get_output_embeddings())
        self._head_names = [name for name in outside if head and name.startswith(f"{head}.")]
        self._outside = self._loader.read(name for name in outside if name not in self._head_names)
        self.select(0)

    @property
    def varied_outside(self) -> bool:
        """Whether the variants differ before their first block, or in what stands behind the last but the head."""
        return self._outside.varied or callable(self._table)

    def select(self, variant: int) -> None:
        """Put the parameters outside of blocks and head of this variant in place."""
        if self._selected is not None and (variant == self._selected or not self.varied_outside):
            return
        self._install(self._outside.of(variant))
        if self._table is not None:
            embedding = self._model.get_input_embeddings()
            embedding.weight = nn.Parameter(version(self._table, variant), requires_grad=False)
        self._selected = variant

    def read_block(self, index: int) -> Parts:
        """The parameters of one block; safe to call from another thread."""
        return self._loader.read(self._loader.names(f"{self._prefix}.{index}."))

    def calls(self, ids: Tensor, count: int) -> list[Call]:
        """What the first `count` blocks are called with for a batch (batch, length) of token ids."""
        return skeleton.block_calls(
            self._model, self.blocks, _inputs(ids), returns_tuple=self._returns_tuple, count=count
        )

    @contextmanager
    def holding(self, index: int, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """While open, block `index` has these parameters (by full name)."""
        block, prefix = self.blocks[index], f"{self._prefix}.{index}."
        before = dict(block.named_parameters(remove_duplicate=False)) | dict(
            block.named_buffers(remove_duplicate=False)
        )
        self._install(tensors)
        try:
            yield
        finally:
            self._install({name: before[name.removeprefix(prefix)] for name in tensors})

    def run_block(self, index: int, call: Call, hidden: Tensor) -> Tensor:
        """The hidden states behind a block that is held, called as `call` says on the hidden states before it."""
        args, kwargs = skeleton.with_hidden(call, hidden)
        with torch.no_grad():
            return skeleton.hidden_result(self.blocks[index](*args, **kwargs))

    def check(self, ids: Sequence[int], loaded: Sequence[Mapping[str, Tensor]]) -> None:
        """Run a short text through the first blocks, whose parameters are `loaded`, both ways: replayed block by block,
        and in one forward of the model.

        Raises:
            UnsupportedError: the two differ, so this architecture cannot be streamed.
            InputError: a hidden state is not finite.
        """
        batch = torch.tensor([list(ids[:_CHECK_TOKENS])])
        try:
            expected = self._forward_through(batch, loaded)
            replayed = self._replay(batch, loaded)
        except _FAULTS as fault:
            raise UnsupportedError(
                f"{type(self._model).__name__}: its first blocks cannot be run one by one ({fault!r}). This "
                "architecture is not supported."
            ) from fault
        for index, (hidden, wanted) in enumerate(zip(replayed, expected, strict=True)):
            if not torch.isfinite(wanted).all():
                raise InputError(f"the hidden states behind block {index} are not finite: look for NaN in its weights.")
            if not torch.equal(hidden, wanted):
                raise UnsupportedError(
                    f"{type(self._model).__name__}: replayed alone, block {index} differs from the model's own forward "
                    f"by {float((hidden - wanted).abs().max()):.3g}. This architecture is not supported."
                )

    def head_rows(self) -> Iterator[tuple[int, int]]:
        """The vocabulary in runs [start, stop) whose rows of the head are held at once; read each before `logits`."""
        sizes = {self._loader.length(name) for name in self._head_names}
        if len(sizes) != 1 or not all(self._by_rows(name) for name in self._head_names):
            yield 0, max(sizes, default=0)
            return
        (total,) = sizes
        step = max(1, _HEAD_BYTES // max(self._loader.row_bytes(name) for name in self._head_names))
        for start in range(0, total, step):
            yield start, min(start + step, total)

    def read_head(self, start: int, stop: int) -> Callable[[int], None]:
        """Read these rows of the head; the function that puts those of a variant in place."""
        if not all(self._by_rows(name) for name in self._head_names):
            parts = self._loader.read(self._head_names)
            return lambda variant: self._install(parts.of(variant))
        rows = {name: self._loader.rows(name, slice(start, stop)) for name in self._head_names}
        return lambda variant: self._install(
            {name: version(part, variant) for name, part in rows.items() if part is not None}
        )

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
        ids = self._any_token.expand(1, len(hidden))
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
            with self.holding(index, tensors):
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

    def _load_embedding(self, used: Tensor) -> set[str]:
        """Put the embedding rows of the token ids in use into the module; the parameters that this settles."""
        embedding = self._model.get_input_embeddings()
        self._any_token = used[:1]
        owner = _module_name(self._model, embedding)
        if not isinstance(embedding, nn.Embedding) or not len(used):
            return set()
        if int(used[-1]) >= embedding.num_embeddings or int(used[0]) < 0:
            raise InputError(
                f"the samples have token ids {int(used[0])} to {int(used[-1])}, the model's embedding has "
                f"{embedding.num_embeddings} rows: they were made with another tokenizer."
            )
        name = f"{owner}.weight"
        self._table = self._loader.rows(name, used)
        if self._table is None:
            return set()
        # The row that is padding has another number in the table, and numbers matter for training alone.
        embedding.padding_idx = None
        embedding.register_forward_pre_hook(
            lambda _module, args: (torch.searchsorted(used, args[0].contiguous()), *args[1:])
        )
        return {name}

    def _install(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            owner, _, attribute = name.rpartition(".")
            module = self._modules[owner]
            if attribute in module._buffers:
                module._buffers[attribute] = tensor
            else:
                module._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)


def _inputs(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _module_name(model: nn.Module, wanted: nn.Module | None) -> str | None:
    return next((name for name, module in model.named_modules() if module is wanted), None)
