"""Tokenizers and chat templates of real families: added tokens under their real ids, templates in words of our own."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

_MERGES = "t h|< /|< th|i n|in k|Ċ Ċ|> ĊĊ|> Ċ|Ġ t|Ġt h"
"""As the real vocabularies do, these make `<think>` and `</think>` several tokens whose last one takes line breaks."""


@dataclass(frozen=True)
class Words:
    """What a tokenizer says: its added tokens by id, the class it names, and what is put in front of a text."""

    added: dict[int, str]
    kind: str
    eos: str
    bos: str | None = None
    opens: bool = False
    """Whether the tokenizer itself puts BOS in front."""
    template: str | None = None
    model_type: str = "qwen2"


def _numbered(first: int, tokens: str) -> dict[int, str]:
    """Token strings, separated by spaces, under consecutive ids."""
    return dict(enumerate(tokens.split(), first))


_CODE = "<|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>"
_QWEN_SHARED = _numbered(
    151650,
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> "
    f"<tool_call> </tool_call> {_CODE}",
)
"""Ids 151643 to 151649 mean other tokens in Qwen2.5 than in its distillations, these mean the same."""
_QWEN_OWN = "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>"
_R1_OWN = "<｜end▁of▁sentence｜> <｜User｜> <｜Assistant｜> <｜begin▁of▁sentence｜> <|EOT|> <think> </think>"
_R1_BOS, _R1_EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
_PLAIN = frozenset(f"<tool_call> </tool_call> {_CODE} <｜User｜> <｜Assistant｜> <|EOT|> <think> </think>".split(" "))
"""Added tokens that are not special: decoding keeps them."""

QWEN_TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Qwen. You are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
R1_TEMPLATE = (
    "{{ bos_token }}{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}{% for m in messages %}"
    "{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% elif m.role == 'assistant' %}"
    "<｜Assistant｜>{{ m.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{{ '<think>\n' }}{% endif %}"
)
"""BOS in the text, reasoning of earlier turns cut away, and the opening tag in the generation prompt."""
R1_TEMPLATE_AT_FIRST = R1_TEMPLATE.replace("{{ '<think>\n' }}", "")
"""The same as first published: the model writes the opening tag itself."""
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0].role != 'system' %}<|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: {{ strftime_now('%d %b %Y') }}\n\n<|eot_id|>{% endif %}"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_OLMO_TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
OLMO_TEMPLATE = _OLMO_TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
OLMO_THINK_TEMPLATE = _OLMO_TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"

QWEN_WORDS = Words(
    {**_numbered(151643, _QWEN_OWN), **_QWEN_SHARED},
    "Qwen2Tokenizer",
    eos="<|im_end|>",
    template=QWEN_TEMPLATE,
)
R1_QWEN_WORDS = Words(
    {**_numbered(151643, _R1_OWN), **_QWEN_SHARED},
    "LlamaTokenizerFast",
    eos=_R1_EOS,
    bos=_R1_BOS,
    opens=True,
    template=R1_TEMPLATE,
)

_LLAMA_ADDED = {
    **{128011 + index: f"<|reserved_special_token_{3 + index}|>" for index in range(245)},
    **_numbered(
        128000,
        "<|begin_of_text|> <|end_of_text|> <|reserved_special_token_0|> <|reserved_special_token_1|> "
        "<|finetune_right_pad_id|> <|reserved_special_token_2|> <|start_header_id|> <|end_header_id|> <|eom_id|> "
        "<|eot_id|> <|python_tag|>",
    ),
}
LLAMA_WORDS = Words(
    _LLAMA_ADDED,
    "PreTrainedTokenizerFast",
    eos="<|eot_id|>",
    bos="<|begin_of_text|>",
    opens=True,
    template=LLAMA_TEMPLATE,
    model_type="llama",
)
R1_LLAMA_WORDS = Words(
    {
        **_LLAMA_ADDED,
        128000: _R1_BOS,
        128001: _R1_EOS,
        **_numbered(128011, "<｜User｜> <｜Assistant｜> <think> </think> <｜▁pad▁｜>"),
    },
    "LlamaTokenizerFast",
    eos=_R1_EOS,
    bos=_R1_BOS,
    opens=True,
    template=R1_TEMPLATE,
    model_type="llama",
)
_OLMO_ADDED = {100257: "<|endoftext|>", 100264: "<|im_start|>", 100265: "<|im_end|>", 100277: "<|pad|>"}
OLMO_WORDS = Words(_OLMO_ADDED, "GPT2Tokenizer", eos="<|endoftext|>", template=OLMO_TEMPLATE, model_type="olmo3")


def write_words(folder: Path, words: Words) -> Path:
    """The files of a byte-level tokenizer whose added tokens have their real ids; most ids below have no token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(first, second) for first, second in (merge.split() for merge in _MERGES.split("|"))]
    merged = [first + second for first, second in pairs]
    vocabulary = {token: index for index, token in enumerate([*letters, *merged])}
    vocabulary |= {token: index for index, token in words.added.items()}
    tokenizer = Tokenizer(BPE(vocabulary, pairs))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    for index in sorted(words.added):
        token = AddedToken(words.added[index], normalized=False, special=words.added[index] not in _PLAIN)
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    if words.opens and words.bos is not None:
        ids = {token: index for index, token in words.added.items()}
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[words.bos, "$A"], special_tokens=[(words.bos, ids[words.bos])]
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": words.kind,
        "add_bos_token": words.opens,
        "bos_token": words.bos,
        "eos_token": words.eos,
        "unk_token": None,
    }
    if words.template is not None:
        settings["chat_template"] = words.template
    write_json(folder / "tokenizer_config.json", settings)
    return folder


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
