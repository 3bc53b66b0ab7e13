"""Deep features kept between calls: every engine that can, against the eager one and against the UNet itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dive_export import GraphOptions, export_engine
from dive_fast.engines import Engine, Kept, Request, load_engine
from dive_fast.engines.compiled_engine import CompiledEngine
from dive_fast.models import load_bundle
from dive_fast.types import InputError
from dive_fast.unet.graphs import split_call
from tests.support.tensorrt_double import double
from tests.support.tensorrt_engines import built, opened
from tests.support.tiny import HEIGHT, LATENT_SHAPE, WIDTH

__all__ = ["double"]  # a fixture

KEYS = [None, ("0001", "cam3"), ("0003", "cam1")]


@pytest.fixture(scope="module")
def keeping_engine(tiny_fused: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kept") / "engine"
    export_engine(
        tiny_fused, out, rows_max=8, options=GraphOptions(form="bank", reuse_depth=1), progress=lambda _: None
    )
    return out


@pytest.fixture(params=["torch", "torch-compiled", "onnxruntime", "tensorrt"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    """TensorRT's by the stand-in for its module, which pads and checks as TensorRT does and runs the graphs."""
    fused: Path = request.getfixturevalue("tiny_fused")
    if request.param == "tensorrt":
        module = request.getfixturevalue("double")
        folder = built(request.getfixturevalue("keeping_engine"), tmp_path / "plans")
        return opened(folder, module)
    if request.param == "torch-compiled":
        return CompiledEngine(load_bundle(fused), torch.device("cpu"), row_counts=(2, 6), compiler="aot_eager")
    folder = fused if request.param == "torch" else request.getfixturevalue("keeping_engine")
    return load_engine(folder, request.param, device="cpu")


def latents() -> tuple[Tensor, Tensor]:
    first, second = torch.randn(2, 2, *LATENT_SHAPE, generator=torch.Generator().manual_seed(4))
    return first, second


def test_a_short_call_runs_on_what_the_whole_call_left(engine: Engine, tiny_fused: Path) -> None:
    """Against diffusers' modules, split (tests/unet/test_split.py checks that), each prompt on rows of its own."""
    first, second = latents()
    embeddings, index = engine.prompts.encode(engine.encode_text, KEYS)
    conditioning, rows = engine.condition(embeddings), torch.tensor([0, 0, 1, 2])
    kept = Kept(1)
    whole = engine.eps(first, 700, conditioning, rows, kept)
    assert kept.rows == 4
    short = engine.eps(second, 650, conditioning, rows, kept)
    unet, hidden = load_bundle(tiny_fused).unet, embeddings[index][rows]
    with torch.no_grad():
        expected, deep = split_call(unet, first.repeat(2, 1, 1, 1), torch.tensor([700]), hidden, None, 1)
        then = split_call(unet, second.repeat(2, 1, 1, 1), torch.tensor([650]), hidden, deep, 1)
    torch.testing.assert_close(whole, expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(short, then, rtol=0, atol=2e-5)
    torch.testing.assert_close(engine.eps(first, 700, conditioning, rows), whole, rtol=0, atol=2e-5)
    assert (short - engine.eps(second, 650, conditioning, rows)).abs().max() > 1e-3


def test_other_rows_and_depths_are_refused(engine: Engine) -> None:
    first, _ = latents()
    embeddings, _ = engine.prompts.encode(engine.encode_text, KEYS)
    conditioning, kept = engine.condition(embeddings), Kept(1)
    engine.eps(first, 700, conditioning, torch.tensor([0, 0, 1, 2]), kept)
    with pytest.raises(InputError, match="deep features of 4 rows are kept, the call has 2"):
        engine.eps(first, 650, conditioning, torch.tensor([1, 2]), kept)
    with pytest.raises(InputError, match="reuse_depth 1 to .*, not 7"):
        engine.eps(first, 650, conditioning, torch.tensor([1, 2]), Kept(7))
    assert engine.unsupported(Request(4, HEIGHT, WIDTH, depth=1)) == []
    assert "reuse_depth 1 to" in engine.unsupported(Request(4, HEIGHT, WIDTH, depth=9))[0]


def test_depths_that_no_export_has_are_refused(tiny_fused: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="reuse_depth must be 1 to 2 for this UNet, got 3"):
        export_engine(tiny_fused, tmp_path / "e", options=GraphOptions(form="bank", reuse_depth=3))
    with pytest.raises(InputError, match="with form 'bank' alone"):
        GraphOptions(reuse_depth=1)
