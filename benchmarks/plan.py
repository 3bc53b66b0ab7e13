"""A plan of ten million pairs: `python -m benchmarks.plan` prints seconds and peak memory as JSON (part of benchmarks.bulk).

Loads no torch, so that the peak is the plan's. Its photos' names lead to nothing: a plan does not open them.
"""

from __future__ import annotations

import json
import resource
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import timed
from dive_fast.sampling import Sampling
from dive_fast.synth.folder import claim_folder, finished_shards, open_store
from dive_fast.synth.layout import shard_pairs
from dive_fast.synth.manifest import shard_name
from dive_fast.synth.plan import load_plan, make_plan, save_plan
from dive_fast.types import Camera, Sample


def plan_of_millions() -> dict[str, Any]:
    """10,000 identities with 20 photos each, 500 pairs for each of two cameras: 10 million pairs."""
    pids = [f"{number:05d}" for number in range(10000, 20000)]
    photos = [Sample(Path(f"/photos/{pid}/{n:03d}.jpg"), pid, "cam7") for pid in pids for n in range(20)]
    cameras = [Camera("cam3", "ir", "a"), Camera("cam6", "ir", "b")]
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "plan.json", Path(folder) / "out"
        seconds["make"], plan = timed(
            lambda: make_plan(
                mode="real-rgb",
                pids=pids,
                cameras=cameras,
                ir=["cam3", "cam6"],
                pairs_per_identity=500,
                seed=1,
                sampling=Sampling(25, 7.5),
                height=512,
                width=256,
                model_fingerprint="m",
                photos=photos,
                photo_root="/photos",
                shard_size=1000,
            )
        )
        seconds["write"], _ = timed(lambda: save_plan(plan, file))
        seconds["read"], plan = timed(lambda: load_plan(file))
        hundred, _ = timed(lambda: [shard_pairs(plan, n) and None for n in range(0, 10000, 100)])
        seconds["a shard, of 1000 pairs"] = hundred / 100
        store = open_store(out)
        claim_folder(store, plan)
        (out / "shards").mkdir()
        for number in range(9000):
            (out / shard_name(number)).write_bytes(b"{}\n")
        seconds["find the remaining work"], done = timed(lambda: finished_shards(store, plan))
        assert plan.shards - len(done) == 1000
        size = file.stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "pairs": len(plan.pairs),
        "MB": round(size / 1e6, 1),
        "peak MiB": round(peak),
        "s": {name: round(value, 4) for name, value in seconds.items()},
    }


if __name__ == "__main__":
    print(json.dumps(plan_of_millions()))
