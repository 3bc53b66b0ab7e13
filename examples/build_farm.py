#!/usr/bin/env python3
"""Adapters in, engines out: what a build farm runs unattended, every night or for every new adapter.

    python examples/build_farm.py --base stable-diffusion-v1-5 --adapters adapters/ --out engines/ \
        --export "--recipe gpu" --build "--rows 72 --refittable"

For each folder of --adapters that holds an adapter: fuse, export to ONNX and, with --build, build for TensorRT. Under
--out each adapter gets `NAME/onnx`, `NAME/engine` and `NAME/build.log` (every line of every command, with the time);
`farm.jsonl` gets a line for each command that ran. A rerun repeats only what is not there or not whole, since each
command leaves a finished folder of the same content as it is and writes a folder whole or not at all. One adapter's
failure does not stop the others. Exit code: 0 all are built, 1 some are not, 2 the input is bad.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

from dive_fast.io import locked
from dive_fast.types import InputError

DIVE_FAST = [sys.executable, "-m", "dive_fast.cli"]


def main() -> int:
    """Builds every adapter in turn; see the module's docstring for the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="base model of the adapters; pocket is the shipped one")
    parser.add_argument("--adapters", required=True, type=Path, help="folder with an adapter folder each")
    parser.add_argument("--out", required=True, type=Path, help="where engines go")
    parser.add_argument("--export", default="", help="options of `dive-fast export`, in quotes")
    parser.add_argument("--build", help="options of `dive-fast build`, in quotes; without it ONNX engines are the end")
    options = parser.parse_args()
    adapters = sorted(path.parent for path in options.adapters.glob("*/adapter.json"))
    if not adapters:
        print(f"build_farm: {options.adapters} holds no adapter folder (NAME/adapter.json)", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(options.out / ".lock", options.out))
        except InputError:
            print(
                f"build_farm: another farm builds into {options.out}; wait for it or choose another --out",
                file=sys.stderr,
            )
            return 2
        failed = [adapter.name for adapter in adapters if not build(adapter, options)]
    done = len(adapters) - len(failed)
    print(f"{done} of {len(adapters)} adapters are built" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def build(adapter: Path, options: argparse.Namespace) -> bool:
    """One adapter through all commands; False, and a line to standard error, where one of them failed."""
    out = options.out / adapter.name
    out.mkdir(exist_ok=True)
    # The fused model is as large as the base and only a step on the way, so it does not outlive its export.
    with tempfile.TemporaryDirectory(prefix=".fused-", dir=out) as work:
        fused = Path(work) / "fused"
        stages = {
            "fuse": ["--model", options.base, "--adapter", str(adapter), "--out", str(fused)],
            "export": ["--model", str(fused), "--out", str(out / "onnx"), *shlex.split(options.export)],
        }
        if options.build is not None:
            stages["build"] = ["--engine", str(out / "onnx"), "--out", str(out / "engine"), *shlex.split(options.build)]
        return all(run(stage, arguments, adapter.name, options.out) for stage, arguments in stages.items())


def run(stage: str, arguments: list[str], name: str, out: Path) -> bool:
    """One command, its output added to the adapter's log and a line to the farm's; whether it succeeded."""
    print(f"{name}: {stage} ...", flush=True)
    started, begun = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.monotonic()
    log = out / name / "build.log"
    command = [*DIVE_FAST, stage, *arguments]
    with open(log, "ab") as stream:
        stream.write(f"[{started}] {shlex.join(command)}\n".encode())
        stream.flush()
        code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode
    record = {
        "adapter": name,
        "stage": stage,
        "started": started,
        "seconds": round(time.monotonic() - begun, 1),
        "exit": code,
    }
    with open(out / "farm.jsonl", "a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")
    if code:
        reason = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1]
        print(f"{name}: {stage} failed with exit code {code}: {reason} (all of it: {log})", file=sys.stderr)
    return code == 0


if __name__ == "__main__":
    sys.exit(main())
