"""Hook of mkdocs: README is the site's first page, with its picture."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README as index.md: its links to docs/ lead to the site's pages, others as they are."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    files.append(File.generated(config, "index.md", content=text))
    return files
