"""The folder of compiled kernels: refusals of its index, the kernel that a launch gets, and the calls of the driver.

The driver is a small library of our own with the functions that cuda-python calls, so that its packing of arguments is
tested too. No kernel runs here.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dive_kernels import nvrtc, package, sources
from dive_kernels import run as running
from dive_kernels.launch import Launch
from dive_kernels.package import INDEX, Kernel, Package, binary, read, write
from dive_kernels.reasons import why_not_here
from tests.support.driver_double import driver_double
from tests.support.kernel_cases import compiled_kernel
from tests.support.refusals import refused
from tests.support.solver_cases import example

CUBIN = b"\x7fELF and no more"
ROOT = Path(__file__).parents[2]


def kernel(architecture: int = 80, target: str = "sm_80", **changes: Any) -> Kernel:
    named = {"name": f"solver_step-order2-fp16-sm{architecture}", "op": "solver_step", "dtype": "fp16"}
    chip = {"architecture": architecture, "target": target, "cubin": binary(f"solver_step-{architecture}.cubin", CUBIN)}
    return compiled_kernel(example(), **{**named, **chip, **changes})


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Package]:
    """Writes a package and makes it the one in use."""

    def make(*kernels: Kernel) -> Package:
        for found in kernels:
            (tmp_path / found.cubin.name).write_bytes(CUBIN)
        made = Package(tmp_path, kernels, (("CUDA C++ kernels", "no nvcc found"),))
        write(made)
        monkeypatch.setenv(package.FOLDER, str(tmp_path))
        for cached in (package._read_once, package.code):
            cached.cache_clear()
        return made

    return make


def test_the_index_holds_what_was_written(make: Callable[..., Package]) -> None:
    made = make(kernel(), kernel(90, "sm_90a", ptx=binary("x.ptx", b"text")))
    assert read(made.folder) == made
    assert package.installed() == made
    assert [file.name for file in made.folder.iterdir() if file.name.startswith(".")] == []


CORRUPTIONS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "format": (lambda data: data.update(format=2), "its format is 2, not 1"),
    "path": (lambda data: data["kernels"][0]["cubin"].update(name="../x.cubin"), r"name is '../x.cubin'"),
    "size": (lambda data: data["kernels"][0]["cubin"].update(size=1 << 40), "size is 1099511627776, it must be"),
    "hash": (lambda data: data["kernels"][0]["cubin"].update(sha256="ab"), "sha256 is 'ab'"),
    "warps": (lambda data: data["kernels"][0].update(warps=64), "warps is 64, it must be a whole number from 1 to 32"),
    "truth": (lambda data: data["kernels"][0].update(warps=True), "warps is True"),
    "shared": (lambda data: data["kernels"][0].update(shared_bytes=-1), "shared_bytes is -1"),
    "type": (lambda data: data["kernels"][0]["arguments"][0].__setitem__(1, "*fp8"), r"has type '\*fp8', known are"),
    "pair": (lambda data: data["kernels"][0].update(arguments=["x"]), r"an argument must be \[name, type\]"),
    "module": (lambda data: data["kernels"][0].update(kernel="os:system"), "kernel is 'os:system'"),
    "constant": (lambda data: data["kernels"][0]["constants"].update(BLOCK=[1]), "constants must hold"),
    "unknown": (lambda data: data["kernels"][0].update(more=1), "unknown fields: more"),
    "missing": (lambda data: data["kernels"][0].pop("function"), "function is None"),
    "twice": (lambda data: data["kernels"].append(data["kernels"][0]), "solver_step-order2-fp16-sm80 is there twice"),
    "entry": (lambda data: data["kernels"].append(3), "an entry is int"),
    "list": (lambda data: data.update(kernels={}), "kernels must be a list, got dict"),
    "skipped": (lambda data: data.update(skipped=[{"what": 1}]), "what is 1"),
}


@pytest.mark.parametrize(("corrupt", "message"), CORRUPTIONS.values(), ids=CORRUPTIONS)
def test_a_corrupt_index_is_refused(
    corrupt: Callable[[dict[str, Any]], Any], message: str, make: Callable[..., Package]
) -> None:
    index = make(kernel()).folder / INDEX
    data = json.loads(index.read_text())
    corrupt(data)
    index.write_text(json.dumps(data))
    refused(message, read, index.parent, error=ValueError)
    refused([str(index), "make kernels"], read, index.parent, error=ValueError)


@pytest.mark.parametrize("text", ["", "[", "[]", "null", "[" * 100_000], ids=["empty", "cut", "list", "null", "deep"])
def test_what_is_no_index_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(text)
    refused(INDEX, read, tmp_path, error=ValueError)


def test_a_folder_that_is_named_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(package.FOLDER, str(tmp_path / "gone"))
    refused("kernels.json; make kernels .* DIVE_KERNELS_CUBINS", package.installed, error=ValueError)
    # and not quietly Triton
    refused("gone: there is no kernels.json", running.match, example(), 80, error=ValueError)
    monkeypatch.setenv(package.FOLDER, "")
    assert package.installed() is None


@pytest.mark.parametrize(
    ("capability", "found"),
    [(80, 80), (86, 86), (87, 86), (89, 86), (75, None), (90, 90), (100, None), (103, None), (120, 120), (121, 120)],
)
def test_which_architecture_runs_where(capability: int, found: int | None, make: Callable[..., Package]) -> None:
    """The same major version and no smaller minor one; a target with an "a" is for its own chip alone."""
    made = make(kernel(), kernel(86, "sm_86"), kernel(90, "sm_90a"), kernel(120, "sm_120"), kernel(101, "sm_101a"))
    got = made.find(example().identity, capability)
    assert (got.architecture if got else None) == found


def test_ptx_serves_newer_chips_where_no_cubin_does(make: Callable[..., Package]) -> None:
    made = make(kernel(), kernel(90, "sm_90a"))
    (made.folder / "x.ptx").write_bytes(b"text")
    ptx = binary("x.ptx", b"text")
    make(kernel(ptx=ptx), kernel(90, "sm_90a", ptx=ptx))
    for capability, image in ((80, CUBIN), (86, CUBIN), (90, CUBIN), (100, b"text"), (75, None)):
        code, _ = running.match(example(), capability)
        assert (code.image if code else None) == image
        assert code is None or code.is_ptx == (image == b"text")


def test_every_part_of_the_identity_counts(make: Callable[..., Package]) -> None:
    make(kernel())
    code, reasons = running.match(example(), 80)
    assert code is not None and code.image == CUBIN and not reasons
    launch = example()
    others = [
        replace(launch, warps=8),
        replace(launch, stages=3),
        replace(launch, constants={**launch.constants, "BLOCK": 512}),
        replace(launch, constants={**launch.constants, "HAS_PREVIOUS": 1}),  # True is another constant for Triton
        replace(launch, arguments={**launch.arguments, "count": 1 << 31}),  # an i64
        replace(launch, arguments={**launch.arguments, "x_ptr": torch.zeros(2, dtype=torch.float16)}),
        replace(launch, kernel="dive_kernels.other.fused:solver_step_kernel"),
    ]
    for other in others:
        code, reasons = running.match(other, 80)
        assert code is None and "only with other types or constants" in reasons[0]
    code, reasons = running.match(launch, 75)
    assert code is None and "not for sm_75, only for sm_80" in reasons[0]


def test_misaligned_arguments_are_named(make: Callable[..., Package]) -> None:
    make(kernel())
    launch = example()
    arguments = {**launch.arguments, "x_ptr": torch.zeros(5)[1:], "row_stride": 24}
    code, reasons = running.match(replace(launch, arguments=arguments), 80)
    assert code is None
    assert reasons[0] == "x_ptr lies at an address that is no multiple of 16"
    assert reasons[1] == "row_stride 24 is no multiple of 16"


def test_a_file_that_was_changed_is_refused(make: Callable[..., Package]) -> None:
    made = make(kernel())
    for content in (CUBIN[:-1] + b"!", CUBIN + b"!", b""):
        (made.folder / made.kernels[0].cubin.name).write_bytes(content)
        message = r"solver_step-80.cubin: is not the file that kernels.json describes"
        refused(message, made.read, made.kernels[0].cubin, error=ValueError)
    (made.folder / made.kernels[0].cubin.name).unlink()
    refused("cannot be read", made.read, made.kernels[0].cubin, error=ValueError)
    # no quiet step to Triton: somebody changed that folder
    refused("cannot be read", running.match, example(), 80, error=ValueError)


def test_a_stale_kernel_is_said_aloud_and_not_used(make: Callable[..., Package]) -> None:
    make(kernel(source_sha256="0" * 64))
    with pytest.warns(RuntimeWarning, match=r"another fused.py; make kernels"):
        code, reasons = running.match(example(), 80)
    assert code is None and "compiled from another fused.py" in reasons[0]


@pytest.mark.parametrize(
    ("changed", "stale"),
    [("op/fused.py", ["triton"]), ("op/api.py", []), ("cpp/a.cu", ["cuda"]), ("cpp/a.h", ["cuda"])],
)
def test_the_source_hash_covers_a_kernel_and_its_headers(
    changed: str, stale: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "PACKAGE", tmp_path)
    for name in ("op/fused.py", "op/api.py", "cpp/a.cu", "cpp/a.h"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1\n")
    kernels = {"triton": "dive_kernels.op.fused:f", "cuda": "cpp/a.cu:f"}

    def hashes() -> dict[str, str]:
        sources.source_hash.cache_clear()
        return {name: sources.source_hash(kernel) for name, kernel in kernels.items()}

    before = hashes()
    (tmp_path / changed).write_bytes(b"1\r\n")
    assert hashes() == before
    (tmp_path / changed).write_text("2\n")
    after = hashes()
    sources.source_hash.cache_clear()
    assert [name for name in kernels if after[name] != before[name]] == stale


def test_kernels_take_in_nothing_that_their_hash_does_not_cover() -> None:
    for file in sources.PACKAGE.glob("*/fused.py"):
        assert "dive_kernels" not in file.read_text(), file
    for file in sources.PACKAGE.glob("*/*.cu"):
        headers = re.findall(r'#include "(.+)"', file.read_text())
        assert all((file.parent / name).is_file() and "/" not in name for name in headers), file


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches claim a GPU of compute capability 8.0."""
    monkeypatch.setattr(Launch, "device", property(lambda _: torch.device("cuda", 0)))
    monkeypatch.setattr(running, "capability", lambda _: 80)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@pytest.mark.usefixtures("on_a_gpu")
