"""Runs every test_*_fused.py under Triton's interpreter, each in its own process: Triton reads TRITON_INTERPRET once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@pytest.mark.parametrize("file", sorted(HERE.glob("test_*_fused.py")), ids=lambda path: path.stem)
def test_kernel_under_tritons_interpreter(file: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed (extra: kernels)")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    # One thread: numpy's and torch's own get in each other's way on tiles this small.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout
