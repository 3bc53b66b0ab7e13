"""The compiled torch engine against the eager one. Most tests trace only (aot_eager); inductor itself is in the slow one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from dive_fast.engines import Request, compiled_engine, load_engine, torch_engine
from dive_fast.engines.base import Conditioning
from dive_fast.engines.compile_cache import INDUCTOR, TRITON, keep_compiled
from dive_fast.engines.compiled_engine import ROW_COUNTS, CompiledEngine
from dive_fast.engines.torch_engine import TorchEngine
from dive_fast.models import load_bundle
from dive_fast.types import DiveError, InputError
from dive_fast.unet.optimizations import OPTIMIZATIONS
from dive_kernels.image_epilogue import image_epilogue
from tests.support.engines import floats, given, latents_of
from tests.support.tiny import HEIGHT, LATENT_SHAPE, WIDTH

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
COUNTS = (2, 4, 6)


@pytest.fixture(scope="module")
def counter() -> CompileCounterWithBackend:
    return CompileCounterWithBackend("aot_eager")


@pytest.fixture(scope="module")
def engine(tiny_fused: Path, counter: CompileCounterWithBackend) -> CompiledEngine:
    return CompiledEngine(load_bundle(tiny_fused), CPU, row_counts=COUNTS, compiler=counter)


@pytest.fixture(scope="module")
def eager(tiny_fused: Path) -> TorchEngine:
    return TorchEngine(load_bundle(tiny_fused), CPU)


@pytest.fixture(scope="module")
def exact(tiny_fused: Path) -> TorchEngine:
    """The eager engine's modules in float64; what it answers is float32."""
    engine = TorchEngine(load_bundle(tiny_fused), CPU)
    for module in (engine._unet_module, engine._vae):
        torch.nn.Module.double(module)
    engine.dtype = torch.float64
    return engine


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def assert_as_good(found: Tensor, plain: Tensor, wanted: Tensor) -> None:
    """No further from float64 than twice eager float32 is, as other orders of the same sums may be by chance."""
    assert found.shape == wanted.shape and wanted.std() > 0.1
    assert 0 < rms(found - wanted) <= 2 * rms(plain - wanted)


def check_like_eager(engine: CompiledEngine, eager: TorchEngine, exact: TorchEngine) -> None:
    embeddings, latents, index = given(3, 2, 4)
    eps = [e.eps(latents, 500, e.condition(embeddings), index) for e in (engine, eager, exact)]
    assert_as_good(*eps)
    images = [floats(e, latents) for e in (engine, eager, exact)]
    assert_as_good(*images)
    assert int((engine.decode(latents).int() - eager.decode(latents).int()).abs().max()) <= 1


def test_predicts_and_decodes_as_the_torch_engine(
    engine: CompiledEngine, eager: TorchEngine, exact: TorchEngine
) -> None:
    check_like_eager(engine, eager, exact)


