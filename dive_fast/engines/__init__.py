"""One interface to the four networks of a fused model; torch, onnxruntime and TensorRT behind it.

Names are imported at their first use: the registry of backends needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dive_fast.engines.base import Conditioning, Engine, Request
    from dive_fast.engines.load import load_engine

__all__ = ["Conditioning", "Engine", "Request", "load_engine"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "load" if name == "load_engine" else "base"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
