"""Packages that only some features need."""

from __future__ import annotations

import importlib
from typing import Any

from dive_fast.types import DiveError


def optional(
    module: str, what: str, instead: str = "", *, extra: str = "reid", error: type[DiveError] = DiveError
) -> Any:
    """Returns a module; without its package raises `error`: `what` needs it, the extra installs it, or do `instead`."""
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        package = {"sklearn": "scikit-learn"}.get(name := module.partition(".")[0], name)
        remedy = f", or {instead}" if instead else ""
        raise error(f"{what} needs {package}; pip install 'dive-fast[{extra}]'{remedy}") from cause
