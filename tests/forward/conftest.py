"""Tiny models in memory whose reads are counted, and what their own forward sees at every site."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import models
from torch import Tensor

from vecsurgery.calibration.types import Sample
from vecsurgery.checkpoint import trace_layout

_BLOCK = {"vocab_size": 160, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", {**_BLOCK, "num_hidden_layers": 3, "num_key_value_heads": 2, "num_local_experts": 4}),
    "jamba": (
        "JambaConfig",
        {
            **_BLOCK,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "num_experts": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_d_conv": 2,
            "use_mamba_kernels": False,
            "pad_token_id": 0,
        },
    ),
    "bloom": ("BloomConfig", {"vocab_size": 160, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
}


class Counted:
    """Weights over stored tensors; `reads` counts whole and partial reads of each."""

    def __init__(self, config: Any, tensors: dict[str, Tensor]) -> None:
        self.config = config
        self.tensors = tensors
        headers = {
            name: (str(value.dtype).removeprefix("torch."), tuple(value.shape)) for name, value in tensors.items()
        }
        self.layout = trace_layout(config, headers)
        self.fingerprint = "fingerprint"
        self.reads: Counter[str] = Counter()

    def read(self, tensor: str, rows: slice | Tensor | None = None) -> Tensor:
        self.reads[tensor] += 1
        return self.tensors[tensor] if rows is None else self.tensors[tensor][rows]


class Tiny:
    """A random model in memory and its weights as a file holds them."""

    def __init__(self, architecture: str, folder: Any, dtype: torch.dtype = torch.float32) -> None:
        if architecture in MORE:
            import transformers

            name, fields = MORE[architecture]
            config = getattr(transformers, name)(**fields)
        else:
            config = models.config(architecture)
        models.model(config, seed=1, dtype=dtype).save_pretrained(folder)
        self.folder = folder
        self.model = self.loaded(dtype)
        self.weights = Counted(self.model.config, load_file(folder / "model.safetensors"))

    def loaded(self, dtype: torch.dtype) -> Any:
        """The model as transformers loads it in this type."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype).eval()

    def seen(self, sample: Sample) -> dict[str, Tensor]:
        """The inputs of every site at the selected positions of one sample, by the model's own forward."""
        layout, seen = self.weights.layout, {}

        def keep(site: str) -> Callable[..., None]:
            def hook(_module: Any, args: Any) -> None:
                seen[site] = args[0].reshape(-1, args[0].shape[-1])[list(sample.positions)].float()

            return hook

        modules = {
            name: layout.tensors[site.tensors[0]].parameter.removesuffix(".weight")
            for name, site in layout.sites.items()
        }
        hooks = [self.model.get_submodule(path).register_forward_pre_hook(keep(site)) for site, path in modules.items()]
        with torch.no_grad():
            self.model(input_ids=torch.tensor([sample.ids]), use_cache=False)
        for hook in hooks:
            hook.remove()
        return seen

    def losses(self, sample: Sample) -> Tensor:
        """Answer losses of one sample by the model's own forward."""
        with torch.no_grad():
            scores = (
                self.model(input_ids=torch.tensor([sample.ids]), use_cache=False).logits[0].double().log_softmax(-1)
            )
        return torch.tensor(
            [-float(scores[place - 1, sample.ids[place]]) for place in sample.answer], dtype=torch.float64
        )


def make_samples(lengths: Sequence[int], *, seed: int = 0) -> list[Sample]:
    """Random samples: every second position up to the last counts, the last third is the answer."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for number, length in enumerate(lengths):
        ids = tuple(torch.randint(0, 160, (length,), generator=generator).tolist())
        answer = tuple(range(length - length // 3, length))
        positions = tuple(range(length - 1, 0, -2))[::-1]
        samples.append(Sample(ids, positions, answer, f"row{number}", f"data.jsonl:{number + 1}"))
    return samples


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """Tiny models by architecture, each made once."""
    made: dict[str, Tiny] = {}

    def get(architecture: str) -> Tiny:
        if architecture not in made:
            made[architecture] = Tiny(architecture, tmp_path_factory.mktemp(architecture))
        made[architecture].weights.reads.clear()
        return made[architecture]

    return get


@pytest.fixture
def samples() -> Callable[..., list[Sample]]:
    return make_samples


@pytest.fixture
def tiny_of_type(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, torch.dtype], Tiny]:
    """A fresh model, of the storage type asked for."""
    return lambda architecture, dtype: Tiny(architecture, tmp_path_factory.mktemp(architecture), dtype)
