"""What the kernel tests share. Every test_*_fused.py runs Triton kernels: on a GPU, or by test_interpreter.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.kernel_cases import INTERPRETED

collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_*_fused.py"]


@pytest.hookimpl(tryfirst=True)  # before -m reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name.endswith("_fused.py"):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def _poisoned_kernels(request: pytest.FixtureRequest) -> None:
    """Outputs of Triton kernels start as NaN: an element that a kernel never writes cannot pass."""
    if request.path.name.endswith("_fused.py"):
        request.getfixturevalue("poisoned")


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `torch.empty...` is NaN, or 255 where integers cannot be."""
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _poisoning(getattr(torch, name)))
    monkeypatch.setattr(Tensor, "new_empty", _poisoning(Tensor.new_empty))


def _poisoning(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        tensor = make(*args, **kwargs)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 255)

    return poisoned
