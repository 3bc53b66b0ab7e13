"""Processes that share each batch's people must learn what one process learns."""

import os
import runpy
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from dive_fast.data.writers import write_ids
from dive_fast.json_files import read_json
from dive_fast.reid.models.model import ReidModel
from dive_fast.reid.training import parallel
from dive_fast.reid.training.config import config_from_dict
from tests.support.city import log, make_samples, train, weights
from tests.support.refusals import refused

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = shlex.split(
    "accelerate.commands.accelerate_cli launch --multi_gpu --num_machines 1 --mixed_precision no --dynamo_backend no "
    "--main_process_port 0 --num_processes 2"
)
COMMAND = (
    "reid train --recipe caj --backbone pocket --steps 4 --identities 4 --per-modality 2 --height 64 --width 32 --lr 0.005 "
    "--warmup-epochs 0 --no-nonlocal-blocks --clip 1 --backbone-lr 1 --validation-every-steps 2 --validation-people 2 "
    "--device cpu"
)
NORMS = """
import sys
import torch
from dive_fast.distributed import process_group, rank_and_size
from dive_fast.reid.training.parallel import gathered, my_rows, share_norms, sum_gradients
from dive_fast.reid.training.losses import weighted_triplet

torch.set_num_threads(1)
with process_group("cpu"):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 5),
        torch.nn.BatchNorm1d(5),
    ).double()
    net[5].bias.requires_grad_(False)
    share_norms(net)
    images = torch.randn(8, 3, 4, 4, dtype=torch.float64) + torch.arange(8).view(-1, 1, 1, 1)
    labels = torch.arange(8) // 2
    rows = my_rows(8, 4)
    features = gathered(net(images[rows]))
    loss = weighted_triplet(features, gathered(labels[rows]))
    loss.backward()
    sum_gradients([p for p in net.parameters() if p.requires_grad])
    rank, size = rank_and_size()
    gradients = {f"gradient.{name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    torch.save({"loss": loss.detach(), **gradients, **net.state_dict()}, f"{sys.argv[1]}/{rank}-of-{size}.pt")
"""


def start(launcher, *command):
    """Runs a script, or -m and a module, in two processes; its standard output."""
    started = [sys.executable, "-m", *launcher, *map(str, command)]
    done = subprocess.run(started, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_loss_gradients_and_norms_are_those_of_the_whole_batch(tmp_path, monkeypatch):
    """In float64, whose rounding is far below any mistake; torch's own norms on one process are the oracle."""
    (script := tmp_path / "norms.py").write_text(NORMS)
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path)])
    runpy.run_path(str(script))
    start(TORCHRUN, script, tmp_path)
    alone, *ranks = (torch.load(tmp_path / f"{name}.pt") for name in ("0-of-1", "0-of-2", "1-of-2"))
    assert alone["gradient.0.weight"].abs().max() > 1e-3
    for rank in ranks:
        assert rank.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(rank[name], value, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.slow
def test_two_processes_leave_the_run_that_one_leaves(tmp_path, run):
    """The command on CAJ's three-part batches, with validation, started by accelerate: the same run, to rounding."""
    make_samples(tree := tmp_path / "tree", range(1, 9), (1, 2, 3, 6), each=2)
    write_ids(tree, train=[f"{pid:04d}" for pid in range(1, 9)], val=(), test=())
    one, two = tmp_path / "one", tmp_path / "two"
    line = f"{COMMAND} --real sysu:{tree} --out"
    code, out, error = run(line, one)
    assert code == 0, error
    said = start(ACCELERATE, "-m", "dive_fast.cli", *shlex.split(line), two)
    assert said == out.replace("/one", "/two") and "48 images of 6 identities" in said
    rows = log(one), log(two)
    assert [row.keys() for row in rows[0]] == [row.keys() for row in rows[1]]
    # Sums in another order, and what steps make of it.
    for name, tolerance in {"loss": 1e-3, "gradient_norm": 5e-3}.items():
        assert [row[name] for row in rows[1]] == pytest.approx([row[name] for row in rows[0]], rel=tolerance)
    records = [read_json(out / "reid.json", "") for out in (one, two)]
    for name in ("pids", "validation", "config", "data"):
        assert records[0][name] == records[1][name]
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    ours, theirs = weights(one), weights(two)
    torch.manual_seed(0)
    fresh = ReidModel(config_from_dict(records[0]["config"], "").model, 6).state_dict()
    names = [name for name in ours if name.endswith("weight")]
    apart, moved = (max(float((b[name] - ours[name]).abs().max()) for name in names) for b in (theirs, fresh))
    assert moved > 100 * apart and moved > 1e-3


def test_a_batch_that_cannot_be_shared_is_refused(city, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "rank_and_size", lambda: (1, 3))
    assert parallel.my_rows(36, 9) == slice(12, 24)
    refused("3 processes .*4 identities", train, city["train"], tiny, tmp_path)
    monkeypatch.setattr(parallel, "rank_and_size", lambda: (1, 2))
    refused("--missing visible", train, city["train"], replace(tiny, missing="visible"), tmp_path)


def test_alone_nothing_changes():
    norm = nn.Sequential(nn.BatchNorm2d(3))
    assert parallel.share_norms(norm)[0].__class__ is nn.BatchNorm2d
    own = torch.ones(2, 3)
    assert parallel.gathered(own) is own and parallel.my_rows(16, 4) == slice(0, 16)
