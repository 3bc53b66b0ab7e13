"""Where torch.compile and Triton keep what they compile: a folder that outlives a machine, and may be shared."""

from __future__ import annotations

import os
from pathlib import Path

from dive_fast.io import user_cache

INDUCTOR, TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"  # as torch and Triton read them


def keep_compiled(cache: Path | None) -> None:
    """Makes this process read and write compiled code in `cache`, by default in the user's cache folder.

    Without `cache`, folders that the environment names stay. Both libraries name files by the hash of code, versions and
    GPU, and write them atomically, so processes of several machines may share a folder: the first one compiles.
    """
    folder = (cache or user_cache("compiled")).absolute()
    for name, place in ((INDUCTOR, folder / "inductor"), (TRITON, folder / "triton")):
        if cache is not None or name not in os.environ:
            os.environ[name] = str(place)
