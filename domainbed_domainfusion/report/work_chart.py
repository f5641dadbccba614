"""Accuracy against the work of the diffusion model: a mark for each algorithm, or for each arm of a comparison."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from .charts import LABEL_GAP, ticks

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 42, 190, 24, 46  # the right margin holds a name beside the last mark
NONE_WIDTH = 170  # of the column at the left for methods without a diffusion model
LETTER = 7.0  # width of a letter of a name, in pixels
NAME_LEFT = 12  # from a mark to its name
#: The pages' style sheet, which an SVG that stands alone needs inside.
ALONE = "background: var(--paper); font-family: system-ui, sans-serif"
STYLE_SHEET = Path(__file__).parent / "templates" / "page.css"


@dataclass(frozen=True)
class Mark:
    """accuracy and error (standard error over the trials) in percent; evaluations: of the U-Net in a job, a mean."""

    name: str
    style: int
    evaluations: float
    accuracy: float
    error: float


def work_chart(marks: Sequence[Mark], title: str, standing_alone: bool = False) -> Markup:
    """An SVG: accuracy over the logarithm of the evaluations, and a column at the left for those without any.

    A vertical line is the standard error, up and down. `title` is for screen readers.
    """
    axes = _Axes.of(marks)
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    if standing_alone:
        size = f'xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" {size} style="{ALONE}"'
    parts = [f'<svg {size} role="img" aria-label="{escape(title)}">', *axes.drawn()]
    if standing_alone:
        parts.insert(1, f"<style>{escape(STYLE_SHEET.read_text())}</style>")
    for mark, name_y in zip(marks, _name_heights(marks, axes)):
        x, y, style = axes.x(mark.evaluations), axes.y(mark.accuracy), f"s{mark.style % 7}"
        low, high = axes.y(mark.accuracy - mark.error), axes.y(mark.accuracy + mark.error)
        name_x = _name_left(mark, axes)
        parts += [
            f'<path class="line {style}" d="M{x:.1f} {low:.1f}V{high:.1f}"/>',
            f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>',
            f'<path class="leader" d="M{x + 5:.1f} {y:.1f}L{name_x - 1:.1f} {name_y:.1f}"/>',
            f'<text class="name {style}" x="{name_x:.1f}" y="{name_y + 4:.1f}">{escape(mark.name)}</text>',
        ]
    return Markup("".join([*parts, "</svg>"]))


@dataclass(frozen=True)
class _Axes:
    """From a mark's numbers to pixels. decades: the powers of ten at the two ends of the logarithmic axis."""

    decades: tuple[int, int] | None
    low: float
    high: float

    @classmethod
    def of(cls, marks: Sequence[Mark]) -> "_Axes":
        logarithms = [math.log10(mark.evaluations) for mark in marks if mark.evaluations]
        decades = None
        if logarithms:
            decades = math.floor(min(logarithms)), max(math.floor(min(logarithms)) + 1, math.ceil(max(logarithms)))
        low = min(mark.accuracy - mark.error for mark in marks)
        high = max(mark.accuracy + mark.error for mark in marks)
        margin = 0.06 * (high - low) or 1.0
        return cls(decades, low - margin, high + margin)

    def x(self, evaluations: float) -> float:
        if not evaluations or self.decades is None:
            return LEFT + 24
        first, last = self.decades
        begin = LEFT + NONE_WIDTH
        return begin + (math.log10(evaluations) - first) / (last - first) * (WIDTH - RIGHT - begin)

    def y(self, accuracy: float) -> float:
        return HEIGHT - BOTTOM - (accuracy - self.low) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)

    def drawn(self) -> list[str]:
        """Both axes with their labels."""
        bottom = HEIGHT - BOTTOM
        parts = [
            f'<path class="grid" d="M{LEFT} {self.y(value):.1f}H{WIDTH - 20}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{self.y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
            for value in ticks(self.low, self.high, 6)
        ]
        parts.append('<text class="tick" x="4" y="12">accuracy in %</text>')
        parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - 20}"/>')
        places = [(self.x(0), "none")]
        if self.decades is not None:
            places += [(self.x(10.0**power), f"{10**power:,}") for power in range(self.decades[0], self.decades[1] + 1)]
        for x, label in places:
            parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v5"/>')
            parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        axis = "evaluations of the diffusion model’s U-Net in a run"
        parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{axis}</text>')
        return parts


def _name_left(mark: Mark, axes: _Axes) -> float:
    """Where a name begins. In the crowded column it is farther from its mark, so that the lines between can be told."""
    return axes.x(mark.evaluations) + (NAME_LEFT if mark.evaluations else 3 * NAME_LEFT)


def _name_heights(marks: Sequence[Mark], axes: _Axes) -> list[float]:
    """The height of each name: near its mark's, with no name over another one and none below the axis."""
    lefts = [_name_left(mark, axes) for mark in marks]
    rights = [left + LETTER * len(mark.name) for left, mark in zip(lefts, marks)]
    heights = [axes.y(mark.accuracy) for mark in marks]
    order = sorted(range(len(marks)), key=lambda i: -marks[i].accuracy)

    def beside(i: int, others: Sequence[int]) -> list[float]:
        return [heights[other] for other in others if lefts[i] < rights[other] and lefts[other] < rights[i]]

    for place, i in enumerate(order):  # from the top: each one moves down below those before it
        heights[i] = max([heights[i], *(other + LABEL_GAP for other in beside(i, order[:place]))])
    order.reverse()
    for place, i in enumerate(order):  # from the bottom: each one moves up where there is no room
        heights[i] = min([heights[i], HEIGHT - BOTTOM - 8, *(other - LABEL_GAP for other in beside(i, order[:place]))])
    return heights
