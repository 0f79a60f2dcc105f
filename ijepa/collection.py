"""Collections: folders whose modules are members, each known by its file's name.

``ijepa/methods``, ``evals/protocols``, ``ijepa/data/sources`` and ``ijepa/data/tokenizers`` are
such folders. Each has its contract in a module beside it.
"""

import importlib
import pkgutil
from typing import Any

from ijepa.errors import UserError


def members(package: str) -> list[str]:
    """Names of all members, sorted."""
    folders = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(folders))


def load(package: str, name: str, kind: str, where: str = "") -> Any:
    """Module of a member; raises UserError, after ``where``, with all names for an unknown one."""
    if name not in (names := members(package)):
        raise UserError(f"{where}unknown {kind} {name!r}: known are {', '.join(names)}")
    return importlib.import_module(f"{package}.{name}")
