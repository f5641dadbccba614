"""Line charts as inline SVG: colours come from the page's style sheet, so that they follow its light and dark modes.

Every series has its own colour of the Okabe-Ito palette, its own dash pattern, and its name at the end of its line.
Each of the three alone tells the series apart.
"""

import math
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 380, 200
LEFT, RIGHT, TOP, BOTTOM = 34, 166, 8, 36  # the right margin holds "TextToImageClassifier"
LABEL_GAP = 14
DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 2 2 2 2 2", "1 4", "12 3")


@dataclass(frozen=True)
class Series:
    """One line: `points` are (step, value) in order; a value that is not finite breaks the line."""

    name: str
    style: int
    points: tuple[tuple[float, float], ...]


def line_chart(series: list[Series], title: str, limits: tuple[float, float], steps: tuple[float, float]) -> Markup:
    """An SVG of all series over the training step, inside the given limits of value and step.

    `title` is for screen readers. Charts that readers compare need the same limits.
    """
    frame = _Frame(*steps, *limits)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        *_horizontal_axis(frame),
        *_vertical_axis(frame),
    ]
    ends = []
    for one in series:
        finite = [point for point in one.points if math.isfinite(point[1])]
        if finite:
            parts.append(_line(frame, one))
            ends.append((frame.y(finite[-1][1]), frame.x(finite[-1][0]), one))
    parts += _end_labels(ends)
    return Markup("".join([*parts, "</svg>"]))


def limits_of(charts: list[list[Series]]) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Common limits (value, step) for charts shown side by side; None without any finite point."""
    points = [point for chart in charts for one in chart for point in one.points if math.isfinite(point[1])]
    if not points:
        return None
    steps, values = zip(*points)
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.5
    low = 0.0 if 0 <= low < 0.5 * high else low - margin
    return (low, high + margin), (min(0, min(steps)), max(max(steps), 1))


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    raw = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(raw))
    distance = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw)
    first = math.ceil(low / distance - 1e-9)
    return [index * distance for index in range(first, math.floor(high / distance + 1e-9) + 1)]


@dataclass(frozen=True)
class _Frame:
    first: float
    last: float
    low: float
    high: float

    def x(self, step: float) -> float:
        return LEFT + (step - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


def _horizontal_axis(frame: _Frame) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = [
        f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>',
        f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">step</text>',
    ]
    return parts + [
        f'<text class="tick" x="{frame.x(step):.1f}" y="{bottom + 15}" text-anchor="middle">{step:g}</text>'
        for step in ticks(frame.first, frame.last, 3)
    ]


def _vertical_axis(frame: _Frame) -> list[str]:
    parts = []
    for value in ticks(frame.low, frame.high):
        y = frame.y(value)
        parts.append(
            f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
            f'<text class="tick" x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>'
        )
    return parts


def _short(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")


def _line(frame: _Frame, series: Series) -> str:
    commands, pen = [], "M"
    for step, value in series.points:
        if math.isfinite(value):
            commands.append(f"{pen}{frame.x(step):.1f} {frame.y(value):.1f}")
            pen = "L"
        else:
            pen = "M"
    dash = DASHES[series.style % len(DASHES)]
    return f'<path class="line s{series.style % 7}" stroke-dasharray="{dash or "none"}" d="{"".join(commands)}"/>'


def _end_labels(ends: list[tuple[float, float, Series]]) -> list[str]:
    """Names at the lines' ends, from top to bottom, pushed apart where lines end close together."""
    parts, ends = [], sorted(ends, key=lambda end: end[0])
    heights = [end[0] for end in ends]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + LABEL_GAP)
    overflow = max(0.0, heights[-1] - (HEIGHT - BOTTOM)) if heights else 0.0
    for height, (y, x, series) in zip(heights, ends):
        style, label, left = f"s{series.style % 7}", height - overflow, WIDTH - RIGHT + 8
        parts.append(
            f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
            f'<path class="leader" d="M{x + 4:.1f} {y:.1f}L{left} {label:.1f}"/>'
            f'<text class="name {style}" x="{left + 2}" y="{label + 4:.1f}">{escape(series.name)}</text>'
        )
    return parts
