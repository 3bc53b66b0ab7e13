"""`python -m tests.fuzz`: damages every kind of file that the product reads, and prints what did not end in a sentence."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from tests.fuzz.harness import ACCEPTED, Outcome, Worker, cases, prepare, summary
from tests.fuzz.kinds import KINDS, make_inputs


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="damaged inputs, spread over all kinds")
    parser.add_argument("--seed", type=int, default=0, help="the first seed of each kind")
    parser.add_argument("--only", nargs="*", help="kinds by name")
    parser.add_argument("--keep", type=Path, help="folder to leave the damaged input in, of --only KIND --cases 1")
    parser.add_argument(
        "--inputs", type=Path, help="folder for undamaged inputs, made if missing; else a temporary one"
    )
    options = parser.parse_args()
    chosen = [kind for kind in KINDS if not options.only or kind.name in options.only]
    if not chosen:
        parser.error(f"no such kind; known are {', '.join(kind.name for kind in KINDS)}")
    with tempfile.TemporaryDirectory(prefix="dive-fuzz-") as place:
        inputs = (options.inputs or Path(place) / "inputs").absolute()
        if not inputs.exists():
            make_inputs(inputs, slow=any(kind.slow for kind in chosen))
        if options.keep:
            print(prepare(chosen[0], options.seed, inputs, options.keep))
        worker = Worker(inputs, Path(place) / "work")
        found: list[Outcome] = []
        try:
            stale = [kind.name for kind in chosen if worker.run(kind.name, -1).what != ACCEPTED]
            if stale:
                parser.error(
                    f"undamaged inputs of {', '.join(stale)} are refused; delete {inputs}: it is of older code"
                )
            with tqdm(cases(options.cases, chosen, options.seed), total=options.cases, unit="case") as bar:
                for kind, seed in bar:
                    found.append(outcome := worker.run(kind, seed))
                    if outcome.failed:
                        bar.write(f"{kind} {seed}: {outcome.what}: {outcome.details}")
        finally:
            worker.stop()
    failed = sum(outcome.failed for outcome in found)
    print(*summary(found, chosen), f"{len(found):,} damaged inputs of {len(chosen)} kinds: {failed:,} failed", sep="\n")
    if failed:
        print("Repeat one: python -m tests.fuzz --only KIND --seed SEED --cases 1")
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
