"""Errors that a user can correct, their report by a command, and the name of the command."""

import contextlib
import errno
import os
import select
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import NoReturn


class UserError(ValueError):
    """A mistake in a config, a file or a machine; the message names it and the remedy."""


def program(module: str) -> str:
    """Name of a command in its usage and errors, as it was called.

    It is ``ijepa-bench COMMAND`` through the one door (``workflow``), else ``python -m MODULE``.
    """
    match sys.orig_argv:
        case [_, "-m", "workflow", command, *_]:
            return f"ijepa-bench {command}"
    return f"python -m {module}"


def run_command(command: Callable[[], None]) -> NoReturn:
    """Run a command's main function and exit: one line for a user's error, 130 after Ctrl-C.

    Any other error is a fault of this software and keeps its traceback.
    """
    try:
        with in_one_line():
            command()
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """End the process with one line for a UserError, or for a disk error with a remedy.

    It ends without a word, with SIGPIPE's exit status, if nobody reads its output any more.
    """
    try:
        shorten_temporary_names()
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more at its end
        sys.exit(128 + signal.SIGPIPE)
    except UserError as error:
        # A loader's worker sends its error as the text of a traceback: the message is what follows
        # the error's name.
        sys.exit(f"error: {' '.join(str(error).split('UserError: ')[-1].split())}")
    except OSError as error:
        if error.errno in REMEDIES:
            sys.exit(
                f"error: {error.filename or 'output'}: {error.strerror}: {REMEDIES[error.errno]}"
            )
        raise


def _reader_is_gone() -> bool:
    """True if nobody reads standard output any more, as in ``inspect FILE | head -1``."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


LONGEST_FOLDER = 60
"""Bytes: a socket's name has at most 107, of which Python and torch add 40 to the folder's."""


def shorten_temporary_names() -> None:
    """Take /tmp for this process and those it starts if TMPDIR is too long for sockets in it.

    Loaders and builders of shards would fail, or wait for ever. Raises UserError without /tmp.
    """
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) <= LONGEST_FOLDER:
        return
    if not os.access("/tmp", os.W_OK):
        raise UserError(
            f"TMPDIR: {folder} is too long for the names of sockets, and /tmp cannot be written: "
            f"set TMPDIR to a folder of at most {LONGEST_FOLDER} characters"
        )
    print(f"TMPDIR: {folder} is too long for the names of sockets: taking /tmp", file=sys.stderr)
    os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"


REMEDIES = {
    errno.ENOSPC: "free some space and run the same command again; what is finished is kept",
    errno.EDQUOT: "free some space and run the same command again; what is finished is kept",
    errno.EACCES: "give yourself access to it or choose another folder",
    errno.EPERM: "give yourself access to it or choose another folder",
    errno.EROFS: "choose a folder on a writable file system",
    errno.EEXIST: "a file stands where a folder is needed: move it away",
    errno.ENOTDIR: "a file stands where a folder is needed: move it away",
}