def test_compiled_by_inductor_it_does_too_and_once_for_a_shared_folder(
    tiny_fused: Path, eager: TorchEngine, exact: TorchEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second engine, as of another process, finds all of its code there."""
    for name in (INDUCTOR, TRITON):
        monkeypatch.setenv(name, "elsewhere")
    made = []
    for _ in range(2):
        torch.compiler.reset()
        engine = load_engine(tiny_fused, "torch-compiled", cache=tmp_path)
        assert isinstance(engine, CompiledEngine)
        check_like_eager(engine, eager, exact)
        made.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.so")})
    assert made[0] and made[0] == made[1]


def test_the_environments_cache_stays_unless_one_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INDUCTOR, "theirs")
    monkeypatch.delenv(TRITON, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_compiled(None)
    assert (os.environ[INDUCTOR], os.environ[TRITON]) == ("theirs", str(tmp_path / "dive-fast/compiled/triton"))
    keep_compiled(tmp_path / "shared")
    assert os.environ[INDUCTOR] == str(tmp_path / "shared/inductor")


def test_makes_the_same_pictures(engine: CompiledEngine, eager: TorchEngine, exact: TorchEngine) -> None:
    """Guidance and the solver are linear in what the engine predicts, so its errors stay in proportion over three steps."""
    latents = [latents_of(e, steps=3) for e in (engine, eager, exact)]
    assert_as_good(*latents)


def test_few_shapes_are_compiled_and_padding_changes_no_row(
    engine: CompiledEngine, counter: CompileCounterWithBackend
) -> None:
    """Three rows run as four, of any prompts; what the fourth is does not reach the others: not by one bit."""
    embeddings, latents, index = given(3, 4, 4)
    full = engine.eps(latents, 500, engine.condition(embeddings), index)
    compiled = counter.frame_count
    part = engine.eps(latents[:3], 500, engine.condition(embeddings), index[:3])
    assert torch.equal(part, full[:3])
    for prompts in (2, 5):
        engine.eps(latents[:3], 7, engine.condition(given(prompts, 1, 1)[0]), index[:3] % prompts)
    assert counter.frame_count == compiled
    more, _, _ = given(5, 1, 1, seed=1)
    beside = engine.condition(torch.cat([embeddings, more]))  # a longer bank
    assert torch.equal(engine.eps(latents[:3], 500, beside, index[:3]), part)


def test_a_run_of_any_number_of_images_compiles_each_network_once(tiny_fused: Path) -> None:
    """Batches of 5 images, guided, and smaller ones at its end, which are padded: 5 and 10 are no row counts."""
    counter = CompileCounterWithBackend("aot_eager")
    engine = CompiledEngine(load_bundle(tiny_fused), CPU, row_counts=(2, 4, 6, 12), compiler=counter)
    embeddings, latents, index = given(3, 5, 10)
    bank = engine.condition(embeddings)
    with engine.batches_of(5):
        whole, pictures = engine.eps(latents, 500, bank, index), engine.decode(latents)
        for images in (3, 1, 4):
            rows = torch.cat([index[:images], index[5 : 5 + images]])
            part = engine.eps(latents[:images], 500, bank, rows)
            assert torch.equal(part, torch.cat([whole[:images], whole[5 : 5 + images]]))
            assert torch.equal(engine.decode(latents[:images]), pictures[:images])
    assert counter.frame_count == 2
    engine.decode(latents[:1])
    assert counter.frame_count == 3  # after the run its own row count again


def test_a_graph_is_captured_once_for_every_bank_that_fits(
    engine: CompiledEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for a CUDA graph: it keeps the inputs of the capture, and copies all but the bank into them."""
    captured = []

    class Graph(compiled_engine.Replay):
        def __init__(self, network: Callable[..., Tensor], feeds: tuple[Tensor, ...]) -> None:
            self._network = network
            self._feeds = tuple(x if i == self.CACHE else x.clone() for i, x in enumerate(feeds))
            captured.append(len(feeds[self.CACHE]))

        def __call__(self, feeds: tuple[Tensor, ...]) -> Tensor:
            for i, (own, new) in enumerate(zip(self._feeds, feeds, strict=True)):
                if i != self.CACHE:
                    own.copy_(new)
            return self._network(*self._feeds)

    monkeypatch.setattr(compiled_engine, "Replay", Graph)
    monkeypatch.setattr(engine, "_bank", compiled_engine.FixedBank())
    monkeypatch.setattr(engine, "_replays", {})
    for prompts, seed in ((3, 0), (4, 1), (2, 2), (9, 3), (4, 1)):
        embeddings, latents, index = given(prompts, 2, 4, seed=seed)
        bank = engine.condition(embeddings)
        monkeypatch.setattr(engine, "_graphs", False)
        expected = engine.eps(latents, 500, bank, index)
        monkeypatch.setattr(engine, "_graphs", True)
        for _ in range(2):
            assert torch.equal(engine.eps(latents, 500, bank, index), expected)
    assert captured == [4, 16]


def test_guidances_two_rows_an_image_stay_two_when_padded(engine: CompiledEngine, eager: TorchEngine) -> None:
    """Also of a bank of one prompt. 1e-5 is 100 roundings: a row mixed up would be off by its own size."""
    for prompts, images, rows in ((3, 1, 2), (1, 5, 5)):  # the latter as six rows
        embeddings, latents, index = given(prompts, images, rows)
        found = engine.eps(latents, 500, engine.condition(embeddings), index)
        expected = eager.eps(latents, 500, eager.condition(embeddings), index)
        assert found.shape == (rows, *LATENT_SHAPE) and rms(found - expected) < 1e-5 * rms(expected)
    assert len(engine.decode(latents[:1])) == 1


def test_one_conditioning_serves_all_steps_and_is_the_bank(engine: CompiledEngine) -> None:
    bank = engine.condition(given(70, 1, 1)[0]).states  # more prompts than are encoded at once
    assert bank.shape == (70, 2, 32, 32 * 4) and bank.dtype == torch.float32


def test_says_what_it_is(engine: CompiledEngine, tiny_fused: Path, eager: TorchEngine) -> None:
    spec = engine.spec
    assert (spec.backend, spec.variant, spec.optimizations, spec.row_counts) == (
        "torch-compiled",
        "kv-cache",
        OPTIMIZATIONS,
        COUNTS,
    )
    assert (spec.profile.rows_min, spec.profile.rows_opt, spec.profile.rows_max) == (1, 6, 6)
    assert spec.versions["torch"] == torch.__version__ and spec.model_fingerprint == eager.spec.model_fingerprint
    assert engine.fingerprint != eager.fingerprint
    opened = load_engine(tiny_fused, "torch-compiled", size=(32, 48))
    assert opened.spec.row_counts == ROW_COUNTS and opened.latent_shape == (8, 4, 6)
    assert opened.describe() == (
        "torch-compiled fp32 on cpu, images 32x48, up to 144 rows (backend: asked for, device: no CUDA GPU); "
        "kernels in the unet: none; vae_decoder: none"
    )
    assert load_engine(tiny_fused).spec.backend == "torch"


def test_fp8_is_emulated_where_it_cannot_be_chosen(
    tiny_fused: Path, engine: CompiledEngine, eager: TorchEngine, exact: TorchEngine
) -> None:
    """A CPU's engine of precision fp8 exists for tests. Rounding e4m3 once costs some percent, float32 a millionth."""
    with pytest.raises(DiveError, match=r"precision fp8: .*8.9 or later, the device is a CPU"):
        load_engine(tiny_fused, "torch-compiled", precision="fp8")
    with pytest.raises(DiveError, match=r"asked: precision fp8: torch has fp32.* torch-compiled$"):
        load_engine(tiny_fused, "torch", precision="fp8")
    narrow = CompiledEngine(load_bundle(tiny_fused), CPU, precision="fp8", row_counts=COUNTS, compiler="eager")
    assert narrow.spec.precision == "fp8" and narrow.fingerprint not in (engine.fingerprint, eager.fingerprint)
    assert re.search(r"in FP8: \d+ products; \d+ convolutions$", narrow.describe())
    embeddings, latents, index = given(3, 2, 4)
    wanted, found = (e.eps(latents, 500, e.condition(embeddings), index) for e in (exact, narrow))
    assert 100 * torch.finfo(torch.float32).eps < rms(found - wanted) / rms(wanted) < 0.25


@pytest.mark.parametrize(("chip", "reasons"), [(80, 1), (86, 1), (89, 0), (90, 0), (100, 0)])
def test_a_gpu_without_e4m3_units_is_refused(chip: int, reasons: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "capability", lambda device: chip)
    found = torch_engine.why_no_fp8("cuda", True)
    assert len(found) == reasons and all(str(chip / 10) in reason for reason in found)
    assert torch_engine.why_no_fp8("cuda", False) == []  # that there is no GPU is another reason


def test_what_it_cannot_serve_is_refused(engine: CompiledEngine, tmp_path: Path, tiny_fused: Path) -> None:
    assert engine.unsupported(Request(5, HEIGHT, WIDTH)) == []
    assert engine.unsupported(Request(7, HEIGHT, 48)) == ["rows 7 > rows_max 6", "width 48 is not this engine's 32"]
    (tmp_path / "unet").mkdir()
    for graph in ("model_index.json", "unet/model.onnx"):
        (tmp_path / graph).touch()
    with pytest.raises(InputError, match="'torch-compiled' .*fused model"):
        load_engine(tmp_path, "torch-compiled")
    with pytest.raises(DiveError, match="precision fp16: on a CPU"):
        load_engine(tiny_fused, "torch-compiled", precision="fp16")
    bundle = load_bundle(tiny_fused)
    for options, message in (
        ({"row_counts": ()}, r"row_counts must be whole numbers > 0, got \[\]"),
        ({"row_counts": (0, 2)}, r"got \[0, 2\]"),
        ({"graphs": True}, "graphs are CUDA graphs, the device is cpu"),
    ):
        with pytest.raises(InputError, match=message):
            CompiledEngine(bundle, CPU, **options)  # type: ignore[arg-type]
    bundle.unet.register_to_config(center_input_sample=True)
    with pytest.raises(InputError, match="center_input_sample.*--backend torch"):
        CompiledEngine(bundle, CPU)


def broken(graph: Any, inputs: Any) -> Callable[..., Any]:
    raise RuntimeError("no such luck")


def test_a_failed_compilation_is_one_sentence_with_the_way_out(tiny_fused: Path) -> None:
    engine = CompiledEngine(load_bundle(tiny_fused), CPU, row_counts=(1,), compiler=broken)
    embeddings, latents, index = given(1, 1, 1)
    message = (
        r"^torch-compiled: torch.compile cannot compile the {} for 1 images \(.*no such luck\); inductor needs a C\+\+ "
    )
    with pytest.raises(DiveError, match=message.format("UNet") + "compiler.*--backend torch$") as caught:
        engine.eps(latents, 1, engine.condition(embeddings), index)
    assert "\n" not in str(caught.value)
    with pytest.raises(DiveError, match=message.format("VAE decoder")):
        engine.decode(latents)


def test_check_finite_names_the_layer_or_says_that_the_model_is_right(tiny_fused: Path) -> None:
    engine = CompiledEngine(load_bundle(tiny_fused), CPU, check_finite=True, row_counts=(2,), compiler="eager")
    embeddings, latents, index = given(2, 2, 2)
    bank = engine.condition(embeddings)
    assert engine.eps(latents, 7, bank, index).isfinite().all()
    nan_prompt = Conditioning(torch.cat([bank.states, torch.full_like(bank.states, torch.nan)]))
    with pytest.raises(DiveError, match=r"unet at timestep 7: .* 1 of 2 rows \(1\)"):
        engine.eps(latents, 7, nan_prompt, torch.tensor([0, 2]))
    fast, engine._fast_unet = engine._fast_unet, lambda *feeds: torch.full((2, *LATENT_SHAPE), torch.nan)
    with pytest.raises(DiveError, match="a compiled layer or a kernel is wrong"):
        engine.eps(latents, 7, bank, index)
    engine._fast_unet = fast
    layers = {
        ("unet", "mid_block.attentions.0.proj_in"): lambda: engine.eps(latents, 7, bank, index),
        ("vae_decoder", "decoder.mid_block.resnets.0.conv1"): lambda: engine.decode(latents),
        ("prompt_bank", "keys.0"): lambda: engine.condition(embeddings),
    }
    for (network, name), call in layers.items():
        engine._module(network).get_parameter(f"{name}.weight").data.fill_(torch.nan)
        with pytest.raises(DiveError, match=f"2 of 2 rows .*{re.escape(name)} "):
            call()


def test_the_image_epilogue_makes_the_same_bytes(engine: CompiledEngine) -> None:
    """The op that is fused on a GPU, by its reference; what is not finite is refused as everywhere."""
    images = torch.randn(3, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    pixels, not_finite = image_epilogue(images)
    assert torch.equal(pixels, engine._pixels(images)[0])
    assert not_finite.tolist() == [0, 0, 0]
    images[1, 2, 3, 4] = torch.nan
    assert (image_epilogue(images)[1].tolist(), engine._pixels(images)[1]) == ([0, 1, 0], False)
    with pytest.raises(DiveError, match="--check-finite"):
        engine.decode(torch.full((1, *LATENT_SHAPE), torch.nan))
