"""Every measure in one place: its name, unit, formula, source, and its name in open-unlearning's TOFU_EVAL.json."""

import re
from dataclasses import dataclass

FORGET, RETAIN, THINK = "forget", "retain", "think"
"""Names of data sources that fix a role; of `think` it is the thoughts and answers that models write."""


@dataclass(frozen=True)
class Measure:
    """What a figure means. L is the NLL of a token in nats, a row's mean runs over its answer tokens.

    `key`: its name in TOFU_EVAL.json, with {data} for the data source; `forget_key`: where that source is `forget`.
    `entry`: which entry of a row in `value_by_index` is its value. `shown`: whether tables show it.
    """

    name: str
    title: str
    unit: str
    formula: str
    source: str
    key: str
    forget_key: str = ""
    entry: str = "score"
    shown: bool = True

    def key_for(self, data: str) -> str:
        """Its name in TOFU_EVAL.json for a data source."""
        return self.forget_key if data == FORGET and self.forget_key else self.key.format(data=data)


_TOFU = "TOFU, arXiv 2401.06121, as in open-unlearning"
_LEAK = re.compile(r"leak@([1-9]\d*)")

MEASURES = (
    Measure(
        "capped_loss",
        "capped answer loss",
        "nats",
        "mean over rows of the row's mean of min(L, ln(vocabulary))",
        "this project",
        "{data}_capped_answer_loss",
    ),
    Measure("nll", "answer NLL", "nats", "mean over rows of the row's mean of L", "usual", "{data}_answer_nll"),
    Measure(
        "token_probability",
        "token probability",
        "0 to 1",
        "mean over rows of the row's mean of exp(−L)",
        "this project",
        "{data}_token_probability",
    ),
    Measure(
        "row_probability",
        "row probability",
        "0 to 1",
        "mean over rows of exp(−the row's mean of L)",
        _TOFU,
        "{data}_Q_A_Prob",
        entry="prob",
    ),
    Measure(
        "accuracy",
        "token accuracy",
        "0 to 1",
        "mean over rows of the share of answer tokens that greedy decoding would choose behind the true ones",
        "exact memorization, arXiv 2205.10770, as in open-unlearning",
        "{data}_exact_memorization",
        "exact_memorization",
    ),
    Measure(
        "perplexity",
        "perplexity",
        "1 and above",
        "exp(mean of L over all predicted tokens of all text rows)",
        "usual",
        "{data}_perplexity",
        entry="avg_loss",
    ),
    Measure(
        "truth_ratio",
        "truth ratio",
        "0 to 1",
        "R = exp(−mean NLL of the wrong answers)/exp(−NLL of the right one); forget: mean over rows of min(R, 1/R); "
        "other data: mean of max(0, 1 − R)",
        _TOFU,
        "{data}_Truth_Ratio",
        "forget_truth_ratio",
    ),
    Measure(
        "paraphrased_probability",
        "row probability, paraphrased answers",
        "0 to 1",
        "row probability of `paraphrased_answer`",
        _TOFU,
        "{data}_Q_A_PARA_Prob",
        entry="prob",
        shown=False,
    ),
    Measure(
        "perturbed_probability",
        "row probability, wrong answers",
        "0 to 1",
        "row probability of each `perturbed_answer`, mean over a row's",
        _TOFU,
        "{data}_Q_A_PERT_Prob",
        entry="prob",
        shown=False,
    ),
    Measure(
        "forget_quality",
        "forget quality",
        "p-value",
        "two-sample Kolmogorov–Smirnov test of R per row against the reference model's",
        _TOFU,
        "{data}_forget_quality",
        "forget_quality",
    ),
    Measure(
        "rouge",
        "ROUGE-L recall",
        "0 to 1",
        "mean over rows of the longest common subsequence of greedy and true answer, in words of the true one",
        _TOFU + ", by the rouge-score package with stemming",
        "{data}_Q_A_ROUGE",
        entry="rougeL_recall",
    ),
    Measure(
        "think_format",
        "think format",
        "0 to 1",
        "share of generations with exactly one opened and closed thought, an answer behind it, and no loop",
        "this project",
        "{data}_think_format",
    ),
    Measure(
        "thinking_mean",
        "thinking length, mean",
        "tokens",
        "mean over generations with a thought of the tokens between its tags",
        "usual",
        "{data}_thinking_mean",
    ),
    Measure(
        "thinking_median",
        "thinking length, median",
        "tokens",
        "median of the same",
        "usual",
        "{data}_thinking_median",
    ),
    Measure(
        "unclosed_rate",
        "thought not closed",
        "0 to 1",
        "share of generations whose thought is still open where they end: cut off, no answer",
        "this project",
        "{data}_unclosed_rate",
    ),
    Measure(
        "stop_rate", "stop rate", "0 to 1", "share of generations that an end token ends", "usual", "{data}_stop_rate"
    ),
    Measure(
        "loop_rate",
        "loop rate",
        "0 to 1",
        "share of generations whose last tokens repeat with a period of at most 16, up to the limit",
        "this project",
        "{data}_loop_rate",
    ),
    Measure(
        "answer_accuracy",
        "answer accuracy",
        "0 to 1",
        "share of generations whose answer passes the row's `check`",
        "usual",
        "{data}_answer_accuracy",
    ),
    Measure(
        "compliance",
        "instruction compliance",
        "0 to 1",
        "share of generations whose answer obeys every instruction of the row (`instruction_check`, "
        "`instruction_id_list`)",
        "IFEval, arXiv 2311.07911, prompt level, strict",
        "{data}_compliance",
    ),
    Measure(
        "right_and_compliant",
        "right and compliant",
        "0 to 1",
        "share of generations that pass both, of rows that have both",
        "this project",
        "{data}_right_and_compliant",
    ),
    Measure(
        "think_kl",
        "KL at thinking tokens",
        "nats",
        "mean over rows of the row's mean of KL(p ‖ q) of the next-token distributions at the tokens of its thought, "
        "tags included; p of the model compared with, q of this one",
        "RAIN, arXiv 2602.22538 (L_think)",
        "{data}_think_kl",
    ),
    Measure(
        "answer_kl",
        "KL behind the thought",
        "nats",
        "the same of the first tokens behind the closing tag",
        "this project",
        "{data}_answer_kl",
    ),
)
"""In the order of tables. `leak@k` has a name for each k: see `measure`."""


