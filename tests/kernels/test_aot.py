"""Ahead-of-time compilation: which kernels, real cubins and their figures, what is kept, and what fails a build."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dive_kernels.aot import budgets, build, nvcc, triton_kernels
from dive_kernels.aot.__main__ import main
from dive_kernels.aot.build import earlier, finish, triton_jobs
from dive_kernels.aot.job import Job, resources
from dive_kernels.chips import ARCHITECTURES, blocks_of
from dive_kernels.cuda_kernels import CUDA_KERNELS
from dive_kernels.image_epilogue.plan import plan as image_plan
from dive_kernels.package import INDEX, Kernel, Package, binary, read
from dive_kernels.solver_step import StepCoefficients
from dive_kernels.solver_step.plan import plan
from tests.support.kernel_cases import compiled_kernel
from tests.support.refusals import refused

ROOT = Path(__file__).parents[2]
NO_CUDA = ("--no-cuda", "not of interest here")


@pytest.fixture(scope="module")
def jobs() -> list[Job]:
    return triton_jobs([80, 90])


@pytest.fixture
def needs_triton() -> None:
    pytest.importorskip("triton", reason="triton is not installed (extra: kernels)")


def test_jobs_are_distinct_and_cover_every_op(jobs: list[Job]) -> None:
    assert len({job.name for job in jobs}) == len({(job.identity, job.architecture) for job in jobs}) == len(jobs)
    fused = {path.parent.name for path in (ROOT / "kernels" / "dive_kernels").glob("*/fused.py")}
    assert {job.op for job in jobs} == fused
    names = {job.name for job in jobs}
    for name in (
        "solver_step-order2-fp32-sm80",
        "cross_attention-headdim40-keys77-bf16-sm90",
        "attention-headdim160-fp16-sm80",
        "geglu-inner1280-fp16-sm90",
    ):
        assert name in names
    assert {job.keep_ptx for job in jobs if job.op in ("attention", "cross_attention")} == {True}


def test_group_norms_are_those_of_the_unet_and_the_decoder(jobs: list[Job]) -> None:
    """Read off diffusers' own modules at Stable Diffusion 1.5's configuration, on the device meta."""
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(cross_attention_dim=768)
        decoder = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ).decoder
    wanted: set[tuple[int, int, int, int]] = set()  # channels, those of the skip, shift, silu
    for model in (unet, decoder):
        for name, norm in model.named_modules():
            if isinstance(norm, torch.nn.GroupNorm):
                skip = skip_channels(unet, name) if model is unet and "up_blocks" in name and "norm1" in name else 0
                shift = int(model is unet and name.endswith("norm2"))
                silu = int("attentions" not in name)
                wanted.add((norm.num_channels, skip, shift, silu))
    keys = [job.key for job in jobs if job.op == "groupnorm_silu" and "apply" in job.kernel]
    assert {(k["channels"], k["skip"], k["shift"], k["silu"]) for k in keys} == wanted


def skip_channels(unet: Any, norm: str) -> int:
    """Channels that an up block's resnet takes from the way down: what its norm has beside the output before it."""
    block, resnet = map(int, re.findall(r"\d+", norm)[:2])
    blocks = unet.up_blocks
    before = blocks[block].resnets[resnet - 1] if resnet else (blocks[block - 1].resnets[-1] if block else None)
    into = before.conv2.out_channels if before is not None else unet.mid_block.resnets[-1].conv2.out_channels
    return int(blocks[block].resnets[resnet].norm1.num_channels - into)


def test_declared_cuda_kernels_are_what_the_plan_starts() -> None:
    launches = [
        image_plan(torch.empty(2, 3, 8, 8, dtype=dtype, device="meta").to(memory_format=layout))[0]
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
        for layout in (torch.contiguous_format, torch.channels_last)
    ]
    started = {(launch.kernel, tuple(launch.signature.items()), launch.warps, launch.stages) for launch in launches}
    assert started == {(k.kernel, k.arguments, k.warps, k.stages) for k in CUDA_KERNELS}


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    util = triton_kernels.importlib.util
    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "triton" else find(name))
    assert main(["--check"]) == 1
    assert "triton is not installed; pip install 'dive-fast[torch,kernels]'" in capsys.readouterr().err


def test_what_was_skipped_is_in_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(nvcc, "find", lambda: None)
    assert main([str(tmp_path)]) == 0
    skipped = dict(read(tmp_path).skipped)
    assert skipped["CUDA C++ kernels"] == "no nvcc found"
    assert "TRITON_INTERPRET=1 replaces the compiler" in skipped["Triton kernels"]
    log = capsys.readouterr().out
    assert "0 kernels for no architecture" in log and "skipped: CUDA C++ kernels: no nvcc found" in log


