"""Replay sees what the model's own forward sees, reads every tensor once, and refuses what it cannot do exactly."""

import dataclasses
import weakref
from collections import defaultdict
from typing import Any

import pytest
import torch
from support import models
from torch import Tensor

from vecsurgery.errors import InputError, UnsupportedError
from vecsurgery.forward import replay

ALL = [*models.CONFIGS, "mixtral", "bloom"]


def observed(weights: Any, samples: Any, **options: Any) -> dict[str, Tensor]:
    rows: dict[str, list[Tensor]] = defaultdict(list)
    options = {"sites": list(weights.layout.sites), **options}
    replay(weights, samples, observe=lambda site, values: rows[site].append(values), **options)
    return {site: torch.cat(values) for site, values in rows.items()}


@pytest.mark.parametrize("architecture", ALL)
def test_replay_gives_the_inputs_of_the_models_own_forward_bit_for_bit(tiny, samples, architecture) -> None:
    model, texts = tiny(architecture), samples([5, 9, 14])
    found = observed(model.weights, texts)
    assert set(found) == set(model.weights.layout.sites)
    expected = [model.seen(sample) for sample in texts]
    for site, rows in found.items():
        assert torch.equal(rows, torch.cat([seen[site] for seen in expected])), site
    assert max(model.weights.reads.values()) == 1


def test_a_mamba_hybrid_is_replayed_up_to_the_rounding_of_its_scan(tiny, samples) -> None:
    # The scan's last bits depend on where its parameters lie in memory, in the model's own forward as well.
    model, (sample,) = tiny("jamba"), samples([9])
    expected = model.seen(sample)
    for site, rows in observed(model.weights, [sample]).items():
        torch.testing.assert_close(rows, expected[site], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3", "mixtral"])
def test_samples_of_one_length_share_a_batch_and_see_the_same(tiny, samples, architecture) -> None:
    model, texts = tiny(architecture), samples([9, 9, 9])
    found = observed(model.weights, texts)
    for site, rows in found.items():
        expected = torch.cat([model.seen(sample)[site] for sample in texts])
        torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-6)


def test_order_of_rows_is_by_length_then_by_sample(tiny, samples) -> None:
    model, texts = tiny("llama"), samples([9, 5, 9])
    site = next(iter(model.weights.layout.sites))
    rows = observed(model.weights, texts, sites=[site])[site]
    expected = torch.cat([model.seen(texts[number])[site] for number in (1, 0, 2)])
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-6)


def test_no_more_than_two_blocks_are_in_memory(tiny, samples) -> None:
    model = tiny("llama")
    weights, alive = model.weights, []

    class Watched:
        layout, config, fingerprint = weights.layout, weights.config, weights.fingerprint

        def read(self, name: str, rows: Any = None) -> Tensor:
            tensor = weights.read(name, rows).clone()
            alive.append((weights.layout.tensors[name].layer, weakref.ref(tensor)))
            layers = {layer for layer, reference in alive if layer is not None and reference() is not None}
            assert len(layers) <= 2
            return tensor

    observed(Watched(), samples([5, 7]), sites=list(weights.layout.sites))


def test_the_pass_ends_behind_the_last_wanted_block(tiny, samples) -> None:
    weights = tiny("llama").weights
    wanted = [site.name for site in weights.layout.sites.values() if site.layer == 1]
    assert set(observed(weights, samples([6]), sites=wanted)) == set(wanted)
    read = {weights.layout.tensors[name].layer for name in weights.reads}
    assert read == {None, 0, 1}
    assert "lm_head.weight" not in weights.reads


def test_blocks_to_skip_are_run_but_not_observed(tiny, samples) -> None:
    weights, done = tiny("llama").weights, []
    everything = observed(weights, samples([6]))
    rest = observed(weights, samples([6]), resume_skip={0, 1}, finished=done.append)
    assert {weights.layout.sites[site].layer for site in rest} == {2}
    assert all(torch.equal(rows, everything[site]) for site, rows in rest.items())
    assert done == [0, 1, 2]


