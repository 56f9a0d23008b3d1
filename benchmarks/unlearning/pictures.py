"""Two pictures: what forgetting costs along each method's line, and how fast it comes back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.unlearning.tables import Found, compared

_TITLES = {"gradient_ascent": "gradient ascent", "grad_diff": "GradDiff", "npo": "NPO", "rmu": "RMU"}
_COLOURS = ("#555555", "#b0651d", "#1f6fb2", "#6fb6e0", "#2f8f4e", "#a04d97", "#c0392b")


def draw(seeds: Mapping[int, Found], folder: Path) -> list[Path]:
    """Write the pictures that the results allow, as SVG without dates; returns their files."""
    found = compared(seeds)
    made = [_curves(found, folder / "unlearning-curves.svg")] if found else []
    relearned = [
        (name.removeprefix("relearn/"), curves)
        for results in seeds.values()
        for name, curves in results.items()
        if name.startswith("relearn/")
    ]
    return made + ([_relearning(relearned, folder / "unlearning-relearning.svg")] if relearned else [])


def _curves(found: list[tuple[str, int, Any]], path: Path) -> Path:
    """Share of the raw forgetting against retain NLL, a panel an unlearner, a thin line a seed."""
    figure, panels = _panels([name for name, _, _ in found])
    for unlearner, _, result in found:
        start, end = (result["ends"][name]["forget_test"]["capped"] for name in ("original", "raw"))
        for colour, (name, line) in zip(_COLOURS, result["lines"].items(), strict=False):
            points = [
                ((point["forget_test"]["capped"] - start) / (end - start), point["retain_test"]["nll"])
                for point in line["curve"]
            ]
            panels[unlearner].plot(*zip(*points, strict=True), color=colour, marker=".", linewidth=1, label=name)
    for panel in panels.values():
        panel.axvline(0.9, color="#bbbbbb", linewidth=0.8, zorder=0)
        panel.set_xlim(0, 1.1)
        panel.set_xlabel("share of the raw forgetting (capped answer loss)")
        panel.set_ylabel("retain NLL, nats")
    return _saved(figure, panels, path)


def _relearning(found: list[tuple[str, Any]], path: Path) -> Path:
    figure, panels = _panels([name for name, _ in found])
    for unlearner, curves in found:
        for colour, (name, curve) in zip(_COLOURS, curves.items(), strict=False):
            points = [(point["step"], point["forget_test"]["capped"]) for point in curve]
            panels[unlearner].plot(*zip(*points, strict=True), color=colour, marker=".", linewidth=1, label=name)
    for panel in panels.values():
        panel.set_xlabel("steps of fine-tuning on forget rows of others")
        panel.set_ylabel("capped answer loss, nats")
    return _saved(figure, panels, path)


def _panels(names: list[str]) -> tuple[Any, dict[str, Any]]:
    from matplotlib.figure import Figure

    wanted = list(dict.fromkeys(names))
    figure = Figure(figsize=(9, 3.4 * -(-len(wanted) // 2)), layout="constrained")
    axes = figure.subplots(-(-len(wanted) // 2), 2, squeeze=False).ravel()
    for axis in axes[len(wanted) :]:
        axis.set_axis_off()
    for axis, name in zip(axes, wanted, strict=False):
        axis.set_title(_TITLES.get(name, name), fontsize=10)
    return figure, dict(zip(wanted, axes, strict=False))


def _saved(figure: Any, panels: dict[str, Any], path: Path) -> Path:
    import matplotlib

    handles, labels = next(iter(panels.values())).get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "path"}):
        figure.savefig(path, metadata={"Date": None})
    return path
