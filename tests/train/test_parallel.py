"""Two processes that share each batch must learn what one process learns."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dive_fast.train import parallel
from dive_fast.train.loop import load_state
from dive_fast.types import InputError

STAGE = """
import sys
from pathlib import Path
import torch
from dive_fast.train.loop import Stage, run_stage
from dive_fast.train.parallel import my_rows, process_group

torch.set_num_threads(1)
with process_group():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    unused = torch.nn.Parameter(torch.ones(3))

    def loss_at(step):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))[my_rows(8)]
        return (net(x) - x.sum(dim=1, keepdim=True).sin()).square().mean(), {}

    stage = Stage("net", Path(sys.argv[1]), steps=20, lr=0.01, warmup=2, save_every=5, progress=False)
    run_stage(stage, [{"params": [*net.parameters(), unused], "weight_decay": 0.0}], loss_at)
"""


def _run(work: Path, processes: int) -> dict:
    script = work.with_suffix(".py")
    script.write_text(STAGE)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run([sys.executable, *launcher, script, work], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return load_state(work / "net.state")


def test_two_processes_learn_what_one_learns(tmp_path):
    one, two = _run(tmp_path / "one", 1), _run(tmp_path / "two", 2)
    assert one["step"] == two["step"] == 20
    for a, b in zip(one["parameters"], two["parameters"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # sums of 8 terms in another order, 20 times
    torch.manual_seed(0)
    start = torch.nn.Linear(6, 5).weight
    moved = (one["parameters"][0] - start).abs().max()
    assert moved > 0.05
    logs = [(tmp_path / name / "net-loss.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert len(logs[0]) == len(logs[1]) == 2  # steps 0 and 10, written once


def test_alone_a_process_takes_every_row():
    assert parallel.rank_and_size() == (0, 1)
    assert list(range(6))[parallel.my_rows(6)] == list(range(6))


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(parallel, "rank_and_size", lambda: (1, 4))
    assert parallel.my_rows(8) == slice(2, 4)
    with pytest.raises(InputError, match="a batch of 6 cannot be shared evenly by 4 processes"):
        parallel.my_rows(6)
