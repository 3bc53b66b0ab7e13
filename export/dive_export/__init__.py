"""Fused model -> engine folder, file to file. Nothing in `dive_fast` imports this but the command line."""

from dive_export.artifact import export_engine

__all__ = ["export_engine"]
