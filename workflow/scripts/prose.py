"""Three rules of prose, checked: ``python workflow/scripts/prose.py``.

The first line of a docstring begins with a noun or a verb. A variable is a noun of what it holds. A
folder has no dump of leftovers.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("ijepa", "evals", "workflow", "tests", "benchmarks")
UNNAMED = {"told", "found", "asked", "known", "kept", "place", "one"}
"""Names of variables that hide what they hold."""
RIDDLES = re.compile(
    r"(What|Whether|That|The same|Of|Where|Which|Who|How|When|If|As|At|By|For|In|From|So)\b"
)
DUMPS = {"utils", "misc", "helpers", "common"}
DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)


def faults(path: Path) -> Iterator[str]:
    """Every fault of a file, with its line."""
    if path.stem in DUMPS:
        yield f"{path}: name the file after what it does"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        text = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
        if match := RIDDLES.match(text or ""):
            line = getattr(node, "lineno", 1)
            yield f"{path}:{line}: a docstring begins with {match[1]!r}: begin with what it is"
        if isinstance(node, ast.FunctionDef) and path.relative_to(ROOT).parts[0] != "tests":
            for inner in ast.walk(node):
                if not isinstance(inner, ast.Name) or not isinstance(inner.ctx, ast.Store):
                    continue
                if inner.id in UNNAMED:
                    yield f"{path}:{inner.lineno}: {inner.id!r} hides what it holds: use a noun"


if __name__ == "__main__":
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    sys.exit("\n".join(fault for file in files for fault in faults(file)) or 0)
