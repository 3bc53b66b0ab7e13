"""Processes that share each batch must learn what one process learns, whoever starts them."""

import os
import shlex
import subprocess
import sys

import pytest
import torch

from dive_fast import distributed as ranks
from dive_fast.models import load_adapter
from dive_fast.train import parallel
from tests.support.refusals import refused

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # as this process finds modules
GRADIENTS = """
import sys
from pathlib import Path
import torch
from dive_fast.data.folder import read_folder
from dive_fast.train import loop
from dive_fast.distributed import process_group, rank_and_size
from dive_fast.train.config import Compute, PersonalizeConfig, Prior
from tests.support.training import first_phase

base, visible, infrared, out, parts = *map(Path, sys.argv[1:5]), int(sys.argv[5])
torch.set_num_threads(1)
with process_group("cpu"):
    config = PersonalizeConfig(
        identity_steps=0, steps=1, batch=8, rank=2, warmup=1, prior=Prior(0.5), compute=Compute(accumulate=parts)
    )
    samples = [*read_folder(visible, "cam1"), *read_folder(infrared, "cam3", "ir")]
    class_latents = torch.randn(14, 8, 8, 4, generator=torch.Generator().manual_seed(2))
    trainer, phase = first_phase(base, samples, config, out, class_latents)
    learned = {"rows": [trainer.model.rows.free], "lora": trainer.model.lora}
    own = {}

    def flat():  # where a rank's photos teach no identity, its rows have no gradient
        grad = lambda p: torch.zeros_like(p) if p.grad is None else p.grad
        return {name: torch.cat([grad(p).flatten() for p in ps]) for name, ps in learned.items()}

    real = loop.average_gradients

    def kept(parameters, loss):
        own.update(flat())
        return real(parameters, loss)

    loop.average_gradients = kept
    loss, _ = loop.TrainState(phase.config, trainer.model.groups, phase.loss_at, clip=[]).step(0)
    rank, size = rank_and_size()
    torch.save({"own": own, "averaged": flat(), "loss": loss}, out / f"{rank}-of-{size}.pt")
"""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
# On a CPU, accelerate starts several processes only if it is told that they are for GPUs.
ACCELERATE = shlex.split(
    "-m accelerate.commands.accelerate_cli launch --multi_gpu --num_machines 1 --mixed_precision no --dynamo_backend no"
    " --main_process_port 0 --num_processes"
)


def _start(launcher: list[str], processes: int, *command: object) -> str:
    """Runs a script, or -m and a module, in some processes; its standard output."""
    started = [sys.executable, *launcher, str(processes), *map(str, command)]
    done = subprocess.run(started, capture_output=True, text=True, timeout=600, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_alone_a_process_takes_every_row():
    assert ranks.rank_and_size() == (0, 1)
    assert list(range(6))[parallel.my_rows(6)] == list(range(6))


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(parallel, "rank_and_size", lambda: (1, 4))
    assert parallel.my_rows(8) == slice(2, 4)
    refused("batch of 6 .* 4 processes", parallel.my_rows, 6)


@pytest.mark.slow
def test_gradients_of_rows_and_lora_are_averaged_between_processes(base, folders, tmp_path):
    """Of photos and class photos; two processes of two parts each hold what one process does at once."""
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    _start(TORCHRUN, 1, script, base, *folders, tmp_path, 1)
    _start(TORCHRUN, 2, script, base, *folders, tmp_path, 2)
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("0-of-1", "0-of-2", "1-of-2"))
    torch.testing.assert_close(first["loss"], alone["loss"])
    for learned in ("rows", "lora"):
        whole = alone["averaged"][learned]
        own = torch.stack([first["own"][learned], second["own"][learned]])
        apart = (own[0] - own[1]).norm() / whole.norm()
        assert apart > 0.1, "processes that see the same would need no averaging, and this test shows nothing"
        torch.testing.assert_close(first["averaged"][learned], own.mean(dim=0))
        assert torch.equal(first["averaged"][learned], second["averaged"][learned])
        error = (first["averaged"][learned] - whole).norm() / whole.norm()
        assert error < 1e-5, learned  # eight terms summed in another order


@pytest.mark.slow
def test_personalize_under_torchrun_and_accelerate_leaves_one_adapter(base, folders, tmp_path):
    """The command: the same adapter as alone, to rounding, and one summary."""
    adapters = {}
    line = f"personalize --model {base} --photos folder:{folders[0]} --identity-steps 2 --steps 4 --rank 2 --batch 4"
    runs = {"alone": (TORCHRUN, 1, 1), "two": (TORCHRUN, 2, 1), "four": (ACCELERATE, 2, 2)}
    for name, (launcher, processes, parts) in runs.items():
        words = f"-m dive_fast.cli {line} --out {tmp_path}/{name} --accumulate {parts}".split()
        assert _start(launcher, processes, *words).count("4 identities") == 1
        adapters[name] = load_adapter(tmp_path / name)
        logs = [tmp_path / f"{name}.training" / f"{phase}-loss.jsonl" for phase in ("identities", "personalize")]
        assert [len(log.read_text().splitlines()) for log in logs] == [1, 1]  # by one process
    for name in ("two", "four"):
        torch.testing.assert_close(adapters["alone"].embeddings, adapters[name].embeddings, rtol=1e-3, atol=1e-4)
        for key, tensor in adapters["alone"].lora.items():
            torch.testing.assert_close(tensor, adapters[name].lora[key], rtol=1e-2, atol=1e-3)


def test_what_accelerate_was_told_and_the_run_would_not_do_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    ranks.check_launcher("bf16")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    ranks.check_launcher("bf16")
    refused("--mixed-precision bf16", ranks.check_launcher, "no")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    refused("FSDP, the compiler INDUCTOR", ranks.check_launcher, "bf16")
