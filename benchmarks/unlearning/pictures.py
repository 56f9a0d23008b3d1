"""Two pictures: what forgetting costs along each method's line, and how fast it comes back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.unlearning.tables import Found, compared

_TITLES = {"gradient_ascent": "gradient ascent", "grad_diff": "GradDiff", "npo": "NPO", "rmu": "RMU"}
_WHOLE = 1.02
"""Share up to which curves are drawn: all of the raw forgetting."""
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
    """Share of the raw forgetting against retain NLL, a panel an unlearner and seed, up to the whole of it."""
    figure, panels = _panels([(unlearner, f"{_TITLES[unlearner]}, seed {seed}") for unlearner, seed, _ in found], 3)
    for (_, seed, result), panel in zip(found, panels.values(), strict=True):
        start, end = (result["ends"][name]["forget_test"]["capped"] for name in ("original", "raw"))
        for colour, (name, line) in zip(_COLOURS, result["lines"].items(), strict=False):
            points = [
                ((point["forget_test"]["capped"] - start) / (end - start), point["retain_test"]["nll"])
                for point in line["curve"]
            ]
            shown = sorted(point for point in points if point[0] <= _WHOLE)
            if shown:
                panel.plot(*zip(*shown, strict=True), color=colour, marker=".", linewidth=1, label=name)
        panel.axvline(0.9, color="#bbbbbb", linewidth=0.8, zorder=0)
        panel.set_xlim(0, _WHOLE)
        panel.set_ylim(bottom=0)
        if seed == found[0][1]:
            panel.set_ylabel("retain NLL, nats", fontsize=8)
        panel.tick_params(labelsize=7)
    figure.supxlabel("share of the raw forgetting (capped answer loss)", fontsize=8)
    return _saved(figure, panels, path)


def _relearning(found: list[tuple[str, Any]], path: Path) -> Path:
    figure, panels = _panels([(name, _TITLES[name]) for name, _ in found], 2)
    for unlearner, curves in found:
        for colour, (name, curve) in zip(_COLOURS, curves.items(), strict=False):
            points = [(point["step"], point["forget_test"]["capped"]) for point in curve]
            panels[_TITLES[unlearner]].plot(
                *zip(*points, strict=True), color=colour, marker=".", linewidth=1, label=name
            )
    for panel in panels.values():
        panel.set_xlabel("steps of fine-tuning on forget rows of others")
        panel.set_ylabel("capped answer loss, nats")
    return _saved(figure, panels, path)


def _panels(named: list[tuple[str, str]], across: int) -> tuple[Any, dict[str, Any]]:
    """A figure with a panel for each title, `across` of them side by side; title → panel."""
    from matplotlib.figure import Figure

    down = -(-len(named) // across)
    figure = Figure(figsize=(9, 1.0 + (6.6 / across) * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes[len(named) :]:
        axis.set_axis_off()
    for axis, (_, title) in zip(axes, named, strict=False):
        axis.set_title(title, fontsize=9)
    return figure, dict(zip([title for _, title in named], axes, strict=False))


def _saved(figure: Any, panels: dict[str, Any], path: Path) -> Path:
    import matplotlib

    handles, labels = next(iter(panels.values())).get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "path"}):
        figure.savefig(path, metadata={"Date": None})
    return path
