"""What mergekit 0.1.5 declares of its merge methods, as a table: a recipe is checked without importing mergekit.

A test compares it with the installed mergekit. `described` in mergekit.py makes the same of any other version.
"""

from dataclasses import dataclass
from typing import Literal

VERSION = "0.1.5"
"""The version of mergekit that the table is of."""
_ANY = None


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method, under mergekit's name.

    `kind`: a number (which may differ from tensor to tensor), a whole number, a truth value, or any other value, which
    mergekit alone checks. `each`: it has a value for each delta.
    """

    name: str
    kind: Literal["number", "whole", "flag", "other"]
    default: float | bool | str | None = None
    required: bool = False
    each: bool = False


@dataclass(frozen=True)
class Described:
    """A method of mergekit: its parameters but `weight`, and what it takes.

    `base`: what `base_model` is to it. `weighted`: it has the parameter `weight` for each model. `least` and `most`:
    how many models beside the base it takes.
    """

    name: str
    title: str
    source: str | None
    base: Literal["required", "optional", "ignored"]
    weighted: bool
    least: int
    most: int | None
    parameters: tuple[Parameter, ...] = ()


OF_DELTAS = frozenset(
    ["task_arithmetic", "ties", "dare_ties", "dare_linear", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties",
     "sce", "ram", "ramplus_tl"]
)  # fmt: skip
"""Methods that work on differences to the base alone: they are given deltas over a base of zeros."""
DETERMINISTIC = frozenset(
    ["task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties", "sce", "ram", "ramplus_tl", "linear", "slerp",
     "nuslerp", "multislerp", "karcher", "model_stock", "nearswap", "passthrough"]
)  # fmt: skip
"""Methods that draw no random numbers; every other one gets the option `seed`."""
BY_ROWS = frozenset({"task_arithmetic", "linear", "nearswap", "ram", "passthrough"})
"""Methods that treat every entry of a tensor alike, whatever the others are."""
SHARES = frozenset({"density", "gamma", "select_topk"})
"""Parameters that are a share, from 0 to 1."""
MEANINGS = {
    "density": "Share of a delta's entries that is kept.",
    "gamma": "Share of a delta's entries, the largest, that is dropped as outliers.",
    "epsilon": "Of della: how far the probability to keep an entry goes above and below density, by its rank.",
    "ram.epsilon": "Of ram: magnitude above which an entry counts as changed.",
    "ramplus_tl.epsilon": "Of ram: magnitude above which an entry counts as changed.",
    "lambda": "Factor of the merged delta.",
    "normalize": "Divide by the sum of the weights.",
    "rescale": "Give a thinned delta the L1 norm that it had.",
    "int8_mask": "Hold masks in 8 bits, to save memory.",
    "select_topk": "Share of the entries, those that vary most between the deltas, that is merged.",
    "t": "Of slerp: position between into (0) and the other model (1).",
    "nearswap.t": "Of nearswap: entries that differ by no more than this are taken over whole, others by t/difference.",
    "normalize_weights": "Divide the weights by their sum.",
    "eps": "Length below which a vector counts as zero.",
    "nuslerp_row_wise": "Interpolate columns in place of rows, where nuslerp_flatten is false.",
    "nuslerp_flatten": "Interpolate the whole tensor as one vector; rows each by itself otherwise.",
    "filter_wise": "Interpolate each output row by itself.",
    "max_iter": "Most iterations of the mean.",
    "tol": "Length of a step below which the mean is found.",
    "scale": "Factor of the model's weights; unchanged by default.",
    "r": "How much more a delta's own entries count the more of its entries it shares.",
    "alpha": "Most that the ratio of shared to own entries counts for.",
}
"""Parameter, or method and parameter → what it does, in a sentence."""
_THINNED = (Parameter("density", "number", 1.0, each=True),)
_GAMMA = (*_THINNED, Parameter("gamma", "number", 0.01, each=True))
_EPSILON = (*_THINNED, Parameter("epsilon", "number", 0.15, each=True))


def _arithmetic(
    name: str, title: str, paper: str, more: tuple[Parameter, ...], *, normalize: bool = False, rescale: bool = False
) -> Described:
    """One of the methods that differ in how they thin deltas and whether they elect signs."""
    flags = {"int8_mask": False, "normalize": normalize, "rescale": rescale}
    shared = (*(Parameter(flag, "flag", value) for flag, value in flags.items()), Parameter("lambda", "number", 1.0))
    return Described(name, title, f"https://arxiv.org/abs/{paper}", "required", True, 0, _ANY, (*shared, *more))


TABLE = (
    _arithmetic("task_arithmetic", "Task Arithmetic", "2212.04089", _THINNED),
    _arithmetic("ties", "TIES", "2306.01708", _THINNED, normalize=True),
    _arithmetic("dare_ties", "DARE TIES", "2311.03099", _THINNED, rescale=True),
    _arithmetic("dare_linear", "Linear DARE", "2311.03099", _THINNED, rescale=True),
    _arithmetic("breadcrumbs", "Model Breadcrumbs", "2312.06795", _GAMMA),
    _arithmetic("breadcrumbs_ties", "Model Breadcrumbs with TIES", "2312.06795", _GAMMA),
    _arithmetic("della", "DELLA", "2406.11617", _EPSILON, normalize=True, rescale=True),
    _arithmetic("della_linear", "Linear DELLA", "2406.11617", _EPSILON, rescale=True),
    Described(
        "sce", "SCE", "https://arxiv.org/abs/2408.07990", "required", False, 0, _ANY,
        (Parameter("int8_mask", "flag", False), Parameter("select_topk", "number", 1.0)),
    ),
    Described(
        "ram", "Reinforced Agent Merging", "https://arxiv.org/abs/2601.13572", "required", False, 0, _ANY,
        (Parameter("epsilon", "number", 1e-5),),
    ),
    Described(
        "ramplus_tl", "Reinforced Agent Merging Plus (Tensor-Local)", "https://arxiv.org/abs/2601.13572",
        "required", False, 0, _ANY,
        (Parameter("r", "number", 0.1), Parameter("alpha", "number", 0.2), Parameter("epsilon", "number", 1e-5)),
    ),
    Described(
        "linear", "Linear", "https://arxiv.org/abs/2203.05482", "ignored", True, 1, _ANY,
        (Parameter("normalize", "flag", True),),
    ),
    Described(
        "slerp", "SLERP", "https://en.wikipedia.org/wiki/Slerp", "required", False, 1, 1,
        (Parameter("t", "number", required=True),),
    ),
    Described(
        "nuslerp", "NuSLERP", None, "optional", True, 2, 2,
        (Parameter("nuslerp_row_wise", "flag", False), Parameter("nuslerp_flatten", "flag", True)),
    ),
    Described(
        "multislerp", "Multi-SLERP", "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
        "optional", True, 1, _ANY, (Parameter("normalize_weights", "flag", True), Parameter("eps", "number", 1e-8)),
    ),
    Described(
        "karcher", "Karcher Mean", "https://arxiv.org/abs/2603.04972", "ignored", False, 1, _ANY,
        (Parameter("max_iter", "whole", 10), Parameter("tol", "number", 1e-5)),
    ),
    Described(
        "model_stock", "Model Stock", "https://arxiv.org/abs/2403.19522", "required", False, 2, _ANY,
        (Parameter("filter_wise", "flag", False),),
    ),
    Described("arcee_fusion", "Arcee Fusion", "https://arcee.ai", "required", False, 1, 1),
    Described(
        "nearswap", "NearSwap", "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001", "required",
        False, 1, 1, (Parameter("t", "number", required=True),),
    ),
    Described(
        "passthrough", "Passthrough", None, "ignored", False, 1, 1,
        (Parameter("scale", "number", None, each=True),),
    ),
)  # fmt: skip
"""Every method of that version."""
