"""The pool of training processes ends without a word, whether its jobs succeed or fail."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys, time
from multiprocessing.util import Finalize
from tqdm import tqdm
from dive_fast.reid.comparison.worker_pool import run_all

def job(kind):
    Finalize(None, time.sleep, (1,), exitpriority=10)  # a worker that ends slowly, before it frees its semaphores
    for _ in tqdm(range(2), disable=True):  # as training does
        pass
    if kind == "bad":
        raise ValueError(kind)

if __name__ == "__main__":
    try:
        run_all(sys.argv[1:], job, 2, None, False)
    except ValueError as error:
        print("raised", error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "said"), [(["good", "good"], ""), (["good", "bad"], "raised bad\n")])
def test_workers_leave_nothing_behind(tmp_path, jobs, said):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, program, *jobs], capture_output=True, text=True, cwd=root, timeout=120)
    assert (done.returncode, done.stdout) == (0, said)
    assert done.stderr == ""
