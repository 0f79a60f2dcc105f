"""What went wrong on the user's side, and how a command says so."""

import errno
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(ValueError):
    """A mistake in a config, a file or a machine; the message names it and the remedy."""


def run_command(command: Callable[[], None]) -> NoReturn:
    """Run a command line's main function and exit: one line for a user's error, 130 after Ctrl-C.

    Anything else is a fault of this software and keeps its traceback.
    """
    try:
        command()
    except UserError as error:
        # A loader's worker sends its error as the text of a traceback, whose last line says it all.
        sys.exit(f"error: {str(error).strip().splitlines()[-1].split('UserError: ')[-1]}")
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno in REMEDIES:
            sys.exit(
                f"error: {error.filename or 'output'}: {error.strerror}: {REMEDIES[error.errno]}"
            )
        raise
    sys.exit(0)


REMEDIES = {
    errno.ENOSPC: "free some space and run the same command again; what is finished is kept",
    errno.EDQUOT: "free some space and run the same command again; what is finished is kept",
    errno.EACCES: "give yourself access to it or choose another folder",
    errno.EPERM: "give yourself access to it or choose another folder",
    errno.EROFS: "choose a folder on a writable file system",
    errno.EEXIST: "a file stands where a folder is needed: move it away",
    errno.ENOTDIR: "a file stands where a folder is needed: move it away",
}