def test_run_takes_what_is_compiled_and_else_triton(
    make: Callable[..., Package], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dive_kernels import driver

    taken: list[str] = []
    monkeypatch.setattr(driver, "prepared", lambda launch, code: lambda values: taken.append(code.function))
    monkeypatch.setattr(running, "with_triton", lambda launch: taken.append("triton"))
    monkeypatch.setattr(running, "has_triton", lambda: True)
    make(kernel())
    running.run(example())
    running.run(replace(example(), warps=8))
    running.run(replace(example(), grid=(0,)))
    assert taken == ["solver_step_kernel", "triton"]


@pytest.mark.usefixtures("on_a_gpu")
def test_run_says_every_reason(make: Callable[..., Package], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "has_triton", lambda: False)
    monkeypatch.setattr(package, "has_cuda_python", lambda: False)
    make(kernel())
    arguments = {**example().arguments, "x_ptr": torch.zeros(5)[1:]}
    reasons = ("solver_step_kernel cannot run: ", "x_ptr lies at", "needs cuda-python", "only with other types")
    launch = replace(example(), arguments=arguments, warps=8)
    refused((*reasons, "needs triton (pip install 'dive-fas"), running.run, launch, error=ValueError)


@pytest.mark.usefixtures("on_a_gpu")
def test_cuda_kernels_are_compiled_by_nvrtc_where_none_is_at_hand(
    make: Callable[..., Package], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dive_kernels import driver
    from dive_kernels.image_epilogue.plan import plan

    launch, _ = plan(torch.zeros(1, 3, 4, 4))
    make(kernel())
    monkeypatch.setattr(nvrtc, "missing", lambda: "the library NVRTC (pip install nvidia-cuda-nvrtc)")
    nvrtc.compiled.cache_clear()
    message = "only with other types.*compiling it here needs the library NVRTC"
    refused(message, running.run, launch, error=ValueError)
    taken: list[package.Code] = []
    code = package.Code("image_epilogue_planar_fp32", CUBIN)
    monkeypatch.setattr(nvrtc, "compiled", lambda name, capability: (code, []))
    monkeypatch.setattr(driver, "prepared", lambda _, code: lambda values: taken.append(code))
    running.run(launch)
    assert taken == [code]


def test_neither_triton_nor_a_package_is_one_reason(
    make: Callable[..., Package], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dive_kernels import reasons

    monkeypatch.setattr(reasons, "has_triton", lambda: False)
    monkeypatch.setenv(package.FOLDER, "")
    tensors = {"x": torch.zeros(2, device="meta")}
    found = why_not_here(tensors)
    assert found[1:] == ["needs CUDA tensors, x is on meta"]
    assert found[0] == (
        "needs triton (pip install 'dive-fast[gpu]'), or kernels compiled ahead of time (make kernels) with cuda-python; "
        "neither is here"
    )
    make(kernel())
    monkeypatch.setattr(reasons, "has_cuda_python", lambda: True)
    assert why_not_here(tensors) == found[1:]
    monkeypatch.setattr(reasons, "capability", lambda _: 75)
    reason = why_not_here(tensors)[0]
    assert "meta is sm_75, " in reason and "has kernels for sm_80 (make kern" in reason


# Run beside that library: torch has no CUDA here, so its words for "this GPU" and "this stream" are given.
STARTS = """
import contextlib, sys, types
import torch
from dive_kernels import launch, run
from tests.support.kernel_cases import compiled_kernel
from tests.support.solver_cases import example
torch.cuda.current_device = lambda: 0
torch.cuda.device = lambda _: contextlib.nullcontext()
torch.cuda.current_stream = lambda _: types.SimpleNamespace(cuda_stream=0x77)
launch.Launch.device = property(lambda _: torch.device("cuda", 1))
run.capability = lambda _: 80
found = example()
print([a.data_ptr() if isinstance(a, torch.Tensor) else a for a in found.arguments.values()])
run.run(found)
run.run(found)
print("triton" in sys.modules)
"""


@pytest.fixture(scope="module")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our libcuda.so.1."""
    pytest.importorskip("cuda.core", reason="cuda-python is not installed (extra: gpu)")
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux")
    return driver_double(tmp_path_factory.mktemp("driver")).parent


def start(folder: Path, made: Package, refuse: int = 0) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Runs `STARTS`; what it printed, and the driver's log."""
    log = made.folder / "driver.log"
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        "OMP_NUM_THREADS": "1",
        package.FOLDER: str(made.folder),
        "DRIVER_LOG": str(log),
        "REFUSE": str(refuse),
        "SIZES": "888888" + "4" + "444444" + "88",
    }
    result = subprocess.run(
        [sys.executable, "-c", STARTS], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    return result, log.read_text().splitlines() if log.exists() else []


@pytest.mark.slow
def test_what_the_driver_is_told(fake_driver: Path, make: Callable[..., Package]) -> None:
    """Order, types and bytes of the arguments, null pointers after them, grid, block, shared memory, stream, one load."""
    result, log = start(fake_driver, make(kernel(shared_bytes=100_000)))
    assert result.returncode == 0, result.stderr
    arguments, triton = result.stdout.splitlines()
    values = json.loads(arguments)
    packed = struct.pack("<6Qi6f2Q", *values, 0, 0).hex() if len(values) == 13 else ""
    launched = f"launch 2 1 1 128 1 1 100000 0x77 0x22 {packed}"
    assert log == [
        "load and no more",
        "kernel solver_step_kernel",
        "attribute 8 100000 0x22 41",  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        launched,
        launched,
    ]
    assert triton == "False"


@pytest.mark.slow
def test_the_driver_assembles_ptx_and_is_asked_for_no_little_shared_memory(
    fake_driver: Path, make: Callable[..., Package]
) -> None:
    text = b".vers ion and text"
    made = make(kernel(75, "sm_75", ptx=binary("x.ptx", text), shared_bytes=48 << 10))
    (made.folder / "x.ptx").write_bytes(text)
    result, log = start(fake_driver, made)
    assert result.returncode == 0, result.stderr
    assert log[:2] == ["load  ion and te", "kernel solver_step_kernel"]
    assert [line.split()[0] for line in log[2:]] == ["launch", "launch"]


@pytest.mark.slow
def test_shared_memory_that_the_driver_refuses(fake_driver: Path, make: Callable[..., Package]) -> None:
    result, _ = start(fake_driver, make(kernel(shared_bytes=100_000)), refuse=1)
    told = "solver_step_kernel: no 100000 bytes of shared memory on GPU 1, the driver answers CUDA_ERROR_INVALID_VALUE"
    assert told in result.stderr
