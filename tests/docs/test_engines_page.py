"""The commands of docs/engines.md, on the tiny model and TensorRT for RTX, which builds without a GPU."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.cli import Run

PAGE = (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    return [shlex.split(line) for line in re.findall(r"^dive-fast ([^`\n]+)", PAGE, re.MULTILINE)]


def test_the_commands_are_in_this_order() -> None:
    order = "fuse export build build plan synth fuse export refit export build build"
    assert [name for name, *_ in commands()] == order.split()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_the_pages_commands_lead_from_an_adapter_to_an_engine(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, step: Any
) -> None:
    """As far as a machine without a GPU goes: plans that a refit can reach are refused in a sentence, others are built."""
    from dive_fast.models import load_bundle, save_adapter
    from tests.support.tiny import tiny_adapter

    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_base, "stable-diffusion-v1-5")
    save_adapter(tiny_adapter(load_bundle(tiny_base)), Path("adapter"))
    here = {"512x256": "64x32", "144": "8"}
    rtx = ("--flavour", "tensorrt-rtx", "--cache", "cache", "--vae-rows", "1", "--text-rows", "1")

    fuse, export, forecast, build, _, _, _, _, refit = ([here.get(w, w) for w in words] for words in commands()[:9])
    step(*fuse)
    exported = step(*export, "--no-check")
    foreseen = step(*forecast, *rtx)
    assert {part["part"] for part in foreseen["parts"]} == set(exported["files"]) and not Path("engine").exists()
    if not torch.cuda.is_available():
        assert any("with a GPU only" in reason for reason in foreseen["missing"]), foreseen["missing"]
        code, _, error = run(*build, *rtx)
        assert code == 1 and "with a GPU only" in error and not Path("engine").exists()
    built = step(*[word for word in build if word != "--refittable"], *rtx)
    assert (built["variant"], built["row_counts"], built["backend"]) == ("kv-cache", [8], "tensorrt-rtx")
    code, _, error = run(*["onnx" if word == "onnx-2" else word for word in refit])
    assert code == 2 and "hold their weights; build it with refittable" in error
