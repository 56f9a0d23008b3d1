"""Libraries that only some measures need: imported when those are asked for, named plainly where they are missing."""

import importlib
from collections.abc import Sequence
from typing import Any

from vecsurgery.errors import InputError


def require(module: str, package: str, purpose: str, extra: str = "evaluation") -> Any:
    """The module, imported. Raises InputError naming the package and the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{purpose} needs the package {package}, which is not installed ({error}); "
            f"install it (pip install {package}), or vecsurgery with its extra `{extra}`"
        ) from error


def rouge_recall(answers: Sequence[str], expected: Sequence[str]) -> list[float]:
    """ROUGE-L recall of each answer: the longest common subsequence of words, as a share of the expected words.

    Words are what rouge-score makes of the texts with stemming: runs of a–z and 0–9 in lower case, so that texts in
    other scripts have none and score 0. Raises InputError where the package is missing.
    """
    scorer = require("rouge_score.rouge_scorer", "rouge-score", "ROUGE").RougeScorer(["rougeL"], use_stemmer=True)
    return [
        float(scorer.score(target, answer)["rougeL"].recall) for answer, target in zip(answers, expected, strict=True)
    ]


def forget_quality(ratios: Sequence[float], reference: Sequence[float]) -> float:
    """p-value of the two-sample Kolmogorov–Smirnov test that truth ratios per row come from one distribution.

    Near 1: the model cannot be told by them from the reference, one that never saw the data; near 0: it can.
    Raises InputError where scipy is missing or a list is empty. Source: TOFU, arXiv 2401.06121.
    """
    if not ratios or not reference:
        raise InputError("forget quality: no truth ratio of a row; the forget rows need `perturbed_answer`")
    stats = require("scipy.stats", "scipy", "forget quality")
    return float(stats.ks_2samp(ratios, reference).pvalue)
