"""Accuracy against the work of the diffusion model: a mark for each algorithm, or for each arm of a comparison."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from .charts import LABEL_GAP, ticks

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 42, 190, 24, 46  # the right margin holds a name beside the last mark
NONE_WIDTH, NONE_AT = 170, 24  # of the column at the left for methods without a diffusion model; its marks' place
NARROWEST = 150  # of the work's axis, which long names in that column may push to the right
LETTER = 7.0  # width of a letter of a name, in pixels
NAME_LEFT = 12  # from a mark to its name
#: The pages' style sheet, which an SVG that stands alone needs inside.
ALONE = "background: var(--paper); font-family: system-ui, sans-serif"
STYLE_SHEET = Path(__file__).parent / "templates" / "page.css"


@dataclass(frozen=True)
class Unit:
    """What the work is counted in: the axis's label, whether it is logarithmic, and a name for sentences."""

    label: str
    logarithmic: bool
    recorded: str


EVALUATIONS = Unit("evaluations of the diffusion model’s U-Net in a run", True, "U-Net's evaluations")
SECONDS = Unit("seconds of generation and Latent Distillation in a run", False, "seconds of generation")


@dataclass(frozen=True)
class Mark:
    """accuracy and error (standard error over the trials) in percent; work: of the diffusion model in a job, a mean."""

    name: str
    style: int
    work: float
    accuracy: float
    error: float


def work_chart(marks: Sequence[Mark], title: str, unit: Unit = EVALUATIONS, standing_alone: bool = False) -> Markup:
    """An SVG: accuracy over the work, and a column at the left for marks without any.

    A vertical line is the standard error, up and down. `title` is for screen readers.
    """
    axes = _Axes.of(marks, unit)
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    if standing_alone:
        size = f'xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" {size} style="{ALONE}"'
    parts = [f'<svg {size} role="img" aria-label="{escape(title)}">', *axes.drawn()]
    if standing_alone:
        parts.insert(1, f"<style>{escape(STYLE_SHEET.read_text())}</style>")
    for mark, name_y in zip(marks, _name_heights(marks, axes)):
        x, y, style = axes.x(mark.work), axes.y(mark.accuracy), f"s{mark.style % 7}"
        low, high = axes.y(mark.accuracy - mark.error), axes.y(mark.accuracy + mark.error)
        name_x, anchor, side = _name_left(mark, marks, axes), "start", 1
        if name_x < x:
            name_x, anchor, side = x - NAME_LEFT, "end", -1
        parts += [
            f'<path class="line {style}" d="M{x:.1f} {low:.1f}V{high:.1f}"/>',
            f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>',
            f'<path class="leader" d="M{x + 5 * side:.1f} {y:.1f}L{name_x - side:.1f} {name_y:.1f}"/>',
            f'<text class="name {style}" text-anchor="{anchor}" x="{name_x:.1f}" y="{name_y + 4:.1f}">'
            f"{escape(mark.name)}</text>",
        ]
    return Markup("".join([*parts, "</svg>"]))


@dataclass(frozen=True)
class _Axes:
    """From a mark's numbers to pixels. ends: of the work's axis, as powers of ten on a logarithmic one; begin: where
    it begins, in pixels."""

    unit: Unit
    ends: tuple[float, float] | None
    begin: float
    low: float
    high: float

    @classmethod
    def of(cls, marks: Sequence[Mark], unit: Unit) -> "_Axes":
        works = [mark.work for mark in marks if mark.work]
        ends: tuple[float, float] | None = None
        if works and unit.logarithmic:
            first, last = math.log10(min(works)), math.log10(max(works))
            ends = math.floor(first), max(math.floor(first) + 1, math.ceil(last))
        elif works:
            ends = 0, 1.06 * max(works)
        names = [NONE_AT + 3 * NAME_LEFT + LETTER * len(mark.name) for mark in marks if not mark.work]
        begin = min(LEFT + max([NONE_WIDTH, *names]), WIDTH - RIGHT - NARROWEST)
        low = min(mark.accuracy - mark.error for mark in marks)
        high = max(mark.accuracy + mark.error for mark in marks)
        margin = 0.06 * (high - low) or 1.0
        return cls(unit, ends, begin, low - margin, high + margin)

    def x(self, work: float) -> float:
        if not work or self.ends is None:
            return LEFT + NONE_AT
        first, last = self.ends
        place = math.log10(work) if self.unit.logarithmic else work
        return self.begin + (place - first) / (last - first) * (WIDTH - RIGHT - self.begin)

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
        if self.ends is not None and self.unit.logarithmic:
            powers = range(round(self.ends[0]), round(self.ends[1]) + 1)
            places += [(self.x(10.0**power), f"{10**power:,}") for power in powers]
        elif self.ends is not None:
            places += [(self.x(work), f"{work:,g}") for work in ticks(*self.ends, 6) if work]
        for x, label in places:
            parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v5"/>')
            parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{self.unit.label}</text>')
        return parts


def _name_left(mark: Mark, marks: Sequence[Mark], axes: _Axes) -> float:
    """Where a name begins: to the right of its mark, or to the left where only the right has another mark in the way.

    In the crowded column it is farther from its mark, so that the lines between can be told.
    """
    if not mark.work:
        return axes.x(0) + 3 * NAME_LEFT
    x, width = axes.x(mark.work), LETTER * len(mark.name)
    near = [other for other in marks if abs(axes.y(other.accuracy) - axes.y(mark.accuracy)) < LABEL_GAP]
    beside = [axes.x(other.work) for other in near if other is not mark and other.work]
    right_is_free = not any(x < other < x + NAME_LEFT + width for other in beside)
    left_is_free = x - NAME_LEFT - width > axes.begin and not any(x - 2 * NAME_LEFT - width < o < x for o in beside)
    return x - NAME_LEFT - width if left_is_free and not right_is_free else x + NAME_LEFT


def _name_heights(marks: Sequence[Mark], axes: _Axes) -> list[float]:
    """The height of each name: near its mark's, with no name over another one and none below the axis."""
    lefts = [_name_left(mark, marks, axes) for mark in marks]
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
