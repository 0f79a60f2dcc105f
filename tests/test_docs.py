"""The documentation: its commands can be typed, its code runs, its tables are in git."""

import argparse
import importlib
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

import evals.protocols
import ijepa.methods
from evals import protocol
from evals.features import extract
from evals.run import evaluate
from evals.subject import Subject
from ijepa.config import parse_run
from ijepa.train import train
from tests.conftest import raw_run_of
from tests.documented import PAGES, ROOT, blocks
from workflow.__main__ import COMMANDS
from workflow.plan.__main__ import keys_in_words

TABLES = [
    pytest.param(path, text, id=f"{page.stem}-{path}")
    for page in PAGES
    for path, text in re.findall(
        r"<!-- (results/\S+\.md) -->\n(.*?)<!-- end -->", page.read_text(), re.DOTALL
    )
]


OURS = [
    pytest.param(command, id=f"{page.stem}: {command}")
    for page, command in blocks()
    if command.startswith(("ijepa-bench ", "python -m ", "python tests/"))
]


class Parsed(Exception):
    """A command's arguments were accepted."""


@pytest.mark.parametrize("command", OURS)
def test_a_command_of_the_documentation_accepts_its_arguments(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parsed by the command itself, and no further."""
    words = shlex.split(command)
    if words[0] == "ijepa-bench":
        module, *arguments = COMMANDS[words[1]][0], *words[2:]
    elif words[1] == "-m":
        module, *arguments = words[2:]
    else:
        assert (ROOT / words[1]).exists()
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self: argparse.ArgumentParser, *given: Any) -> NoReturn:
        parse(self, *given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr("sys.argv", [module, *arguments])
    with pytest.raises(Parsed):
        runpy.run_module(module, run_name="__main__", alter_sys=False)


def test_targets_configs_and_profiles_of_the_documentation_exist() -> None:
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    seen = set()
    for page, command in blocks():
        words = command.split()
        if words[0] == "make":
            seen.add(words[1])
            assert words[1] in targets, f"{page}: {command}"
        for path in re.findall(r"\bconfig/\w+\.yaml|workflow/profiles/\w+", command):
            assert (ROOT / path).exists(), f"{page}: {command}"
    assert {"reproduce", "test", "setup", "repro"} <= seen


def test_links_of_the_documentation_lead_somewhere() -> None:
    links = [
        (page, target)
        for page in PAGES
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text())
        if not target.startswith("http")
    ]
    assert len(links) > 20
    assert [link for link in links if not (link[0].parent / link[1]).exists()] == []


@pytest.mark.parametrize(("path", "text"), TABLES)
def test_a_table_of_the_documentation_is_the_committed_one(path: str, text: str) -> None:
    table = (ROOT / path).read_text().split("\n\n")[1]
    assert text.strip() == table.strip()


def test_the_readme_is_short_and_shows_tables() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert TABLES


EXAMPLES = dict(
    re.findall(
        r"Save this as `([^`]+)`:\n\n```python\n(.*?)```",
        (ROOT / "docs" / "extending.md").read_text(),
        re.DOTALL,
    )
)


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The files of docs/extending.md, in folders that count as the project's own."""
    for path, code in EXAMPLES.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True)
        file.write_text(code)
    for package in (ijepa.methods, evals.protocols):
        folder = tmp_path / package.__name__.replace(".", "/")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    yield
    for path in EXAMPLES:
        sys.modules.pop(path.removesuffix(".py").replace("/", "."), None)
    importlib.invalidate_caches()


@pytest.mark.usefixtures("added")
def test_the_method_and_the_evaluation_of_the_documentation_run(data: Path, tmp_path: Path) -> None:
    assert [len(code.splitlines()) for code in EXAMPLES.values()] == [60, 29]
    raw = raw_run_of("rotation")
    raw["recipe"] = {"preset": "tiny", "optim": {"batch_size": 32, "epochs": 2}}
    out = tmp_path / "out" / "encoder.safetensors"
    train(parse_run(raw), data, tmp_path / "work", out)
    features = tmp_path / "features" / "about.json"
    extract(out, data, features)
    result = tmp_path / "class_means.json"
    evaluate("class_means", {}, Subject(data, "class", features_of=features), result)
    assert protocol.load_evaluation("class_means").Config().layers == 1
    assert '"n": 32' in result.read_text()


def test_the_keys_of_a_config_are_those_of_its_types() -> None:
    text = (ROOT / "config" / "README.md").read_text()
    (shown,) = re.findall(r"<!-- ijepa-bench plan keys -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert shown.strip() == keys_in_words().strip()
