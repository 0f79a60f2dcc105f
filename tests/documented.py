"""Commands that README.md and docs/ show: in blocks, in their comments, and in sentences."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = re.compile(
    r"(\w+=\S+ )*(ijepa-bench|make|snakemake|dvc|python|pytest|git|gto|conda|bash|source|apptainer)"
    r" \S"
)
"""Beginning of inline code that is a command."""


def blocks() -> Iterator[tuple[Path, str]]:
    """Every command of a shell block, with its page; one line may have several."""
    for page in PAGES:
        for kind, block in re.findall(r"```(\w*)\n(.*?)```", page.read_text(), re.DOTALL):
            if kind not in ("", "bash") or block.startswith("Snakefile"):  # README's layout
                continue
            for line in block.splitlines():
                shown, _, comment = line.partition(" #")
                other = comment.partition("or: ")[2]
                # Not within quotes: a command there is an argument of the whole.
                parts = re.split(r"(?: && |; )(?=(?:[^']*'[^']*')*[^']*$)", shown)
                for command in [*parts, other]:
                    if command.strip():
                        yield page, command.strip()


def inline() -> Iterator[tuple[Path, str]]:
    """Every command that a sentence or a table's cell names, with its page."""
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for code in re.findall(r"`([^`\n]+)`", text):
            if PROGRAM.match(code):
                yield page, code
