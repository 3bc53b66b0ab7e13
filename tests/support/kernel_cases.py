"""Where the kernels' tests run, and how far from float64 a kernel may be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dive_kernels import table
from dive_kernels.launch import Launch
from dive_kernels.package import Kernel, binary
from dive_kernels.replay import forget
from dive_kernels.run import capability
from dive_kernels.sources import source_hash

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TYPES = [torch.float32, torch.float16, torch.bfloat16]
TYPE_IDS = ["fp32", "fp16", "bf16"]
_interpretable = pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter computes garbage in bfloat16")
every_type = pytest.mark.parametrize("dtype", [*TYPES[:2], pytest.param(TYPES[2], marks=_interpretable)], ids=TYPE_IDS)


def assert_as_good_as_torch(got: Tensor, plain: Tensor, exact: Tensor) -> None:
    """A kernel's error against float64 is within twice that of plain torch in the same type, at worst and on average.

    One unit in the last place more: over few elements plain torch may be exact by luck.
    """
    assert got.shape == exact.shape and got.dtype == plain.dtype
    unit = torch.finfo(plain.dtype).eps * exact.abs().max().item()
    own, torchs = got.double() - exact, plain.double() - exact
    assert own.abs().max().item() <= 2 * torchs.abs().max().item() + unit  # NaN fails
    assert own.square().mean().sqrt().item() <= 2 * torchs.square().mean().sqrt().item() + unit / 4


def shared_library(folder: Path, name: str, source: str, *flags: str) -> Path:
    """C++ compiled for this machine by its own compiler; skips the test where there is none."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    (folder / "source.cpp").write_text(source)
    command = [compiler, "-shared", "-fPIC", "-o", str(folder / name), str(folder / "source.cpp"), *flags]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder / name


def compiled_kernel(launch: Launch, **changes: Any) -> Kernel:
    """The entry of a package for a launch, compiled for sm_80."""
    made: dict[str, Any] = {
        "name": "made-sm80",
        "op": "made",
        "dtype": "fp32",
        "key": {},
        "architecture": 80,
        "target": "sm_80",
        "kernel": launch.kernel,
        "function": launch.kernel.partition(":")[2],
        "arguments": tuple(launch.signature.items()),
        "constants": launch.constants,
        "warps": launch.warps,
        "stages": launch.stages,
        "shared_bytes": 4096,
        "registers": 30,
        "spill_bytes": 0,
        "null_pointers": 2,
        "source_sha256": source_hash(launch.kernel),
        "compiler": "triton 3.9.0",
        "ptx_version": "8.0",
        "build": "0" * 64,
        "cubin": binary("a.cubin", b"a"),
    }
    return Kernel(**{**made, **changes})


def check_operator(operator: Any, op: Callable[..., Any], given: Sequence[Any], *options: Any) -> None:
    """An op's torch operator has a schema and shapes, gives the same when compiled, and refuses a backward pass."""
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(operator.default, (*given, *options), test_utils=checks)
    compiled = torch.compile(op, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given), op(*given), rtol=0, atol=0)
    wanting = [x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in given]
    result = op(*wanting)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        (result if isinstance(result, Tensor) else result[0]).sum().backward()


def check_auto(op: str, api: Any, key: dict[str, int], calls: Sequence[Callable[[], Any]], folder: Path) -> None:
    """`auto` runs the kernel in the first call, whose key a table has it first for, and not in the second."""
    entry = {"op": op, "capability": capability(torch.device(DEVICE)), "dtype": "float32", "key": key, "work": 100}
    (folder / "table.json").write_text(json.dumps({"entries": [{**entry, "ms": {"fused": 1.0, "eager": 2.0}}]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(table.OWN, str(folder / "table.json"))
        forget()
        planned = []
        plan = api.plan
        patch.setattr(api, "plan", lambda *given: planned.append(given) or plan(*given))
        for call in calls:
            call()
            assert len(planned) == 1


def shape_id(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
