"""The TensorRT runtime against a stand-in for its module; and what it refuses here, for real."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dive_export.tensorrt import refit_engine
from dive_fast.engines import load_engine
from dive_fast.engines import tensorrt_api as trt
from dive_fast.engines.registry import BACKENDS, Choice
from dive_fast.engines.tensorrt_engine import TensorRTEngine, open_tensorrt
from dive_fast.types import DiveError, InputError
from tests.support.engines import assert_predicts_as, edit_spec, given, near
from tests.support.tensorrt_double import STREAM, Double, LaneDouble, install, retrained
from tests.support.tensorrt_engines import built, opened, quiet
from tests.support.tiny import HEIGHT, LATENT_SHAPE, WIDTH


@pytest.fixture
def engine(tiny_engine: Path, tmp_path: Path, double: Double) -> TensorRTEngine:
    found = opened(built(tiny_engine, tmp_path / "plans"), double)
    double.calls.clear()
    return found


def choice(device: str, graphs: bool = False) -> Choice:
    return Choice(BACKENDS["tensorrt"], "tensorrt", "a test", device=device, graphs=graphs)


def test_the_calls_come_in_the_order_that_tensorrt_asks_for(engine: TensorRTEngine, double: Double) -> None:
    embeddings, latents, index = given(3, 4, 4)
    bank = engine.condition(embeddings)
    engine.eps(latents, 500, bank, index)
    names = ("sample", "timestep", "encoder_hidden_states")
    # 4 rows: 5, not 8
    assert double.calls[:2] == [("create_execution_context", "USER_MANAGED"), ("profile", 1, STREAM)]
    assert double.count("shape") == 3 and ("shape", "sample", (5, *LATENT_SHAPE)) in double.calls
    assert {call[1] for call in double.calls if call[0] == "address"} == {*names, "out_sample"}
    assert double.calls[-1] == ("execute", 1, STREAM)
    double.calls.clear()
    engine.eps(latents[:3], 20, bank, index[:3])
    assert double.calls == [("execute", 1, STREAM)]  # nothing is told twice
    engine.eps(latents[:1], 20, bank, index[:2])
    assert ("profile", 0, STREAM) in double.calls and ("execute", 0, STREAM) in double.calls


@pytest.mark.parametrize(("images", "rows"), [(1, 1), (2, 2), (4, 4), (8, 8), (4, 8)])
def test_padding_is_cut_off_and_the_numbers_are_the_graphs(
    engine: TensorRTEngine, tiny_engine: Path, images: int, rows: int
) -> None:
    """Guidance asks for each latent twice: the last case."""
    oracle = load_engine(tiny_engine, device="cpu")
    assert_predicts_as(oracle, engine, 321, given(3, images, rows), **near(tiny_engine, "unet"))


def test_text_and_images_beyond_the_largest_profile_go_in_parts(
    engine: TensorRTEngine, double: Double, tiny_engine: Path
) -> None:
    oracle = load_engine(tiny_engine, device="cpu")
    tokens = engine.prompts.token_ids([None, ("0001", "cam1"), ("0002", "cam3"), ("0003", "cam7"), ("0001", "cam3")])
    torch.testing.assert_close(
        engine.encode_text(tokens), oracle.encode_text(tokens), **near(tiny_engine, "text_encoder")
    )
    assert double.count("execute") == 3  # 5 prompts, 2 at a time
    images = torch.randint(0, 256, (4, HEIGHT, WIDTH, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    latents = engine.encode(images)
    torch.testing.assert_close(latents, oracle.encode(images), **near(tiny_engine, "vae_encoder"))
    assert [call[1] for call in double.calls if call[0] == "execute"][3:] == [1, 0]  # profiles
    assert (engine.decode(latents).int() - oracle.decode(latents).int()).abs().max() <= 1


def test_rows_beyond_the_largest_profile_are_refused(engine: TensorRTEngine) -> None:
    embeddings, latents, index = given(3, 9, 9)
    with pytest.raises(InputError, match="rows 9 > rows_max 8"):
        engine.eps(latents, 1, engine.condition(embeddings), index)


def test_graphs_are_captured_once_a_profile_after_a_plain_call(
    tiny_engine: Path, tmp_path: Path, double: Double
) -> None:
    lane = LaneDouble()
    engine = opened(built(tiny_engine, tmp_path / "plans"), double, lane, use_graphs=True)
    embeddings, latents, index = given(3, 2, 2)
    bank = engine.condition(embeddings)
    first = engine.eps(latents, 500, bank, index)
    assert lane.captured == 1
    assert torch.equal(engine.eps(latents, 500, bank, index), first) and lane.captured == 1
    assert double.calls[-1] == ("replay",)
    assert not torch.equal(engine.eps(latents, 20, bank, index), first)
    engine.decode(latents)
    assert lane.captured == 1  # the UNet's calls alone


def test_a_stripped_plan_takes_the_folders_own_weights_and_back(
    tiny_engine: Path, tmp_path: Path, double: Double
) -> None:
    """A, then B by refit, then A again by refit: as if nothing had been."""
    first = built(tiny_engine, tmp_path / "a", refittable=True)
    other = retrained(tiny_engine, tmp_path / "export-b")
    refit_engine(first, other, tmp_path / "b", quiet)
    refit_engine(tmp_path / "b", tiny_engine, tmp_path / "a-again", quiet)
    embeddings, latents, index = inputs = given(3, 4, 4)
    engines = [opened(tmp_path / name, double) for name in ("a", "b", "a-again")]
    before, other_weights, again = (e.eps(latents, 500, e.condition(embeddings), index) for e in engines)
    assert torch.equal(before, again)
    assert_predicts_as(load_engine(other, device="cpu"), engines[1], 500, inputs, **near(tiny_engine, "unet"))
    assert not torch.allclose(before, other_weights, atol=1e-3)
    assert (tmp_path / "a/unet/model.plan").read_bytes() == (tmp_path / "b/unet/model.plan").read_bytes()


def test_a_partial_refit_is_refused_when_the_engine_opens(tiny_engine: Path, tmp_path: Path, double: Double) -> None:
    folder = built(tiny_engine, tmp_path / "plans", refittable=True)
    double.losing = {"network.unet.conv_in.weight"}
    double.calls.clear()
    with pytest.raises(DiveError, match=r"1 of \d+ weights .*network.unet.conv_in.weight"):
        opened(folder, double)
    assert double.count("refit_cuda_engine") == 1  # the text encoder's: none of the UNet's weights reached the GPU


def test_a_plan_that_does_not_load_or_lies_about_its_size_is_named(
    tiny_engine: Path, tmp_path: Path, double: Double
) -> None:
    folder = built(tiny_engine, tmp_path / "plans")
    edit_spec(folder, lambda spec: spec["profile"].update(rows_max=64, height=128))
    with pytest.raises(InputError, match=r"unet .*\(8, 8, 4\).*\(8, 16, 4\).* 8 rows, .* 64"):
        opened(folder, double)
    (folder / "unet/model.plan").write_bytes(b"?")
    edit_spec(folder, rehash=True)
    with pytest.raises(DiveError, match="unet/model.plan .*not compatible"):
        opened(folder, double)


def test_every_reason_is_told_at_once(tiny_engine: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        install(patch, Double())
        folder = built(tiny_engine, tmp_path / "plans")
    if torch.cuda.is_available() or trt.version(trt.TENSORRT):
        pytest.skip("this machine has a GPU or tensorrt, so it has other reasons")
    with pytest.raises(DiveError) as caught:
        open_tensorrt(folder, choice("cpu"))
    for reason in ("device cpu: tensorrt has cuda only", "tensorrt is not installed", "NVIDIA Double (compute"):
        assert reason in str(caught.value)
    assert not isinstance(caught.value, InputError)
    plan = folder / "unet/model.plan"
    plan.write_bytes(plan.read_bytes()[:-1])  # truncated
    with pytest.raises(InputError, match=r"unet/model.plan differs.*tensorrt is not installed"):
        open_tensorrt(folder, choice("auto"))


def test_an_engine_of_another_gpu_or_version_is_refused(
    tiny_engine: Path, tmp_path: Path, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = built(tiny_engine, tmp_path / "plans")
    install(monkeypatch, double, "NVIDIA H200")
    double.__version__ = "11.5.0"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DiveError) as caught:
        open_tensorrt(folder, choice("cuda"))
    for reason in ("11.4.0's, here is 11.5.0", "built for NVIDIA Double", "here is NVIDIA H200", "has no CUDA"):
        assert reason in str(caught.value)


@pytest.mark.gpu
def test_a_built_engine_gives_the_graphs_numbers(tiny_engine: Path, tmp_path: Path) -> None:
    """On a GPU with tensorrt: build, open, compare. TF32 is TensorRT's default: 10 bits of mantissa, 1e-3 of about 1."""
    missing = trt.reasons(trt.TENSORRT)
    if missing or not torch.cuda.is_available():
        pytest.skip("; ".join(missing) or "torch sees no GPU")
    for name, options in (("plans", {}), ("stripped", {"refittable": True})):
        folder = built(tiny_engine, tmp_path / name, **options)
        engine = open_tensorrt(folder, choice("cuda", graphs=bool(options)))
        oracle = load_engine(tiny_engine, device="cpu")
        for rows in (4, 8, 4):
            assert_predicts_as(oracle, engine, 321, given(3, rows, rows), rtol=0.0, atol=2e-2)
