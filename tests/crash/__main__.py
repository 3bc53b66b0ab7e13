"""`python -m tests.crash`: kills every command that writes, and prints how many kills left or lost something."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from tests.crash.cases import CASES, SLOW, make_inputs
from tests.crash.harness import outcomes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=25, help="kills of each command, spread over its file operations")
    parser.add_argument("--synth", type=int, default=1000, help="kills of synth")
    parser.add_argument("--first", type=int, default=0, help="number of the first kill, for a run in pieces")
    parser.add_argument("--only", nargs="*", help="cases by name")
    parser.add_argument(
        "--inputs", type=Path, help="folder for what the commands read, made if missing; else a temporary one"
    )
    options = parser.parse_args()
    chosen = [case for case in [*CASES, *SLOW] if (case.name in options.only if options.only else case in CASES)]
    killed = failed = 0
    with tempfile.TemporaryDirectory(prefix="dive-crash-") as place:
        inputs = (options.inputs or Path(place) / "inputs").absolute()
        if not inputs.exists():
            make_inputs(inputs)
        for case in chosen:
            wanted, done, wrong = options.synth if case.name == "synth" else options.kills, 0, []
            with tqdm(total=wanted, desc=case.name, unit="kill", leave=False) as bar:
                while done < wanted:  # fewer operations than kills: again from another one
                    first = options.first + done
                    for outcome in outcomes(case, inputs, Path(place) / "work", wanted - done, first):
                        done += 1
                        bar.update()
                        if outcome.wrong:
                            wrong.append(f"  before operation {outcome.operation}: {outcome.wrong}")
            print(f"{case.name}: {done:,} kills, {len(wrong):,} left or lost something", *wrong, sep="\n", flush=True)
            killed, failed = killed + done, failed + len(wrong)
    print(f"{killed:,} kills of {len(chosen)} commands: {failed:,} left or lost something")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
