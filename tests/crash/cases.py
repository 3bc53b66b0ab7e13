"""Every command that writes, on inputs small enough for a run in a second, and those inputs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from tests.crash.harness import Case, run

TINY = "--height 64 --width 32 --stripes 2 --identities 2 --per-modality 2 --steps 4"
SET = "sysu:{0}/world/sysu"
SMALL_WORLD = "--paired-ids 3 --test-ids 2 --external-ids 1 --images-per-camera 2 --market-images 2"

CASES = [
    Case("world make", "world make --out out --paired-ids 1 --test-ids 1 --external-ids 1 --images-per-camera 1"),
    Case("world sheet", "world sheet --out sheet.png --pids 1 --zoom 1"),
    Case("prepare", f"prepare --out out --photos {SET} --model {{0}}/base --shard-size 12 --device cpu"),
    Case(
        "personalize",
        f"personalize --out out --photos {SET} --model {{0}}/base --identity-steps 2 --steps 2 --batch 2 --rank 2 "
        "--save-every 1 --device cpu",
        varies=("out.training/*.jsonl", "out.training/lock"),
    ),
    Case(
        "train-encoder",
        f"train-encoder --out out --photos {SET} --model {{0}}/base --features {{0}}/net --identity-steps 2 --steps 2 "
        "--batch 2 --rank 2 --width 8 --save-every 1 --device cpu",
        varies=("out.training/*.jsonl", "out.training/lock"),
    ),
    Case("encode", f"encode --encoder {{0}}/encoder --photos {SET},prefix=7 --out out --device cpu"),
    Case("virtual", "virtual --encoder {0}/encoder --people 3 --percentile 0 --out out"),
    Case("import", "import {0}/exported --model {0}/base --out out"),
    Case("import over", "import {0}/exported --model {0}/base --out out --overwrite", {"out": "older"}),
    Case("fuse", "fuse --adapter {0}/adapter --model {0}/base --out out"),
    Case("fuse over", "fuse --adapter {0}/adapter --model {0}/base --out out --overwrite", {"out": "older-fused"}),
    Case("export-adapter", "export-adapter --adapter {0}/adapter --out out"),
    Case("plan", "plan --model {0}/fused --out plan.json --mode synthetic --pairs 2 --steps 2 --overwrite"),
    Case("synth", "synth --plan {0}/plan.json --engine {0}/fused --out out --rows 8 --device cpu"),
    Case("pack", "pack {0}/pairs --out out"),
    Case("card", "card pairs --model {0}/fused", {"pairs": "pairs"}),
    Case("score", f"score pairs --net {{0}}/net --real {SET} --device cpu", {"pairs": "pairs"}),
    Case("filter", "filter scored --keep-fraction identity=0.5 --allow-lost", {"scored": "scored"}),
    Case(
        "compare-sets",
        f"compare-sets pairs --net {{0}}/net --real {SET} --device cpu --out sets.json",
        {"pairs": "pairs"},
    ),
    Case("merge", f"merge --real {SET} --synthetic {{0}}/pairs --same-people --layout sysu --out out"),
    Case("merge agw", f"merge --real {SET} --synthetic {{0}}/pairs --same-people --layout agw --out out"),
    Case("report", "report scored --out out --workers 1", {"scored": "scored"}),
    Case("report page", "report {0}/pairs --out page.html"),
    Case("reid train", f"reid train --out out --real {SET} {TINY} --save-every 2 --device cpu"),
    Case("reid eval", f"reid eval --checkpoint {{0}}/net --test {SET} --out r.json --export out --device cpu"),
    Case("reid show", f"reid show --checkpoint {{0}}/net --test {SET} --out out --images 0 --device cpu"),
    Case(
        "reid compare",
        f"reid compare --real {SET} --arm baseline --arm more={{0}}/pairs --same-people --seeds 0 --out out {TINY} "
        "--device cpu",
    ),
    Case("capacity", "capacity --pairs 1000 --rate 10 --bytes-per-image 1000 --gpus 1 --out out"),
    *([Case("manifest", "manifest {0}/pairs --parquet pairs.parquet")] if find_spec("pyarrow") else []),
]
SLOW = [Case("export", "export --model {0}/fused --out out --no-check", varies=("out/export.json",))]


def make_inputs(folder: Path) -> None:
    """Writes what the cases read."""
    from dive_fast.models import fuse, load_bundle, save_adapter, save_bundle
    from dive_fast.models.interop import export_adapter
    from tests.support.tiny import tiny_adapter, tiny_bundle_folder

    folder.mkdir(parents=True, exist_ok=True)
    base = tiny_bundle_folder(folder / "base")
    for name, seed in (("adapter", 0), ("older", 1)):
        adapter = tiny_adapter(load_bundle(base), seed=seed)
        save_adapter(adapter, folder / name)
        save_bundle(fuse(load_bundle(base), adapter), folder / {"adapter": "fused", "older": "older-fused"}[name])
    export_adapter(tiny_adapter(load_bundle(base)), folder / "exported")
    lines = {
        "world": f"world make --out world {SMALL_WORLD}",
        "plan": "plan --model {0}/fused --out plan.json --mode synthetic --pairs 2 --steps 2 --shard-size 3",
        "pairs": "synth --plan {0}/plan.json --engine {0}/fused --out pairs --rows 8 --device cpu",
        "net": f"reid train --out net --real {SET} {TINY} --device cpu",
        "encoder": f"train-encoder --out encoder --photos {SET} --model {{0}}/base --features {{0}}/net "
        "--identity-steps 1 --steps 1 --batch 2 --rank 2 --width 8 --device cpu",
        "scored": f"score scored --net {{0}}/net --real {SET} --device cpu",
    }
    for name, line in lines.items():
        if name == "scored":
            shutil.copytree(folder / "pairs", folder / "scored")
        code, _ = run(Case(name, line), folder, folder)
        if code:
            raise RuntimeError(f"{line}: exit code {code}: {folder.with_name('log.txt').read_text()[-2000:]}")


def named(name: str) -> Case:
    """The case of a name."""
    return next(replace(case) for case in [*CASES, *SLOW] if case.name == name)
