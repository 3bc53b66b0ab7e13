"""Fused model -> engine folder, file to file. `export_engine` is imported at its first use: the options need no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dive_export.options import GraphOptions

if TYPE_CHECKING:
    from dive_export.artifact import export_engine

__all__ = ["GraphOptions", "export_engine"]


def __getattr__(name: str) -> Any:
    if name != "export_engine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dive_export.artifact import export_engine

    return export_engine
