"""Exported engines by OpenVINO against torch: numbers, shapes, threads, cache, refusals, and when auto takes it."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dive_fast.engines import load_engine, openvino_engine
from dive_fast.engines.openvino_engine import KEPT, bf16_here, wins
from dive_fast.engines.registry import BACKENDS, OPENVINO
from dive_fast.types import DiveError, InputError
from tests.support.cli import Run
from tests.support.engines import assert_predicts_as, edit_spec, given, near, outlives_other_calls
from tests.support.tiny import LATENT_SHAPE

pytest.importorskip("openvino", reason="openvino is not installed (extra: openvino)")
pytestmark = pytest.mark.slow


def opened(folder: Path, **options: Any) -> Any:
    return load_engine(folder, "openvino", threads=1, **options)


@pytest.mark.parametrize("form", ["tiny_engine", "tiny_bank"])
def test_numbers_are_those_of_torch_at_every_row_count(
    form: str, tiny_fused: Path, tiny_engine: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(form)
    engine, oracle = opened(folder), load_engine(tiny_fused, "torch", "cpu")
    for images, rows in ((2, 4), (1, 1), (2, 4), (3, 6), (2, 4)):  # more shapes than are kept, and some again
        assert_predicts_as(oracle, engine, 321, given(3, images, rows), **near(tiny_engine, "unet"))
        assert len(engine._networks["unet"]._compiled) <= KEPT
    latents = torch.randn(2, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    within = near(tiny_engine, "vae_decoder")
    images = engine._decoder(latents), oracle._decoder(latents)  # type: ignore[attr-defined]
    torch.testing.assert_close(*images, **within)
    photos = torch.randint(0, 256, (2, *images[0].shape[2:], 3), dtype=torch.uint8)
    torch.testing.assert_close(engine.encode(photos), oracle.encode(photos), **near(tiny_engine, "vae_encoder"))


@pytest.mark.skipif(not bf16_here(), reason="this CPU has no bf16")
def test_bf16_is_as_near_as_bf16_by_torch(tiny_engine: Path, tiny_fused: Path) -> None:
    """Against float32: at most twice as far off as torch in bf16, and not float32 itself."""
    embeddings, latents, index = given(2, 4, 8)
    found = {}
    for name, engine in {
        "exact": load_engine(tiny_fused, "torch", "cpu"),
        "torch": load_engine(tiny_fused, "torch", "cpu", precision="bf16"),
        "ours": opened(tiny_engine, precision="bf16"),
    }.items():
        found[name] = engine.eps(latents, 500, engine.condition(embeddings), index)
    exact = found.pop("exact")
    off = {name: float((x - exact).square().mean().sqrt() / exact.square().mean().sqrt()) for name, x in found.items()}
    assert 2**-12 < off["ours"] <= 2 * off["torch"]
    half = opened(tiny_engine, precision="bf16")
    assert half.spec.precision == "bf16" and half.fingerprint != opened(tiny_engine).fingerprint


def test_int8_layers_are_off_by_no_more_than_their_gate_allows(
    tiny_engine: Path, tiny_fused: Path, tmp_path: Path, run: Run
) -> None:
    """On other inputs than those held out: the same kind of error, not the same number."""
    line = f"quantize --to int8 --engine {tiny_engine} --model {tiny_fused} --out {tmp_path / 'int8'}"
    code, _, error = run(f"{line} --budget 0.05 --images 2 --steps 1")
    assert code == 0, error
    engine, exact = opened(tmp_path / "int8"), load_engine(tiny_fused, "torch", "cpu")
    assert engine.spec.precision == "int8"
    embeddings, latents, index = given(2, 2, 4)
    found, expected = (e.eps(latents, 500, e.condition(embeddings), index) for e in (engine, exact))
    assert 1e-3 < float((found - expected).norm() / expected.norm()) < 3 * 0.05
    with pytest.raises(DiveError, match="precision bf16: the engine is int8"):
        opened(tmp_path / "int8", precision="bf16")
    code, _, error = run(f"build --engine {tmp_path / 'int8'} --out {tmp_path / 'plans'} --dry-run")
    assert code == 2 and "int8" in error


def test_what_a_call_gave_outlives_the_calls_of_other_threads(tiny_engine: Path) -> None:
    engine = opened(tiny_engine)
    embeddings, latents, index = given(1, 2, 2)
    bank = engine.condition(embeddings)
    outlives_other_calls(engine, latents, bank, index)


def test_the_cache_is_used_and_a_damaged_one_made_again(tiny_engine: Path, tmp_path: Path) -> None:
    embeddings, latents, index = given(1, 1, 1)

    def call() -> torch.Tensor:
        engine = opened(tiny_engine, cache=tmp_path / "cache")
        return engine.eps(latents, 500, engine.condition(embeddings), index)

    first = call()
    [blob] = (tmp_path / "cache").rglob("*.blob")
    made = blob.stat().st_mtime_ns
    assert torch.equal(call(), first) and blob.stat().st_mtime_ns == made
    content = blob.read_bytes()
    blob.chmod(0o600)
    blob.write_bytes(content[:1000])
    assert torch.equal(call(), first)


def test_a_call_that_it_refuses_ends_in_one_sentence(tiny_engine: Path, tmp_path: Path) -> None:
    network = opened(tiny_engine)._networks["vae_decoder"]
    for given_shape, wanted in (((2, *LATENT_SHAPE), (3, 3, 64, 32)), ((2, 9, 8, 4), (2, 3, 64, 32))):
        with pytest.raises(DiveError, match=r"^.*vae_decoder/model.onnx failed in openvino: [^\n]*$"):
            network.run("sample", wanted, latent_sample=torch.zeros(given_shape))
    (tmp_path / "model.onnx").write_bytes((tiny_engine / "vae_decoder/model.onnx").read_bytes()[:1000])
    with pytest.raises(InputError, match=r"^[^\n]*model.onnx is not a graph [^\n]*$"):
        openvino_engine.OpenvinoNetwork.read(tmp_path / "model.onnx", {})


def test_every_reason_is_told(
    tiny_engine: Path, half_bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DiveError, match=r"precision fp16: .*fp32 exports.*device cuda: openvino has cpu only"):
        opened(half_bank, device="cuda")
    with pytest.raises(DiveError, match="precision fp16: openvino has fp32, bf16, int8 only"):
        opened(tiny_engine, precision="fp16")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    with pytest.raises(DiveError, match="precision bf16: .*avx512_bf16"):
        opened(tiny_engine, precision="bf16")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DiveError, match=r"pip install 'dive-fast\[openvino\]'"):
        opened(tiny_engine)


def test_auto_takes_it_for_fp32_exports_on_x86_without_a_gpu(
    tiny_engine: Path, half_bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setitem(BACKENDS, "openvino", OPENVINO)
    said = load_engine(tiny_engine).describe()
    assert said.startswith("openvino fp32 on CPU") and "faster than onnxruntime" in said
    assert load_engine(half_bank).describe().startswith("onnxruntime fp16")
    assert not wins(tiny_engine, "cuda", "auto") and not wins(tiny_engine, "cpu", "fp16")
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        assert wins(tiny_engine, "cpu", "auto") and not wins(tiny_engine, "auto", "auto")
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        assert not wins(tiny_engine, "cpu", "auto")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not wins(tiny_engine, "cpu", "auto")


def test_an_unknown_backend_and_a_kernels_node_are_refused(tiny_engine: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_engine, tmp_path / "engine"))
    edit_spec(folder, lambda spec: spec.update(optimizations=[*spec["optimizations"], "kv_gather"], gpu="H200"))
    with pytest.raises(DiveError, match=r"GPU 'H200'.*export without --kernels"):
        opened(folder)
