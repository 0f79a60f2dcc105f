"""Files that are either whole or not there: written under another name, then renamed."""

import contextlib
import glob
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ijepa.errors import UserError

ROOT = Path(__file__).parents[1]
"""Root of the repository."""


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Temporary path to write to, renamed to ``path`` when the block ends without an error.

    A killed process leaves at most a ``.part`` file, which the next writer on its machine removes.
    Two processes that write the same path, on whatever machines, do not disturb each other: the
    file of the last one to finish stays. The file has the mode of any new file in its folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The host is in the name because only processes of this machine can be checked for life.
    prefix = f".{path.name}.{socket.gethostname()}"
    part = path.with_name(f"{prefix}.{os.getpid()}.part")
    for other in path.parent.glob(f"{glob.escape(prefix)}.*.part"):
        if not is_alive(int(other.name.split(".")[-2])):
            other.unlink(missing_ok=True)
    try:
        part.touch()
        mode = part.stat().st_mode
        part.unlink()
        yield part
        if part.stat().st_mode != mode:  # safetensors writes for the user alone
            part.chmod(mode & 0o777)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        if error.errno is not None:  # else its text would be lost
            error.filename = error.filename or str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """True if a process with this id runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that git can diff, whole or not at all."""
    write_text(path, to_json(value))


def write_yaml(path: Path, value: Any) -> None:
    """Write plain data as a YAML file; a file with the same content is not touched."""
    text = yaml.safe_dump(value, sort_keys=False, width=100)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Reader of YAML, in C where PyYAML has it: the register of data sets takes 0.02 s, not 0.3."""


def _refuse_doubled(node: yaml.Node | None, seen: set[int]) -> None:
    """Raise YAMLError for a key that is in a mapping twice: one of its values would be lost."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_doubled(item, seen)
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                if key.value in keys:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark
                    )
                keys.add(key.value)
            _refuse_doubled(value, seen)


def read_yaml(path: Path) -> Any:
    """Content of a YAML file; raises UserError if it is missing or not YAML."""
    try:
        text = path.read_text(encoding="utf-8")
        loader = LOADER(text)
        node = loader.get_single_node()
        _refuse_doubled(node, set())
        return None if node is None else loader.construct_document(node)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: name a file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{path}{where}: {problem}: this is not YAML, mend it") from None


def read_json(path: Path) -> Any:
    """Content of a JSON file; raises UserError if it is empty or torn, as after a power cut."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}): delete it and run the same again") from None


def check_format(content: Any, newest: int, path: object) -> dict[str, Any]:
    """Content of a file whose key ``format`` numbers its layout; the first layout had none.

    Raises UserError if a newer version of this software wrote it, or if it holds no keys.
    """
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no keys and values: delete it and run the same again")
    if content.get("format", 1) > newest:
        raise UserError(
            f"{path} has format {content['format']}, this version reads up to {newest}: update "
            "ijepa-bench"
        )
    return content


def to_json(value: Any) -> str:
    """JSON text with one item a line."""
    return json.dumps(value, indent=1) + "\n"


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def writable(folder: Path) -> None:
    """Make a folder; raises UserError if nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): choose another folder, "
            "or give yourself the right to write there"
        ) from None
