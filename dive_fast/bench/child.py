"""One round of `dive-fast bench --compare`: run as a file, on the source tree that its task names.

It may meet an old version of dive_fast, so it takes nothing from `dive_fast.bench`, and of the rest only what every version
has. Reads its task from the first argument (JSON), prints one line of JSON: which dive_fast it was, and the milliseconds of
every UNet call and batch.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

SEED = 0
PACKAGES = {"dive_fast": "", "dive_kernels": "kernels", "dive_export": "export"}  # and where a tree has them


class TreeFinder:
    """Finds our packages in one tree. An editable install has a finder of its own, which sys.path does not overrule."""

    def __init__(self, tree: Path) -> None:
        self._places = [str(tree / part) for part in PACKAGES.values()]

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] not in PACKAGES:
            return None
        return PathFinder.find_spec(name, self._places if path is None else path, target)


def timed(call: Callable[[], object], repeats: int, cuda: bool) -> list[float]:
    """Milliseconds of each call after one to warm up, the device's work awaited."""
    found = []
    for number in range(repeats + 1):
        begun = time.perf_counter()
        call()
        if cuda:
            import torch

            torch.cuda.synchronize()
        if number:
            found.append(1e3 * (time.perf_counter() - begun))
    return found


def open_engine(task: dict[str, Any]) -> Any:
    """The fused model opened as asked; for what reads graphs exported by this very tree, once into its work folder."""
    from dive_fast.engines import load_engine

    folder = Path(task["model"])
    if task["backend"] in ("onnxruntime", "openvino"):
        from dive_export import export_engine

        folder = Path(task["work"]) / "engine"
        if not (folder / "engine.json").exists():
            export_engine(task["model"], folder, rows_max=max(task["rows"]), check=False)
    return load_engine(folder, backend=task["backend"], device=task["device"], threads=task["threads"])


def sampler_for(engine: Any, schedule: Any, task: dict[str, Any]) -> Callable[[Any, Any], Any]:
    """What the solver asks at each step, for a bank and the index of prompts in it.

    Every version knows `guided` with four arguments; a guidance interval is asked only of those that have one.
    """
    from dive_fast.sampling import guided

    guidance, interval = task["sampling"]["guidance"], task["sampling"]["guidance_interval"]
    at = [] if interval is None else [schedule.within(tuple(interval))]
    return lambda bank, index: guided(lambda x, t, i: engine.eps(x, t, bank, i), index, 0, guidance, *at)


def measure(task: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """{"unet": {rows: ms}, "batch": {rows: ms}}; a batch goes from prompts to pixels."""
    from dive_fast.sampling import Schedule, dpmpp_2m, initial_noise

    engine = open_engine(task)
    table = engine.prompts.table
    keys = [(identity.pid, table.cameras[0].name) for identity in table.identities]
    schedule = Schedule.from_config(engine.scheduler_config, task["sampling"]["steps"])
    sampler = sampler_for(engine, schedule, task)
    cuda = engine.device.type == "cuda"
    found: dict[str, dict[str, list[float]]] = {"unet": {}, "batch": {}}
    for rows in task["rows"]:
        images = rows if task["sampling"]["guidance"] == 1.0 else rows // 2
        noise = initial_noise(range(SEED, SEED + images), engine.latent_shape).to(engine.device)
        asked = [None, *(keys * images)[:images]]

        def conditioned(asked: list[Any] = asked) -> tuple[Any, Any]:
            embeddings, index = engine.prompts.encode(engine.encode_text, asked)
            return engine.condition(embeddings), index[1:]

        def batch(noise: Any = noise) -> None:
            conditioning, index = conditioned()
            engine.decode(dpmpp_2m(sampler(conditioning, index), noise, schedule))

        conditioning, index = conditioned()
        both = index.repeat(rows // images)
        call = lambda c=conditioning, i=both, x=noise: engine.eps(x, 500, c, i)  # noqa: E731
        found["unet"][str(rows)] = timed(call, task["repeats"], cuda)
        found["batch"][str(rows)] = timed(batch, task["batches"], cuda)
    return found


def main() -> None:
    task = json.loads(sys.argv[1])
    sys.meta_path.insert(0, TreeFinder(Path(task["tree"])))
    source = importlib.import_module("dive_fast").__file__
    print(json.dumps({**measure(task), "source": source}))


if __name__ == "__main__":
    main()
