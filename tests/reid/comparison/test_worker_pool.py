"""The pool of training processes ends without a word, whether its jobs succeed or fail, and with a killed parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
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
    done = subprocess.run([sys.executable, program, *jobs], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stdout) == (0, said)
    assert done.stderr == ""


PARENT = """
import sys
from pathlib import Path
from dive_fast.reid.comparison.worker_pool import run_all
from tests.reid.comparison.test_worker_pool import note_and_wait

if __name__ == "__main__":
    run_all([Path(sys.argv[1])], note_and_wait, 1, None, False)
"""


def note_and_wait(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(120)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def within(seconds: float, condition) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.1)
    return condition()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux' /proc")
def test_a_killed_parent_leaves_no_worker_behind(tmp_path):
    script, note = tmp_path / "parent.py", tmp_path / "pid"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(note)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )
    assert within(100, lambda: note.exists() and note.read_text() != "")
    worker = int(note.read_text())
    assert alive(worker)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert within(20, lambda: not alive(worker))
