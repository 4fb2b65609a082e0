"""What a flag names as ``module:attribute``."""

from __future__ import annotations

import importlib
from typing import Any

from labelstore.errors import InputError


def imported(flag: str, name: str) -> Any:
    """The attribute that ``package.module:attribute`` names.

    Raises:
        InputError: when it cannot be had, whatever the module raises.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module may raise anything when it is imported
        raise InputError(f"{flag} {name}: cannot be imported ({type(error).__name__}: {error})") from error
