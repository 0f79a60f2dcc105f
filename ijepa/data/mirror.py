"""Mirror of shards at an address: all but the tars, which stay there (ijepa.data.remote)."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from ijepa.data.remote import CONNECTIONS, NOTE, SECRETS, Remote
from ijepa.data.shards import Index, parse_index, read_index
from ijepa.errors import UserError
from ijepa.files import digest, writable, write_json, written_whole


def mirror(address: str, out: Path) -> None:
    """Copy the index and each shard's JSON file, and note the address without its secrets.

    Files that are there and right are kept. The index is written last: with it the mirror is whole.
    Raises UserError if ``out`` holds another version, or if a file is not that of the index.
    """
    remote = Remote(address)
    writable(out)
    content = remote.read("index.json")
    sums = _sums(content, remote, out)
    with (
        ThreadPoolExecutor(CONNECTIONS) as pool,
        tqdm(total=len(sums), desc="indices of shards", unit="shard", mininterval=1) as bar,
    ):
        for _ in pool.map(lambda item: _bring(remote, out, *item), sums.items()):
            bar.update()
    write_json(out / NOTE, {"address": remote.address})
    path = out / "index.json"
    if not path.exists() or path.read_bytes() != content:
        with written_whole(path) as part:
            part.write_bytes(content)
    if "@" in address or "?" in address:
        print(
            f"{remote.address} is noted without its user or query: set {SECRETS} to the address "
            "as you gave it for every command that reads images"
        )


def _sums(content: bytes, remote: Remote, out: Path) -> dict[str, str]:
    """SHA-256 of each shard's JSON file; raises UserError for an index that cannot be mirrored."""
    try:
        index = parse_index(content)
        entries = [entry for shards in index.splits.values() for entry in shards]
        sums = {_json_name(entry["name"]): str(entry["places_sha256"]) for entry in entries}
        version = index.version()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{remote.address}/index.json is no index of shards ({error}): give the address of a "
            "folder that ijepa-bench data build has made"
        ) from None
    _check_version(index, version, remote, out)
    return sums


def _json_name(name: str) -> str:
    """Name of a shard's JSON file; raises ValueError for a name that leads out of the folder."""
    if Path(name).name != name or not name.endswith(".tar"):
        raise ValueError(f"a shard is called {name!r}")
    return Path(name).with_suffix(".json").name


def _check_version(index: Index, version: str, remote: Remote, out: Path) -> None:
    """Raise UserError if the folder holds other data than the address."""
    if (out / "index.json").exists() and (here := read_index(out)).version() != version:
        raise UserError(
            f"{out} holds {here.dataset} in version {here.version()}, {remote.address} has "
            f"{index.dataset} in version {version}: choose another folder"
        )


def _bring(remote: Remote, out: Path, name: str, sha256: str) -> None:
    """Copy a shard's JSON file if it is missing or another one."""
    path = out / name
    if path.exists() and digest(path) == sha256:
        return
    content = remote.read(name)
    if (got := hashlib.sha256(content).hexdigest()) != sha256:
        raise UserError(
            f"{remote.address}/{name} has SHA-256 {got}, index.json there says {sha256}: the "
            "shards are damaged, or being made: mend them there (ijepa-bench data verify), then "
            "run again"
        )
    with written_whole(path) as part:
        part.write_bytes(content)