@pytest.mark.slow
def test_a_build_without_torch_makes_the_cuda_kernels_and_the_index(tmp_path: Path) -> None:
    """What happens in pip's isolated build: no torch, no Triton, perhaps nvcc."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['triton'] = None; "
        "from dive_kernels.aot.__main__ import main; "
        f"sys.exit(main([{str(tmp_path)!r}, '--arch', '80', '90', '--no-triton', 'pip hides it']))"
    )
    environment = {"PYTHONPATH": str(ROOT / "kernels"), "PATH": os.environ["PATH"]}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    package = read(tmp_path)
    assert ("Triton kernels", "pip hides it") in package.skipped
    assert len(package.kernels) == (12 if shutil.which("nvcc") else 0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_cubins_by_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a relative folder, though the compiler runs elsewhere
    assert main([".", "--arch", "80", "120", "--no-triton", "not of interest here"]) == 0
    package = read(tmp_path)
    assert {kernel.kernel for kernel in package.kernels} == {kernel.kernel for kernel in CUDA_KERNELS}
    most: dict[str, int] = {}
    for kernel in package.kernels:
        elf = package.read(kernel.cubin)
        assert machine_of(elf) == kernel.architecture
        assert f".text.{kernel.function}".encode() in elf
        assert kernel.spill_bytes == 0
        most[kernel.cubin.name] = max(kernel.registers, most.get(kernel.cubin.name, 0))
    assert {name: registers_of((tmp_path / name).read_bytes()) for name in most} == most
    launch, _ = image_plan(torch.empty(2, 3, 8, 8, device="meta"))
    newest = package.find(launch.identity, 130)
    assert newest is not None and newest.architecture == 120 and newest.ptx is not None
    assert b".target sm_120" in package.read(newest.ptx) and kernel_names(package.read(newest.ptx)) == {
        kernel.function for kernel in CUDA_KERNELS
    }
    found = package.find(launch.identity, 86)
    assert found is not None and found.name == "image_epilogue-planar1-fp32-sm80"


def test_an_architecture_that_nvcc_does_not_know_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvcc, "_version", lambda _: "11.8")
    monkeypatch.setattr(nvcc, "_known", lambda _: {80})
    monkeypatch.setattr(nvcc, "_compile", lambda *_: [])
    skipped = [("CUDA C++ kernels for sm_120", "nvcc 11.8 does not know it")]
    assert nvcc.compile_all("nvcc", [80, 120], tmp_path) == ([], skipped)


def kernel_names(ptx: bytes) -> set[str]:
    return set(re.findall(r"\.entry (\w+)\(", ptx.decode()))


def machine_of(elf: bytes) -> int:
    """The architecture in a cubin's ELF flags: bits 0-7 until CUDA 12.x, 8-15 in the ABI of CUDA 13."""
    assert elf[:4] == b"\x7fELF"
    flags = int.from_bytes(elf[48:52], "little")
    return next(a for a in (flags >> 8 & 0xFF, flags & 0xFF) if a in ARCHITECTURES)


def registers_of(elf: bytes) -> int:
    """Most registers of any function in a cubin: the records 0x04 0x2f (REGCOUNT) of its section .nv.info."""
    number = {size: lambda at, size=size: int.from_bytes(elf[at : at + size], "little") for size in (2, 4, 8)}
    start, size, count, names = number[8](40), number[2](58), number[2](60), number[2](62)
    strings = number[8](start + names * size + 24)
    for header in range(start, start + count * size, size):
        name = strings + number[4](header)
        if elf[name : elf.index(b"\0", name)] == b".nv.info":
            at, end = number[8](header + 24), number[8](header + 24) + number[8](header + 32)
            found = []
            while at < end:  # a record: format, attribute, and where the format says so (4) that many bytes
                if elf[at : at + 2] == b"\x04\x2f":
                    found.append(number[4](at + 8))
                at += 4 + (number[2](at + 2) if elf[at] == 4 else 0)
            return max(found)
    raise AssertionError("no section .nv.info")


