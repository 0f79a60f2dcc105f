"""A table as Markdown, LaTeX and HTML: one view of cells in, text out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

MARK = "(!)"
"""Stands beside a number that is in the list of problems."""


@dataclass(frozen=True)
class Header:
    """A column's title, and what its cells are: text, number, published or measured."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Cell:
    """What one cell shows.

    ``value`` is what it is sorted by; ``marked`` says that something is wrong with it; ``details``
    is where its numbers come from, one mapping a seed.
    """

    text: str
    kind: str = "text"
    value: float = math.nan
    marked: bool = False
    details: tuple[dict[str, str], ...] = ()

    @property
    def shown(self) -> str:
        """The text, with the mark."""
        return f"{self.text} {MARK}" if self.marked else self.text


@dataclass(frozen=True)
class View:
    """A table as people read it."""

    headers: list[Header]
    rows: list[list[Cell]]


def number(value: float, form: str, missing: str = "-") -> str:
    """A number as text: 0 has no decimals, and none is ``missing``."""
    return missing if math.isnan(value) else f"{value:{form}}" if value else "0"


def markdown(title: str, view: View, note: str, problems: Sequence[str] = ()) -> str:
    """Markdown with the title above, note and problems below; published numbers are in italics."""
    rules = ["---" if header.kind == "text" else "---:" for header in view.headers]
    lines = [[header.text for header in view.headers]]
    lines += [[_plain(cell) for cell in row] for row in view.rows]
    lines = [[text.replace("|", "\\|") for text in line] for line in lines]
    table = ["| " + " | ".join(line) + " |" for line in lines]
    table.insert(1, "|" + "|".join(rules) + "|")
    parts = [f"# {title}", "\n".join(table), note]
    if problems:
        parts += [f"Problems, marked {MARK}:", "\n".join(f"- {text}" for text in problems)]
    return "\n\n".join(parts) + "\n"


def latex(title: str, view: View, note: str, problems: Sequence[str] = ()) -> str:
    r"""A ``table`` for ``\input``; it needs the packages booktabs and graphicx.

    A table that is wider than the text is made smaller. Published numbers are in italics.
    """
    align = "".join("l" if header.kind == "text" else "r" for header in view.headers)
    lines = [" & ".join(_escaped(header.text) for header in view.headers) + r" \\", r"\midrule"]
    for row in view.rows:
        cells = (
            rf"\textit{{{_escaped(cell.shown)}}}"
            if cell.kind == "published"
            else _escaped(cell.shown)
            for cell in row
        )
        lines.append(" & ".join(cells) + r" \\")
    below = [note, *([f"Problems, marked {MARK}:", *problems] if problems else [])]
    return "\n".join(
        [
            r"% \usepackage{booktabs,graphicx}",
            r"\begin{table}",
            rf"\caption{{{_escaped(title)}}}",
            r"\centering",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\par\medskip\raggedright\footnotesize",
            *(rf"{_escaped(text)}\par" for text in below),
            r"\end{table}",
            "",
        ]
    )


def html(title: str, view: View, note: str, problems: Sequence[str] = ()) -> str:
    """A page of this one table, without scripts."""
    return (
        environment()
        .get_template("table.html")
        .render(title=title, view=view, note=note, problems=problems)
    )


def environment() -> Environment:
    """Where pages are made; everything in them is escaped."""
    return Environment(
        loader=PackageLoader("evals.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _plain(cell: Cell) -> str:
    known = cell.kind == "published" and cell.text != "-"
    return f"*{cell.shown}*" if known else cell.shown


SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    # After the end of a line these two would be options of it.
    "[": "{[}",
    "*": "{*}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def _escaped(text: str) -> str:
    return "".join(SPECIAL.get(sign, sign) for sign in text).replace("+-", r"$\pm$")
