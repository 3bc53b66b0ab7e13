"""Fused model -> engine folder, file to file. Nothing in `dive_fast` imports this but the command line."""

from dive_export.artifact import export_engine
from dive_export.options import GraphOptions
from dive_fast.unet.optimizations import SAVINGS

__all__ = ["SAVINGS", "GraphOptions", "export_engine"]
