"""What `check` found reads as lines about each part, weighty warnings first, and a conclusion."""

import re

from vecsurgery import report

COUNTS = {"rows": 6, "repeats": 0, "samples": 6, "cut": 1, "tokens": 96, "positions": 42, "fingerprint": "5fe0"}


def _found(*warnings):
    facts = {
        "architecture": "llama",
        "blocks": 3,
        "tensors": 30,
        "sites": 12,
        "models": {"into": "org/reasoner"},
        "deltas": {"instruct": "org/instruct − org/base", "skill": "adapter org/lora"},
        "distances": {"instruct": 0.1335},
        "geometry": {"thinking": COUNTS},
        "rows": {"step 'amplify'": COUNTS},
        "vocabulary rows without delta": {"instruct": 2},
    }
    return {"facts": facts, "warnings": list(warnings)}


def _lines(found, **options):
    text = report.check_text(found, **options)
    return dict(re.split(r"  +", line, maxsplit=1) for line in text.splitlines() if "  " in line)


def test_each_part_of_the_recipe_has_a_line():
    lines = _lines(_found())
    assert lines["into"] == "org/reasoner: llama, 3 blocks, 30 tensors, 12 sites (inputs that can be measured)"
    assert lines["delta instruct"].startswith(
        "org/instruct − org/base; into and base differ by 13 % of the base's norm"
    )
    assert lines["delta instruct"].endswith("2 rows of the vocabulary get no delta")
    assert lines["delta skill"] == "adapter org/lora"
    assert lines["geometry thinking"] == "6 rows, 6 samples, 1 cut, 96 tokens, 42 positions"
    assert lines["step 'amplify'"] == lines["geometry thinking"]


def test_the_last_line_concludes():
    assert report.check_text(_found()).endswith("\nNothing speaks against this recipe.\n")
    assert (
        report.check_text(_found("a", "b")).splitlines()[-1].startswith("Nothing makes this recipe impossible; 2 warn")
    )


def test_models_that_are_no_kin_come_before_unknown_tokens():
    data = "geometry 'thinking': 6 of 96 tokens are unknown to the tokenizer"
    kin = "deltas.instruct: RoPE base differs: into has 1, tuned has 2; a delta may not transfer"
    text = report.check_text(_found(data, kin))
    assert text.index(kin) < text.index(data)


def test_reading_the_weights_is_told_only_where_it_was_done():
    assert "all are finite" in re.sub(r"\s+", " ", report.check_text(_found(), weights=True))
    assert "finite" not in report.check_text(_found())
