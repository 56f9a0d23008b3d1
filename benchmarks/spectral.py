"""Time of making deltas orthogonal against its own matrix products, and adapters' factors against dense deltas.

    python -m benchmarks.spectral                   # 4096 × 4096, four deltas, rank 256: minutes on 2 cores, 1 GB
    python -m benchmarks.spectral --size 2048 --rank 128

The deltas are random: singular values that fall as i^-1/2 over twice the rank, with noise on them (slow), or entries
that are all noise (flat, at a quarter of the size and rank: there the whole matrix is decomposed). The first table
counts every product that projecting one matrix and adding up the results takes, and repeats these products alone, of
the same shapes and types. Beside it stands a bound that does not depend on how the work is done: for each delta three
passes of subspace iteration (six products of the delta with `rank` columns), then for both stacks their Gram matrix
and one product with a matrix of its size in float64, and the product that adds up, timed as plain products. The second
table projects deltas of rank 16 once as factors and once as dense matrices: the budget is a twentieth. Each job runs
in its own process; best of `--repeats`.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks._common import MEGABYTE, arguments, child, show

if TYPE_CHECKING:
    from vecsurgery.delta import Delta

Product = tuple[tuple[int, int, int], str]
"""(rows, inner, columns) and the type of one product."""

_PASSES = 3


def _deltas(size: int, rank: int, count: int, *, noise: float = 0.0, factored: bool = False) -> "dict[str, Delta]":
    """Random deltas with falling singular values; `rank` of them, and noise where it is given."""
    import torch

    from vecsurgery.delta import Dense, Factored

    generator = torch.Generator().manual_seed(0)
    falling = torch.arange(1, rank + 1) ** -0.5 / size
    deltas: dict[str, Delta] = {}
    for number in range(count):
        left = torch.randn(size, rank, generator=generator) * falling
        right = torch.randn(rank, size, generator=generator)
        pair = Factored(left, right)
        if factored:
            deltas[str(number)] = pair
            continue
        values = pair.dense()
        if noise:
            scale = noise * float(values.square().mean().sqrt())
            values += scale * torch.randn(size, size, generator=generator)
        deltas[str(number)] = Dense(values)
    return deltas


def _best(function: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def _projecting(deltas: "dict[str, Delta]", rank: int) -> Callable[[], Any]:
    """The call that is measured: project the deltas of one matrix, and form their sum."""
    from vecsurgery.editing.sums import summed
    from vecsurgery.projectors.spectral import PROJECTOR

    options = PROJECTOR.options(rank=rank)
    return lambda: summed(PROJECTOR.function(deltas, {}, options=options).deltas.values()).dense()


def _bound(size: int, rank: int, count: int) -> Counter[Product]:
    """Products that follow from the shapes alone: three passes of subspace iteration, the stacks, the sum."""
    stacked = count * rank
    return Counter(
        {
            ((size, size, rank), "float32"): 2 * _PASSES * count,
            ((stacked, size, stacked), "float64"): 2,
            ((size, stacked, stacked), "float64"): 2,
            ((size, stacked, size), "float32"): 1,
        }
    )


def dense(size: int, rank: int, count: int, repeats: int, *, flat: bool = False) -> dict[str, float]:
    """Project dense deltas; then only the products that were seen, on random matrices of the same shapes and types."""
    deltas = _deltas(size, 2 * rank, count, noise=1000.0 if flat else 0.3)
    project = _projecting(deltas, rank)
    products = _recorded(project)
    flops = sum(2 * rows * inner * columns * times for ((rows, inner, columns), _), times in products.items())
    return {
        "project (s)": _best(project, repeats),
        "products (s)": _best(_replay(products), repeats),
        "bound (s)": _best(_replay(_bound(size, rank, count)), repeats),
        "products": float(sum(products.values())),
        "gflop": flops / 1e9,
    }


def low_rank(size: int, rank: int, count: int, repeats: int) -> dict[str, float]:
    """Project deltas of low rank as factors and as dense matrices."""
    from vecsurgery.projectors.spectral import PROJECTOR

    options = PROJECTOR.options(rank=rank)
    factored, dense = (_deltas(size, rank, count, factored=kind) for kind in (True, False))
    return {
        "factored (s)": _best(lambda: PROJECTOR.function(factored, {}, options=options), 5 * repeats),
        "dense (s)": _best(lambda: PROJECTOR.function(dense, {}, options=options), repeats),
    }


def _recorded(function: Callable[[], Any]) -> Counter[Product]:
    """Every matrix product that a call makes, by shape and type."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    found: Counter[Product] = Counter()

    class Recording(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                left, right = args[-2:]
                found[(*left.shape, right.shape[1]), str(left.dtype).removeprefix("torch.")] += 1
            return func(*args, **(kwargs or {}))

    with Recording():
        function()
    return found


def _replay(products: Counter[Product]) -> Callable[[], None]:
    """A call that makes these products and nothing else."""
    import torch

    pairs = []
    for ((rows, inner, columns), dtype), times in products.items():
        kind = getattr(torch, dtype)
        pairs.append((torch.randn(rows, inner, dtype=kind), torch.randn(inner, columns, dtype=kind), times))

    def multiply() -> None:
        for left, right, times in pairs:
            for _ in range(times):
                torch.mm(left, right)

    return multiply


def _dense_row(kind: str, size: int, rank: int, count: int, repeats: int) -> dict[str, Any]:
    """One row of the first table, measured in a process of its own."""
    measured = child(dense, size=size, rank=rank, count=count, repeats=repeats, flat=kind == "flat")
    figures = measured.result
    return {
        "matrix": f"{size} × {size}",
        "spectrum": kind,
        "deltas": count,
        "rank": rank,
        "products": int(figures["products"]),
        "gflop": figures["gflop"],
        "project and add (s)": figures["project (s)"],
        "products alone (s)": figures["products (s)"],
        "ratio": figures["project (s)"] / figures["products (s)"],
        "bound (s)": figures["bound (s)"],
        "to the bound": figures["project (s)"] / figures["bound (s)"],
        "peak anonymous (MB)": measured.anonymous / MEGABYTE,
    }


def main(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Both tables."""
    low = child(low_rank, size=options.size, rank=options.low_rank, count=options.deltas, repeats=options.repeats)
    pair = low.result
    common = {"matrix": f"{options.size} × {options.size}", "deltas": options.deltas}
    return {
        "Dense deltas against their products": [
            _dense_row("slow", options.size, options.rank, options.deltas, options.repeats),
            _dense_row("flat", options.size // 4, options.rank // 4, options.deltas, options.repeats),
        ],
        "Factors against dense matrices": [
            {
                **common,
                "rank": options.low_rank,
                "factored (s)": pair["factored (s)"],
                "dense (s)": pair["dense (s)"],
                "times faster": pair["dense (s)"] / pair["factored (s)"],
            }
        ],
    }


if __name__ == "__main__":
    chosen = arguments(__doc__, size=4096, deltas=4, rank=256, low_rank=16, repeats=2)
    show(main(chosen), as_json=chosen.json)
