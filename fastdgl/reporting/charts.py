"""Line and bar charts as SVG, by hand: drawn in classes, which a style colours for light and for dark."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..sentences import printable

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 30
LEGEND_ROW = 18
# of Okabe and Ito's, which the colour-blind tell apart: the teacher's, and the students'
LIGHT = {"ink": "#1d2329", "faint": "#66707a", "rule": "#dfe3e8", "page": "#ffffff",
         "0": "#6b7580", "1": "#0072b2", "2": "#d55e00", "3": "#009e73", "4": "#b4548f"}
DARK = {"ink": "#e4e8ec", "faint": "#9aa4ae", "rule": "#343b43", "page": "#14181c",
        "0": "#9aa5b0", "1": "#56b4e9", "2": "#f08b45", "3": "#3cc79c", "4": "#e08fc0"}
MOST_COLOURS = 5


def as_text(text: str) -> str:
    """Text in HTML and SVG that is nothing but text, on one line."""
    return html.escape(printable(text))


@dataclass(frozen=True)
class Chart:
    """What is drawn, and what it says to a reader who cannot see it."""

    body: str
    height: int
    description: str

    def svg(self) -> str:
        """To be put into a page that has `page_style`."""
        return self._svg("", "")

    def standalone(self) -> str:
        """A file of its own, on white."""
        return self._svg(' xmlns="http://www.w3.org/2000/svg"', f"<style>{style(LIGHT)}</style><rect class='page' width='100%' height='100%'/>")

    def _svg(self, attributes: str, first: str) -> str:
        description = as_text(self.description)
        return (f'<svg{attributes} class="chart" viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{description}">'
                f"{first}{self.body}</svg>")


def style(colours: Mapping[str, str]) -> str:
    """CSS of the classes that charts are drawn in."""
    rules = [".chart text{font:11px system-ui,sans-serif;fill:%s}" % colours["faint"], ".chart .strong{font-weight:600;fill:%s;stroke:%s;stroke-width:4px;paint-order:stroke}" % (colours["ink"], colours["page"]),
             ".chart .rule{stroke:%s;fill:none}" % colours["rule"], ".chart .one{stroke:%s;stroke-dasharray:2 3}" % colours["faint"],
             ".chart .page{fill:%s}" % colours["page"], ".chart .line{fill:none;stroke-width:2;stroke-linejoin:round}",
             ".chart .dashed{stroke-dasharray:6 4}"]
    for i in range(MOST_COLOURS):
        rules.append(".chart .stroke%d{stroke:%s}.chart .fill%d{fill:%s}" % (i, colours[str(i)], i, colours[str(i)]))
    return "".join(rules)


def page_style() -> str:
    """The same for a page that is light or dark, as its reader has it, and light on paper."""
    variables = "".join(f"--{name}:{{{name}}};" for name in ("ink", "faint", "rule", "page"))
    light, dark = (variables.format(**colours) for colours in (LIGHT, DARK))
    return (f":root{{{light}}}{style(LIGHT)}"
            f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}{style(DARK)}}}")


@dataclass(frozen=True)
class Line:
    """A curve. A y of None, or one that is not finite, is a gap in it."""

    label: str
    colour: int
    points: Sequence[tuple[float, float | None]]
    dashed: bool = False

    @property
    def drawn(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in self.points if y is not None and math.isfinite(y)]


def line_chart(lines: Sequence[Line], x_label: str, description: str) -> Chart:
    """Curves over one axis; there is at least one point to draw."""
    xs, ys = zip(*(point for line in lines for point in line.drawn))
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))

    entries, top = legend(lines)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - top - BOTTOM)

    body = []
    for y in y_ticks:
        _, at = place(x_ticks[0], y)
        body.append(f'<path class="rule" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>' + label(LEFT - 6, at + 4, f"{y:g}", "end"))
    for x in x_ticks:
        at, _ = place(x, y_ticks[0])
        body.append(label(at, HEIGHT - BOTTOM + 14, f"{x:g}", "middle"))
    body.append(label(WIDTH - RIGHT, HEIGHT - 3, x_label, "end"))
    for line in lines:
        body.append(curve(line, place))
    return Chart("".join([*entries, *body]), HEIGHT, description)


def curve(line: Line, place: Callable[[float, float], tuple[float, float]]) -> str:
    """A path that begins anew after each gap; a point without neighbours is a dot."""
    runs, steps = [[]], ""
    for x, y in line.points:
        if y is None or not math.isfinite(y):
            runs.append([])
        else:
            runs[-1].append(place(x, y))
    dots = "".join(f'<circle class="fill{line.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for run in runs if len(run) == 1 for x, y in run)
    for run in runs:
        if len(run) > 1:
            steps += "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in run)
    return (f'<path class="line stroke{line.colour}{" dashed" * line.dashed}" d="{steps}"/>' if steps else "") + dots


def legend(lines: Sequence[Line]) -> tuple[list[str], float]:
    """What each line is, in as many rows as it takes, and where the chart may begin below."""
    drawn, x, y = [], LEFT, TOP
    for line in lines:
        # of 11 pixels, a letter is about 6 wide
        room = 23 + 6 * len(line.label) + 14
        if x > LEFT and x + room > WIDTH:
            x, y = LEFT, y + LEGEND_ROW
        drawn.append(f'<path class="line stroke{line.colour}{" dashed" * line.dashed}" d="M{x} {y}h18"/>' + label(x + 23, y + 4, line.label))
        x += room
    return drawn, y + LEGEND_ROW


@dataclass(frozen=True)
class Bars:
    """One thing that is compared: a ratio for each student, or None."""

    label: str
    ratios: Sequence[float | None]


def bar_chart(groups: Sequence[Bars], students: Sequence[str], description: str) -> Chart:
    """Ratios as bars, with a line at 1 where the teacher is."""
    thick, gap, name = 13, 14, 140
    most = max(1.0, *(ratio for bars in groups for ratio in bars.ratios if ratio is not None))
    room = WIDTH - name - 50
    one, body, top = name + room / most, [], 24
    if len(students) > 1:
        body, below = legend([Line(student, i, ()) for i, student in enumerate(students, start=1)])
        top += below
    y = top
    for bars in groups:
        middle = y + thick * len(bars.ratios) / 2
        body.append(label(name - 10, middle + 4, bars.label, "end"))
        for i, ratio in enumerate(bars.ratios):
            if ratio is not None:
                length = room * ratio / most
                body.append(f'<rect class="fill{i + 1}" x="{name}" y="{y}" width="{length:.1f}" height="{thick - 2}" rx="2"/>')
                body.append(label(name + length + 6, y + thick - 3, f"{ratio:.2f}", strong=True))
            y += thick
        y += gap
    body += [f'<path class="one" d="M{one:.1f} {top - 6}V{y - gap + 4}"/>', label(one, top - 11, "teacher = 1", "middle")]
    return Chart("".join(body), y, description)


def label(x: float, y: float, text: str, anchor: str = "start", strong: bool = False) -> str:
    return f'<text class="{"strong" if strong else "plain"}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{as_text(text)}</text>'


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, evenly spaced, the first not above `low` and the last not below `high`: three to seven of them."""
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # rounded: 3 * 0.1 is 0.30000000000000004
    digits = max(0, -math.floor(math.log10(step))) + 1
    return [round(i * step, digits) for i in range(first, last + 1)]
