"""Text of a table as Markdown, LaTeX or HTML, from one view of its cells."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

MARK = "(!)"
"""Mark beside a number that has an entry in the list of problems."""


@dataclass(frozen=True)
class Header:
    """Title of a column, and the kind of its cells: text, number, published or measured."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Cell:
    """Contents of one cell.

    ``value`` is its sorting key. ``marked`` is true if there is a problem with it. ``details`` has
    the provenance of its numbers, one mapping per seed.
    """

    text: str
    kind: str = "text"
    value: float = math.nan
    marked: bool = False
    details: tuple[dict[str, str], ...] = ()

    @property
    def shown(self) -> str:
        """Text of the cell, with MARK if it is marked."""
        return f"{self.text} {MARK}" if self.marked else self.text


@dataclass(frozen=True)
class View:
    """Table as people read it."""

    headers: list[Header]
    rows: list[list[Cell]]


def number(value: float, form: str, missing: str = "-") -> str:
    """Text of a number: 0 has no decimals, and nan is ``missing``."""
    return missing if math.isnan(value) else f"{value:{form}}" if value else "0"


def markdown(title: str, view: View, note: str, problems: Sequence[str] = ()) -> str:
    """Table as Markdown, with title, note and problems; published numbers are in italics."""
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
    r"""Table for ``\input`` in LaTeX, which needs the packages booktabs and graphicx.

    A table that is wider than the text is scaled down. Published numbers are in italics.
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
    """HTML page of this one table, without scripts."""
    return (
        environment()
        .get_template("table.html")
        .render(title=title, view=view, note=note, problems=problems)
    )


def environment() -> Environment:
    """Jinja environment of the page templates; it escapes everything that they show."""
    return Environment(
        loader=PackageLoader("evals.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _plain(cell: Cell) -> str:
    is_published = cell.kind == "published" and cell.text != "-"
    return f"*{cell.shown}*" if is_published else cell.shown


SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    # After \\ these two would be read as its options.
    "[": "{[}",
    "*": "{*}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def _escaped(text: str) -> str:
    return "".join(SPECIAL.get(sign, sign) for sign in text).replace("+-", r"$\pm$")
