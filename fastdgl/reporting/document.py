"""A page as HTML, and as Markdown with its pictures beside it. Whatever text comes in is shown as text, in both."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from ..sentences import printable
from .charts import Chart, as_text, page_style

TEMPLATE = Path(__file__).parents[1] / "assets" / "report.html"
MARKDOWN_MEANS_SOMETHING = re.compile(r"([\\`*\[\]|])")
BEGINS_SOMETHING = re.compile(r"^([#+=~-])")


@dataclass(frozen=True)
class Text:
    """A paragraph. A warning is something that a reader must not overlook."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Command:
    """What to type."""

    line: str


@dataclass(frozen=True)
class Cell:
    """What stands in a table, and in small letters below it, line by line."""

    text: str
    small: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """The first column names the rows. The caption is for those who hear the page instead of seeing it."""

    caption: str
    head: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Picture:
    """A chart, or images; the name of its file has no suffix.

    sheet: A PNG; columns says how many images are side by side in it, pixelated that they are so small that pixels may show.
    """

    name: str
    caption: str
    chart: Chart | None = None
    sheet: bytes = b""
    columns: int = 1
    pixelated: bool = False

    @property
    def file(self) -> str:
        return self.name + (".svg" if self.chart else ".png")

    @property
    def content(self) -> bytes:
        """Of the file, which any viewer shows as it is."""
        return self.chart.standalone().encode() if self.chart else self.sheet


Block = Text | Command | Table | Picture


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A page: what it is about, its sections, and when and by what it was made."""

    title: str
    subtitle: str
    lead: Sequence[Text]
    sections: Sequence[Section]
    made: str

    @property
    def pictures(self) -> list[Picture]:
        return [block for section in self.sections for block in section.blocks if isinstance(block, Picture)]

    def as_html(self) -> str:
        """One file that needs no other: styles and pictures are in it, and there is no script."""
        body = [f"<h1>{as_text(self.title)}<small>{as_text(self.subtitle)}</small></h1>", '<div class="lead">', *map(block_as_html, self.lead), "</div>"]
        for section in self.sections:
            body += [f"<section><h2>{as_text(section.title)}</h2>", *grouped(section.blocks), "</section>"]
        body.append(f"<footer>{as_text(self.made)}</footer>")
        return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(title=as_text(f"{self.title}: {self.subtitle}"), charts=page_style(), body="\n".join(body))

    def as_markdown(self) -> str:
        """The same words and numbers; the pictures are the files of `pictures`."""
        parts = [f"# {plain(self.title)}", *map(block_as_markdown, [Text(self.subtitle), *self.lead])]
        for section in self.sections:
            parts += [f"## {plain(section.title)}", *map(block_as_markdown, section.blocks)]
        return "\n\n".join([*parts, plain(self.made)]) + "\n"


def grouped(blocks: Sequence[Block]) -> list[str]:
    """Blocks in order; charts that follow each other share a row where the page is wide."""
    lines, inside = [], False
    for block in blocks:
        chart = isinstance(block, Picture) and block.chart is not None
        if chart != inside:
            lines.append('<div class="charts">' if chart else "</div>")
            inside = chart
        lines.append(block_as_html(block))
    return lines + ["</div>"] * inside


def block_as_html(block: Block) -> str:
    if isinstance(block, Text):
        return f'<p{" class=warning" * block.warning}>{as_text(block.text)}</p>'
    if isinstance(block, Command):
        return f"<pre>{as_text(block.line)}</pre>"
    if isinstance(block, Table):
        head = "".join(f'<th scope="col">{cell_as_html(cell)}</th>' for cell in block.head)
        rows = (f'<tr><th scope="row">{cell_as_html(row[0])}</th>{"".join(f"<td>{cell_as_html(cell)}</td>" for cell in row[1:])}</tr>'
                for row in block.rows)
        return (f'<div class="wide"><table><caption>{as_text(block.caption)}</caption><thead><tr>{head}</tr></thead>'
                f'<tbody>{"".join(rows)}</tbody></table></div>')
    caption = f"<figcaption>{as_text(block.caption)}</figcaption>"
    if block.chart:
        return f"<figure>{caption}{block.chart.svg()}</figure>"
    data = base64.b64encode(block.sheet).decode()
    return (f'<figure>{caption}<div class="wide"><img{" class=pixelated" * block.pixelated} style="min-width:{2.5 * block.columns:g}rem" alt="{as_text(block.caption)}" '
            f'src="data:image/png;base64,{data}"></div></figure>')


def cell_as_html(cell: Cell) -> str:
    return as_text(cell.text) + "".join(f"<small>{as_text(line)}</small>" for line in cell.small)


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return MARKDOWN_MEANS_SOMETHING.sub(r"\\\1", html.escape(printable(text), quote=False))


def block_as_markdown(block: Block) -> str:
    if isinstance(block, Text):
        return f"**{plain(block.text)}**" if block.warning else BEGINS_SOMETHING.sub(r"\\\1", plain(block.text))
    if isinstance(block, Command):
        return "    " + printable(block.line)
    if isinstance(block, Table):
        head, *rows = ("| " + " | ".join(map(cell_as_markdown, row)) + " |" for row in [block.head, *block.rows])
        return "\n".join([head, "|" + " --- |" * len(block.head), *rows])
    return f"![{plain(block.caption)}]({block.file})\n\n{plain(block.caption)}"


def cell_as_markdown(cell: Cell) -> str:
    return plain(cell.text) + "".join(f"<br>{plain(line)}" for line in cell.small)
