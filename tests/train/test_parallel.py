"""Two processes that share each batch must learn what one process learns."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from dive_fast.models import load_adapter
from dive_fast.train import parallel
from dive_fast.train.loop import load_state
from dive_fast.types import InputError
from tests.tiny import tiny_bundle_folder

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # as this process finds modules
STAGE = """
import sys
from pathlib import Path
import torch
from dive_fast.train.loop import Stage, run_stage
from dive_fast.train.parallel import my_rows, process_group

torch.set_num_threads(1)
with process_group("cpu"):
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
    command = [sys.executable, *launcher, script, work]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
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


def test_personalize_in_two_processes_leaves_one_adapter(tmp_path):
    """The command under torchrun: the same adapter as alone, to rounding, and one summary."""
    base = tiny_bundle_folder(tmp_path / "base")
    for pid in range(1, 4):
        for shot in range(3):
            pixels = torch.randint(0, 255, (40, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(pid))
            path = tmp_path / "photos" / f"{pid:04d}" / f"{shot}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.numpy()).save(path)
    adapters = {}
    for processes in (1, 2):
        out = tmp_path / f"adapter-{processes}"
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
             "-m", "dive_fast.cli", "personalize", "--model", base, "--external", tmp_path / "photos",
             "--external-layout", "folder", "--out", out, "--identity-steps", "2", "--steps", "4",
             "--rank", "2", "--batch", "4"],
            capture_output=True, text=True, timeout=600, env=ENVIRONMENT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("3 identities") == 1
        adapters[processes] = load_adapter(out)
    torch.testing.assert_close(adapters[1].embeddings, adapters[2].embeddings, rtol=1e-3, atol=1e-4)
    for key, tensor in adapters[1].lora.items():
        torch.testing.assert_close(tensor, adapters[2].lora[key], rtol=1e-2, atol=1e-3)
