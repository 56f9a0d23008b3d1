"""A curve of damage against forgetting as plain text and as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecsurgery.report.pictures import ON_WHITE, require_picture, save
from vecsurgery.report.plain import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_METHOD, _SCALING = "#2f7fd0", "#e8912d"
_HEADS = ["factor", "forgetting", "damage", "capped loss, forget", "p, forget", "NLL, retain", "p, retain"]


def curve_text(curve: Mapping[str, Any]) -> str:
    """`Curve.to_dict()` as aligned tables: both ways of editing, and their damage at equal forgetting."""
    blocks = [
        [
            f"Delta {curve['delta']}. Damage: rise of the answer NLL on retain rows, in nats. Forgetting: rise of the",
            "capped answer loss on forget rows, as a share of the raw delta's.",
        ],
        [curve["name"], *_points(curve["method"])],
        ["the raw delta, scaled", *_points(curve["scaling"])],
        ["at equal forgetting", *_levels(curve)],
        _conclusion(curve),
    ]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def curve_picture(curve: Mapping[str, Any], path: Path) -> None:
    """Draw damage over forgetting, and probability of retain over probability of forget answers, into .svg or .png.

    Errors: InputError for another ending, RunError where the file cannot be written.
    """
    require_picture(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(ON_WHITE):
        figure = Figure(figsize=(9.0, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        _line(left, curve, "forgetting", "damage")
        left.set_xlabel("share of the raw forgetting")
        left.set_title("damage to retain rows (nats), lower is better", loc="left", fontsize=9)
        left.legend(frameon=False, fontsize=8, loc="upper left")
        _line(right, curve, "forget_probability", "retain_probability")
        right.set_xlabel("probability of forget answers")
        right.set_title("probability of retain answers, upper left is better", loc="left", fontsize=9)
        save(figure, path)


def _points(points: list[Mapping[str, float]]) -> list[str]:
    keys = ("factor", "forgetting", "damage", "forget_capped", "forget_probability", "retain_nll", "retain_probability")
    return table(_HEADS, [[f"{point[key]:.3g}" for key in keys] for point in points], left=0)


def _levels(curve: Mapping[str, Any]) -> list[str]:
    rows = [
        [f"{level['forgetting']:.0%}", _cell(level["method"]), _cell(level["scaling"]), _cell(level["ratio"])]
        for level in curve["levels"]
    ]
    return table(["forgetting", f"damage, {curve['name']}", "damage, scaled", "ratio"], rows, left=1)


def _conclusion(curve: Mapping[str, Any]) -> list[str]:
    """What the ratios say about the method."""
    ratios = [level["ratio"] for level in curve["levels"] if level["ratio"] is not None]
    if not ratios:
        return ["No level of forgetting is reached by both, so that they cannot be compared."]
    low, high = _cell(min(ratios)), _cell(max(ratios))
    between = low if low == high else f"{low} to {high}"
    if max(ratios) < 1.0:
        better = "it is better than scaling at each of these levels"
    elif min(ratios) >= 1.0:
        better = "scaling the raw delta is as good or better, and simpler"
    else:
        better = "it depends on the level which of the two is better"
    return [f"Ratio: damage of {curve['name']} over that of scaling. It is {between} here:", f"{better}."]


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _line(axes: "Axes", curve: Mapping[str, Any], across: str, up: str) -> None:
    for key, colour, label in (("scaling", _SCALING, "raw delta, scaled"), ("method", _METHOD, curve["name"])):
        points = curve[key]
        axes.plot(
            [point[across] for point in points],
            [point[up] for point in points],
            color=colour,
            label=label,
            marker="o",
            markersize=3.5,
            linewidth=1.6,
        )
    axes.plot([curve["into"][across]], [curve["into"][up]], color="#9aa0a6", marker="s", markersize=5, label="into")
    axes.grid(alpha=0.15, linewidth=0.6)