def test_tokens_behind_the_last_selected_position_are_not_fed(tiny, samples) -> None:
    model, (sample,) = tiny("qwen3"), samples([9])
    last = sample.positions[-1]
    longer = dataclasses.replace(sample, ids=(*sample.ids[: last + 1], 10**9))
    short, long = observed(model.weights, [sample]), observed(model.weights, [longer])
    assert all(torch.equal(rows, long[site]) for site, rows in short.items())


def test_samples_without_positions_cost_nothing(tiny, samples) -> None:
    weights = tiny("llama").weights
    empty = [dataclasses.replace(sample, positions=()) for sample in samples([6, 7])]
    assert observed(weights, empty) == {}
    assert not weights.reads


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_bfloat16_weights_compute_in_float32_unless_told(tiny_of_type, samples, architecture) -> None:
    model, texts = tiny_of_type(architecture, torch.bfloat16), samples([9])
    stored = observed(model.weights, texts, compute="stored")
    expected = model.seen(texts[0])
    assert all(torch.equal(rows, expected[site]) for site, rows in stored.items())
    model.model = model.loaded(torch.float32)
    single = observed(model.weights, texts)
    expected = model.seen(texts[0])
    assert all(torch.equal(rows, expected[site]) for site, rows in single.items())


def test_progress_counts_blocks(tiny, samples) -> None:
    told: list[tuple[str, float, float, str]] = []
    observed(tiny("llama").weights, samples([5, 6]), stage="look", progress=lambda *news: told.append(news))
    assert told[0] == ("look", 0.5, 3, "blocks")
    assert told[-1] == ("look", 3.0, 3, "blocks")


def test_an_unknown_site_is_an_error(tiny, samples) -> None:
    with pytest.raises(InputError, match="nowhere"):
        observed(tiny("llama").weights, samples([5]), sites=["nowhere"])


def test_a_token_beyond_the_embedding_is_an_error(tiny, samples) -> None:
    (sample,) = samples([5])
    with pytest.raises(InputError, match="another tokenizer"):
        observed(tiny("llama").weights, [dataclasses.replace(sample, ids=(1, 2, 3, 999, 4))])


def test_nan_in_the_weights_is_an_error(tiny_of_type, samples) -> None:
    weights = tiny_of_type("llama", torch.float32).weights
    weights.tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    with pytest.raises(InputError, match="down_proj"):
        observed(weights, samples([5]))


def test_a_parameter_that_no_tensor_provides_is_refused_by_name(tiny_of_type, samples) -> None:
    model = tiny_of_type("llama", torch.float32)
    tensors = {name: value for name, value in model.weights.tensors.items() if "layers.2.mlp.up_proj" not in name}
    weights = type(model.weights)(model.weights.config, tensors)
    with pytest.raises(UnsupportedError, match=r"model\.layers\.2\.mlp\.up_proj\.weight"):
        observed(weights, samples([5]))


def test_a_model_that_does_not_replay_exactly_is_refused(tiny, samples, monkeypatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    own, calls = LlamaDecoderLayer.forward, []

    def remembering(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return own(self, *args, **kwargs) + 1e-4 * len(calls)

    weights = tiny("llama").weights
    monkeypatch.setattr(LlamaDecoderLayer, "forward", remembering)
    with pytest.raises(UnsupportedError, match="LlamaForCausalLM: replayed alone, block 0 differs"):
        observed(weights, samples([5]))


def test_later_batches_of_a_length_see_what_the_first_saw(tiny, samples) -> None:
    # 2048 tokens make a batch, so these are two; they share one sliding-window mask.
    model, texts = tiny("mistral"), samples([41] * 60)
    site = next(site.name for site in model.weights.layout.sites.values() if site.layer == 2)
    rows = observed(model.weights, texts, sites=[site])[site].view(60, len(texts[0].positions), -1)
    for number in (0, 49, 50, 59):
        torch.testing.assert_close(rows[number], model.seen(texts[number])[site], rtol=1e-5, atol=1e-6)