@pytest.mark.slow
@pytest.mark.usefixtures("needs_triton")
def test_cubins_by_triton_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Compiled once, then kept, then compiled again where the source or the file is no longer the same."""
    arguments = [str(tmp_path), "--arch", "80", "90", "--only", "solver_step-order2-fp16-*", *NO_CUDA]
    assert main(arguments) == 0
    assert "2 kernels compiled, 0 kept" in capsys.readouterr().out
    package = read(tmp_path)
    x = torch.empty(2, 8, device="meta")
    launch, _ = plan(x.half(), x.half(), x, x, StepCoefficients(1.0, 1.0, 1.0, 1.0, 1.0, 1.0))
    for architecture, target in ((80, "sm_80"), (90, "sm_90a")):
        kernel = package.find(launch.identity, architecture)
        assert kernel is not None and (kernel.architecture, kernel.target) == (architecture, target)
        elf = package.read(kernel.cubin)
        assert machine_of(elf) == architecture and registers_of(elf) == kernel.registers
        assert kernel.null_pointers == 2 and kernel.ptx_version == "8.0" and kernel.spill_bytes == 0
        assert str(ROOT).encode() not in elf  # nothing of this machine
    index = (tmp_path / INDEX).read_bytes()
    assert main(arguments) == 0
    assert "0 kernels compiled, 2 kept" in capsys.readouterr().out
    assert (tmp_path / INDEX).read_bytes() == index
    (tmp_path / "solver_step-order2-fp16-sm80.cubin").write_bytes(b"another")
    assert main(arguments) == 0
    assert "1 kernels compiled, 1 kept" in capsys.readouterr().out
    assert read(tmp_path).read(package.kernels[0].cubin)[:4] == b"\x7fELF"


@pytest.mark.slow
@pytest.mark.usefixtures("needs_triton")
def test_ptx_is_kept_for_the_plugins(tmp_path: Path) -> None:
    assert main([str(tmp_path), "--arch", "90", "--only", "cross_attention-headdim40-*-fp16-*", *NO_CUDA]) == 0
    (kernel,) = read(tmp_path).kernels
    assert kernel.ptx is not None
    ptx = read(tmp_path).read(kernel.ptx).decode()
    assert f".entry {kernel.function}(" in ptx and ".version 8.0" in ptx and ".target sm_90a" in ptx
    assert triton_kernels.parameters(ptx) == len(kernel.arguments) + kernel.null_pointers


@pytest.fixture
def job(jobs: list[Job]) -> Job:
    return next(job for job in jobs if job.name == "solver_step-order1-fp32-sm80")


CHANGES: dict[str, Callable[[Job], Job]] = {
    "source": lambda job: replace(job, source_sha256="0" * 64),
    "constant": lambda job: replace(job, constants={**job.constants, "BLOCK": 512}),
    "argument": lambda job: replace(job, arguments=(*job.arguments[:-1], ("history", "i32"))),
    "warps": lambda job: replace(job, warps=8),
    "stages": lambda job: replace(job, stages=4),
    "architecture": lambda job: replace(job, architecture=90),
    "ptx": lambda job: replace(job, keep_ptx=True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_changes_the_result_compiles_again(change: Callable[[Job], Job], job: Job) -> None:
    assert change(job).build("triton 3.9.0") != job.build("triton 3.9.0") != job.build("triton 3.6.0")
    assert replace(job, name="other", key={}).build("triton 3.9.0") == job.build("triton 3.9.0")


@pytest.mark.usefixtures("needs_triton")
def test_a_plan_that_differs_from_its_kernel_fails(job: Job, tmp_path: Path) -> None:
    swapped = replace(job, arguments=(job.arguments[1], job.arguments[0], *job.arguments[2:]))
    refused("arguments .*eps_cond_ptr", triton_kernels.compile_job, swapped, tmp_path, error=ValueError)


@pytest.mark.usefixtures("needs_triton")
def test_too_much_shared_memory_fails(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = replace(job, arguments=(("eps_uncond_ptr", "*fp16"), ("eps_cond_ptr", "*fp16"), *job.arguments[2:]))
    used = triton_kernels.compile_job(half, tmp_path).shared_bytes
    assert used > 0
    monkeypatch.setattr(triton_kernels, "shared_limit", lambda _: used - 1)
    message = rf"needs {used} bytes of shared memory, sm_80 has {used - 1}"
    refused(message, triton_kernels.compile_job, half, tmp_path, error=ValueError)


def test_failures_are_all_said_and_fail_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dive_kernels.aot import __main__ as command

    monkeypatch.setattr(command.triton_kernels, "missing", lambda: None)
    monkeypatch.setattr(command, "compile_jobs", lambda *_: ([], [("a-sm80", "too big"), ("b-sm80", "no such op")]))
    assert main([str(tmp_path), *NO_CUDA]) == 1
    captured = capsys.readouterr()
    assert captured.err == "dive_kernels.aot: a-sm80: too big\ndive_kernels.aot: b-sm80: no such op\n"
    assert ("a-sm80", "too big") in read(tmp_path).skipped and "too big" not in captured.out


def made(**changes: Any) -> Kernel:
    launch = image_plan(torch.empty(2, 3, 8, 8, device="meta"))[0]
    named = {"name": "image_epilogue-planar1-fp32-sm80", "op": "image_epilogue"}
    return compiled_kernel(launch, **{**named, **changes})


def test_budgets_name_kernel_figure_and_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = {"image_epilogue.image_epilogue_planar_fp32": {"80": 30}}
    monkeypatch.setattr(budgets, "load", lambda: limits)
    kernels = (made(), made(name="big-sm80", registers=31, warps=4), made(name="new-sm90", architecture=90))
    assert budgets.excesses(kernels[:1], limits) == []
    assert budgets.excesses((replace(kernels[0], spill_bytes=8),), limits) == [
        "image_epilogue-planar1-fp32-sm80 spills 8 bytes a thread, the limit is 0"
    ]
    finish(tmp_path, kernels, [])
    assert main(["--check-budgets", str(tmp_path)]) == 1
    log = capsys.readouterr().err
    assert "big-sm80 takes 31 registers, the limit is 30" in log
    assert "new-sm90 takes 30 registers, budgets.json has no limit for it" in log
    finish(tmp_path, kernels[:1], [])
    assert main(["--check-budgets", str(tmp_path)]) == 0
    assert main(["--budgets-of", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.index("{") :]) == {"image_epilogue.image_epilogue_planar_fp32": {"80": 32}}


@pytest.mark.parametrize(
    ("warps", "registers", "shared", "blocks"),
    [
        (8, 140, 81_920, 1),
        (8, 126, 81_920, 2),
        (4, 130, 71_680, 3),
        (8, 172, 196_608, 1),
        (8, 96, 98_304, 2),
        (8, 8, 0, 8),
    ],
)
def test_blocks_of_a_multiprocessor_by_hand(warps: int, registers: int, shared: int, blocks: int) -> None:
    """Of compute capability 9.0: 65,536 registers, 228 KB, 2,048 threads."""
    assert blocks_of(90, warps, registers, shared) == blocks


def test_a_kernel_that_fills_a_multiprocessor_alone_is_named() -> None:
    tile = {"architecture": 90, "function": "geglu_kernel", "op": "geglu", "registers": 172, "warps": 8}
    kernel = made(name="geglu-sm90", shared_bytes=196_608, **tile)
    assert budgets.excesses([kernel], {"geglu.geglu_kernel": {"90": 172}}) == [
        "geglu-sm90 lets 1 block a multiprocessor run, the limit is 2"
    ]


def test_committed_budgets_are_complete(jobs: list[Job]) -> None:
    """A limit for every kernel on every architecture, which no register file exceeds."""
    wanted = {f"{job.op}.{job.kernel.partition(':')[2]}" for job in jobs}
    wanted |= {f"{kernel.op}.{kernel.function}" for kernel in CUDA_KERNELS}
    limits = budgets.load()
    assert set(limits) == wanted
    assert all(set(chips) == {str(a) for a in ARCHITECTURES} for chips in limits.values())
    assert all(0 < limit <= 255 for chips in limits.values() for limit in chips.values())


def test_the_assemblers_report() -> None:
    log = "64 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads\nptxas info : Used 96 registers, used 1"
    assert resources(log) == (96, 28)
    refused("no registers", resources, "ptxas info    : 0 bytes gmem", error=ValueError)


def test_what_an_index_no_longer_names_is_removed(tmp_path: Path) -> None:
    for name in ("a.cubin", "b.cubin", "notes.txt"):
        (tmp_path / name).write_bytes(b"a")
    finish(tmp_path, [made(build="1"), made(architecture=90, cubin=binary("b.cubin", b"a"), build="2")], [])
    assert set(earlier(tmp_path)) == {"1", "2"}
    finish(tmp_path, [made(build="1")], [])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.cubin", INDEX, "notes.txt"]


def test_two_kernels_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from dive_kernels.aot import examples

    solver_step = examples.solver_step
    twice = (lambda capability: [replace(example, key={}) for example in solver_step(capability)],)
    monkeypatch.setattr(examples, "EXAMPLES", twice)
    refused("solver_step-fp32-sm80", triton_jobs, [80], error=ValueError)


def test_an_index_of_another_version_is_made_again(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text('{"format": 0}')
    assert earlier(tmp_path) == {}
    assert isinstance(finish(tmp_path, [], []), Package) and build.processors() >= 1