def measure(name: str) -> Measure:
    """The measure of that name; a name that is no measure of ours stands for itself, as it came from a file."""
    for each in MEASURES:
        if each.name == name:
            return each
    if _LEAK.fullmatch(name):
        return leak(name.removeprefix("leak@"))
    return Measure(name, name, "", "", "", name)


def leak(k: str) -> Measure:
    """Leakage among k sampled answers."""
    return Measure(
        f"leak@{k}",
        f"leak@{k}",
        "0 to 1",
        "mean over rows of Σ_{j=k}^{n} C(j−1, k−1)/C(n, k) · s_(j), s_(1) ≤ … ≤ s_(n) the ROUGE-L recalls of n sampled "
        "answers: the best of k, expected",
        "arXiv 2511.04934",
        f"{{data}}_leak@{k}",
    )


def recognised(key: str) -> tuple[str, Measure] | None:
    """Data source and measure of a name in TOFU_EVAL.json; None for those that are computed elsewhere only."""
    found = re.fullmatch(rf"(.+)_({_LEAK.pattern})", key)
    if found:
        return found[1], measure(found[2])
    for each in MEASURES:
        if key == each.forget_key:
            return FORGET, each
        suffix = each.key.removeprefix("{data}")
        if key.endswith(suffix) and key != suffix:
            return key.removesuffix(suffix), each
    return None


def order(names: set[str]) -> list[str]:
    """Measures in the order of tables: those of the catalogue, then leak@k by k, then others by name."""
    known = [each.name for each in MEASURES]
    leaks = sorted((name for name in names if _LEAK.fullmatch(name)), key=lambda name: int(name[5:]))
    rest = sorted(names - set(known) - set(leaks))
    return [name for name in known if name in names] + leaks + rest
