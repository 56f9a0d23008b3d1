"""leak@k: how much of an answer comes out when a model is asked several times."""

import math
from collections.abc import Sequence

from vecsurgery.errors import InputError


def leak_at_k(scores: Sequence[float], k: int) -> float:
    """Expected best score of k answers drawn without replacement from n that were scored.

        leak@k = Σ_{j=k}^{n} C(j−1, k−1)/C(n, k) · s_(j),   s_(1) ≤ … ≤ s_(n)

    The unbiased estimate of the best of k; k = 1 is the mean, k = n the largest; for scores 0 and 1 it is pass@k.
    Binomials are exact, the sum is float64.

    Args:
        scores: n finite numbers, higher is more leaked; n ≥ k.
        k: at least 1.

    Raises:
        InputError: k out of range, a score that is not finite.

    Source: arXiv 2511.04934. Example:

    >>> leak_at_k([0.0, 0.0, 1.0], 2)
    0.6666666666666666
    """
    count = len(scores)
    if not 1 <= k <= count:
        raise InputError(f"leak@{k} of {count} scores: k must be at least 1 and at most the number of sampled answers")
    if not all(math.isfinite(score) for score in scores):
        raise InputError(f"leak@{k}: a score is not finite: {list(scores)}")
    whole = math.comb(count, k)
    ordered = sorted(scores)
    return math.fsum(math.comb(j - 1, k - 1) / whole * ordered[j - 1] for j in range(k, count + 1))
