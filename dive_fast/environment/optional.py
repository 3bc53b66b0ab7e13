"""Packages that only some features need: where one is missing, the extra that installs it."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from dive_fast.environment.packages import PACKAGES
from dive_fast.types import DiveError


def optional(module: str, what: str, instead: str = "", error: type[DiveError] = DiveError) -> Any:
    """Returns a module; without its package raises `error`: `what` needs it, an extra installs it, or do `instead`."""
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise error(f"{what} needs {missing(module)}{f', or {instead}' if instead else ''}") from cause


def require(what: str, *modules: str) -> None:
    """Raises `DiveError` that names the extra of the first of `modules` that is not installed; imports none of them."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise DiveError(f"{what} needs {missing(module) or module}")


def missing(module: str) -> str | None:
    """Returns the package of a module and how to install it, for a message; None if no extra installs it."""
    root = module.partition(".")[0]
    for package, wanted in PACKAGES.items():
        if wanted.module.partition(".")[0] == root and wanted.extra is not None:
            return f"{package}; pip install 'dive-fast[{wanted.extra}]'"
    return None
