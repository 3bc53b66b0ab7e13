"""From a plan to a dataset of RGB-infrared pairs: `make_plan`, `synthesize`, and the manifest that tells what was made.

Names are looked up at their first use: readers of a manifest need neither torch nor the code that made it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dive_fast.synth.local import Summary, synthesize
    from dive_fast.synth.plan import SynthesisPlan, load_plan, make_plan, save_plan

__all__ = ["Summary", "SynthesisPlan", "load_plan", "make_plan", "save_plan", "synthesize"]

_HOMES = {"Summary": "local", "synthesize": "local"}


if not TYPE_CHECKING:  # or mypy would accept any name

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'plan')}"), name)
