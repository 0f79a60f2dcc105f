"""Released weights: ``python -m ijepa.released.download ADDRESS PATH --sha256 HEX --licence TEXT``.

The same command continues after a broken connection or a killed process (ijepa.data.download).

ADDRESS may be a ``file://`` address or a plain path, for weights that are on this machine already.
They are copied, not linked, so that a later edit of the original does no harm.
"""

import argparse
import logging
import re
from pathlib import Path

from ijepa.data.addresses import unsigned
from ijepa.data.download import download
from ijepa.errors import UserError, program, run_command
from ijepa.files import digest

log = logging.getLogger(__name__)


def bring(address: str, path: Path, sha256: str, licence: str) -> None:
    """Download weights to ``path``, unless they are there with the right SHA-256.

    Raises UserError if the download fails or if another file is at ``path``.
    """
    sha256 = sha256.lower()
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise UserError(f"{sha256!r} is no SHA-256: give its 64 hexadecimal digits")
    if path.is_dir():
        raise UserError(f"{path} is a folder: name the file that is to be written in it")
    if path.exists():
        if (got := digest(path)) != sha256:
            raise UserError(
                f"{path} has SHA-256 {got}, expected {sha256}: move it away if it is to be "
                "replaced, or correct the SHA-256, then run the same command again"
            )
        log.info("%s is there, with the right SHA-256", path)
        return
    if "://" not in address:
        address = Path(address).absolute().as_uri()
    print(f"licence: {licence}\nfetching {unsigned(address)}", flush=True)
    download(address, path, f"sha256:{sha256}")


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(
        prog=program("ijepa.released.download"),
        description="Fetch a file and check it; the same command continues an interrupted one.",
    )
    parser.add_argument("address", help="http://, https:// or file:// address, or a path")
    parser.add_argument("path", type=Path, help="the file to write")
    parser.add_argument("--sha256", required=True, help="SHA-256 of the file, hexadecimal")
    parser.add_argument("--licence", required=True, help="licence of the file, to be printed")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    bring(options.address, options.path, options.sha256, options.licence)


if __name__ == "__main__":
    run_command(main)
