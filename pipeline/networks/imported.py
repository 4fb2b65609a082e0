"""Import the ``module:attribute`` of a flag."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from labelstore.errors import InputError, reason


def imported(what: str, name: str) -> Any:
    """The attribute that ``package.module:attribute`` names, or ``module:Class.method``.

    Args:
        what: it is for, in messages.
        name: the name as typed.

    Raises:
        InputError: when it cannot be had, whatever the module raises, or when it is the name of a file.
    """
    module, _, attribute = name.partition(":")
    if module.endswith(".py") or "/" in module:
        raise InputError(
            f"{what} {name}: expected the name of a module, not of its file; give {Path(module).stem}:{attribute}, "
            f"with the file in this folder or its folder in PYTHONPATH"
        )
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # a module may raise anything when it is imported, and may be a script
        raise InputError(f"{what} {name}: cannot be imported ({type(error).__name__}: {reason(error)})") from error
    return found
