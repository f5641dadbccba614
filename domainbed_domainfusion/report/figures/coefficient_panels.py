"""The picture of a(p): one panel per domain with matched and mismatched prompts, and one panel with all classes."""

from collections.abc import Sequence
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..coefficient_curve import Curve
from .drawing import INK, SOFT, STYLE

COLUMNS, PANEL = 3, (2.5, 2.1)  # panels in a row; inches
MATCHED, MISMATCHED = "#0b5fa5", "#c4570a"
LINES = "Lines are means over images, bands hold 10 to 90 % of them; blue on the zero line: where p is raised."
NAMED_CLASSES = 10  # with more, the lines of the classes have no legend
HEAD, FOOT = 0.95, 0.35  # inches


def draw_curves(
    curves: Sequence[Curve], domains: Sequence[str], confidences: Sequence[float], reading: dict[str, Any]
) -> Figure:
    """A figure of len(domains) + 1 panels that share their axes. reading: the hparams of LD, for the title."""
    rows = -(-(len(domains) + 1) // COLUMNS)
    width, height = COLUMNS * PANEL[0], rows * PANEL[1] + HEAD + FOOT
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
        figure.subplots_adjust(
            left=0.08, right=0.98, top=1 - HEAD / height, bottom=(FOOT + 0.1) / height, hspace=0.5, wspace=0.08
        )
        panels = [axes for row in grid for axes in row]
        for axes, domain in zip(panels, domains):
            _domain(axes, domain, [curve for curve in curves if curve.group == domain], confidences)
        of_classes = [curve for curve in curves if curve.group not in domains and curve.prompt == "matched"]
        _classes(panels[len(domains)], of_classes, confidences)
        for axes in panels[len(domains) + 1 :]:
            axes.set_axis_off()
        for axes in panels[: len(domains) + 1]:
            axes.set_xlabel("confidence p", color=SOFT)
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
            axes.xaxis.set_tick_params(labelbottom=True)
        for row in grid:
            row[0].set_ylabel("coefficient a", color=SOFT)
        panels[0].legend(loc="best", frameon=False)
        title = "Below 0, Latent Distillation raises the confidence"
        figure.text(0.08, 1 - 0.2 / height, title, color=INK, va="top", weight="bold", size=9)
        figure.text(0.08, 1 - 0.42 / height, _reading_in_words(reading), color=SOFT, va="top")
        figure.text(0.08, 1 - 0.57 / height, LINES, color=SOFT, va="top")
    return figure


def _domain(axes: Axes, domain: str, curves: Sequence[Curve], confidences: Sequence[float]) -> None:
    """Means with the spread over images; on the zero line, where LD raises the confidence."""
    axes.axhline(0, color=INK, linewidth=0.6)
    for curve in curves:
        matched = curve.prompt == "matched"
        color = MATCHED if matched else MISMATCHED
        axes.fill_between(confidences, curve.low, curve.high, color=color, alpha=0.13, linewidth=0)
        label = "prompt of its class" if matched else "of another class"
        axes.plot(confidences, curve.mean, color=color, linestyle="-" if matched else "--", linewidth=1.4, label=label)
        if matched:
            for low, high in curve.raised:
                axes.plot([low, high], [0, 0], color=color, linewidth=4, alpha=0.5, solid_capstyle="butt")
    axes.set_title(f"{domain}, {max(curve.images for curve in curves)} images", loc="left", color=INK, size=8)


def _classes(axes: Axes, curves: Sequence[Curve], confidences: Sequence[float]) -> None:
    """The mean of every class over all domains, under its own prompt."""
    axes.axhline(0, color=INK, linewidth=0.6)
    colours = colormaps["viridis"]
    for i, curve in enumerate(curves):
        colour = colours(i / max(1, len(curves) - 1) * 0.92)
        axes.plot(confidences, curve.mean, color=colour, linewidth=0.9, label=curve.group)
    if len(curves) <= NAMED_CLASSES:
        axes.legend(loc="best", frameon=False, ncols=2, fontsize=6)
    axes.set_title("by class, all domains", loc="left", color=INK, size=8)


def _reading_in_words(reading: dict[str, Any]) -> str:
    low, high = reading["ld_timesteps"]
    return (
        f"{reading['ldm']}: {reading['ld_gradient']}, guidance {reading['ld_guidance_scale']:g}, "
        f"{reading['ld_reduction']} over elements, w {reading['ld_weighting']}, t in [{low:g}, {high:g}], "
        f"{reading['ld_corruption']}"
    )
