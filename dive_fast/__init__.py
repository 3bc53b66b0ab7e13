"""dive_fast: RGB-infrared pairs of persons in bulk, from identities learned in RGB only.

    import dive_fast as df

has the names of docs/python.md: what the commands call, and the records of settings that they take. A name is imported
at its first use, so that `import dive_fast` loads neither torch nor diffusers.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# The module of each name.
_HOMES = {
    # photos
    "WorldSpec": "dive_fast.world.config",
    "build_world": "dive_fast.world.trees",
    "read_photos": "dive_fast.data.sets",
    # an adapter
    "PersonalizeConfig": "dive_fast.train.config",
    "personalize": "dive_fast.train.personalize",
    "encode_onto": "dive_fast.encoder.encode",
    "load_adapter": "dive_fast.models",
    # a fused model, an engine
    "load_bundle": "dive_fast.models",
    "fuse": "dive_fast.models",
    "save_bundle": "dive_fast.models",
    "export_engine": "dive_export",
    "load_engine": "dive_fast.engines",
    # pairs
    "Sampling": "dive_fast.sampling.config",
    "PlanConfig": "dive_fast.synth.config",
    "plan_pairs": "dive_fast.synth.choose",
    "synthesize": "dive_fast.synth",
    "read_pairs": "dive_fast.synth.manifest",
    # a score
    "ReidConfig": "dive_fast.reid.training.config",
    "train_reid": "dive_fast.reid.training.train",
    "identity_kept": "dive_fast.quality.kept",
    "compare": "dive_fast.reid.comparison.compare",
    # errors
    "DiveError": "dive_fast.types",
    "InputError": "dive_fast.types",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
