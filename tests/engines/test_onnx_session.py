"""Tensors bound by pointer, as onnxruntime's own call by value computes them; the order of streams; types at the border."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from dive_fast.engines import load_engine
from dive_fast.engines.onnx_engine import OnnxEngine
from dive_fast.engines.onnx_session import Network, Place, place
from dive_fast.types import DiveError, InputError
from tests.support.engines import given, outlives_other_calls
from tests.support.tiny import HEIGHT, LATENT_SHAPE, MAX_TOKENS, TEXT_WIDTH, WIDTH

CPU = place("cpu", "fp32", Path("unused"))


@pytest.fixture(scope="module")
def engine(tiny_engine: Path) -> OnnxEngine:
    engine = load_engine(tiny_engine, device="cpu")
    assert isinstance(engine, OnnxEngine)
    return engine


def doubler(path: Path, element: int = TensorProto.FLOAT, where: Place = CPU) -> Network:
    """y = x + x, rows free, on any floating type."""
    x, y = (helper.make_tensor_value_info(name, element, ["rows", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubler", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    return Network.open(path, where, threads=1)


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_every_network_gives_what_a_call_by_value_gives_to_the_bit(engine: OnnxEngine, rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    noise = lambda *shape: torch.randn(rows, *shape, generator=generator)  # noqa: E731
    latents, image, hidden = LATENT_SHAPE, (3, HEIGHT, WIDTH), (MAX_TOKENS, TEXT_WIDTH)
    ids = torch.randint(0, 500, (rows, MAX_TOKENS), generator=generator)
    unet = {"sample": noise(*latents), "timestep": torch.tensor([17]), "encoder_hidden_states": noise(*hidden)}
    calls: dict[str, tuple[str, tuple[int, ...], dict[str, torch.Tensor]]] = {
        "text_encoder": ("last_hidden_state", hidden, {"input_ids": ids}),
        "unet": ("out_sample", latents, unet),
        "vae_decoder": ("sample", image, {"latent_sample": noise(*latents)}),
        "vae_encoder": ("latent_parameters", (2 * latents[0], *latents[1:]), {"sample": noise(*image)}),
    }
    for part, (output, shape, inputs) in calls.items():
        network = engine._networks[part]
        [by_value] = network.session.run([output], {name: x.numpy() for name, x in inputs.items()})
        assert np.array_equal(network.run(output, (rows, *shape), **inputs).numpy(), by_value)
        turned = {name: x.mT.contiguous().mT if x.ndim > 1 else x for name, x in inputs.items()}  # not contiguous
        assert np.array_equal(network.run(output, (rows, *shape), **turned).numpy(), by_value)


def test_what_a_call_gave_outlives_the_next_calls(engine: OnnxEngine) -> None:
    """The solver keeps the previous output; also when two threads call at once."""
    bank = engine.condition(torch.randn(1, MAX_TOKENS, TEXT_WIDTH))
    latents, index = torch.randn(2, *LATENT_SHAPE), torch.zeros(2, dtype=torch.int64)
    outlives_other_calls(engine, latents, bank, index)


@pytest.mark.parametrize(
    ("element", "dtype"), [(TensorProto.FLOAT, torch.float32), (TensorProto.FLOAT16, torch.float16)]
)
def test_inputs_are_cast_to_the_graphs_type(tmp_path: Path, element: int, dtype: torch.dtype) -> None:
    network = doubler(tmp_path / "model.onnx", element)
    x = torch.tensor([[1.0, 0.1, 3e-4]], dtype=torch.float64)
    answer = network.run("y", (1, 3), x=x)
    assert answer.dtype == dtype and torch.equal(answer, 2 * x.to(dtype))


def test_a_wrong_shape_or_name_is_refused_and_writes_nowhere(tmp_path: Path) -> None:
    network = doubler(tmp_path / "model.onnx")
    for shape in ((1, 3), (3, 3), (2, 4)):
        with pytest.raises(DiveError, match="model.onnx failed in onnxruntime"):
            network.run("y", shape, x=torch.zeros(2, 3))
    with pytest.raises(InputError, match="reads x .* x, z -> y .*mend it"):
        network.require(("x", "z"), "y", "mend it")
    (tmp_path / "broken.onnx").write_bytes((tmp_path / "model.onnx").read_bytes()[:50])
    with pytest.raises(InputError, match="broken.onnx"):
        Network.open(tmp_path / "broken.onnx", CPU, threads=1)


def test_a_type_that_the_provider_cannot_compute_is_no_broken_file(tmp_path: Path) -> None:
    with pytest.raises(DiveError, match=r"CPUExecutionProvider .*Add.*fp32") as caught:
        doubler(tmp_path / "model.onnx", TensorProto.BFLOAT16)
    assert not isinstance(caught.value, InputError)


class Stream:
    """Notes who waits for whom."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.mark.parametrize("fails", [False, True])
def test_onnxruntime_and_torch_wait_for_each_other_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    log: list[str] = []
    torchs = Stream("torch", log)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: torchs)
    where: Any = Place("cpu", torch.device("cpu"), CPU.providers, Stream("onnxruntime", log))  # type: ignore[arg-type]
    network = doubler(tmp_path / "model.onnx", where=where)
    assert network._options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
    session = network.session

    class Spy:
        io_binding = session.io_binding

        def run_with_iobinding(self, binding: Any, options: Any) -> None:
            log.append("run")
            session.run_with_iobinding(binding, options)

    network.session = Spy()
    if fails:
        with pytest.raises(DiveError):
            network.run("y", (1, 3), x=torch.ones(2, 3))
    else:
        assert torch.equal(network.run("y", (2, 3), x=torch.ones(2, 3)), torch.full((2, 3), 2.0))
    assert log == ["onnxruntime waits for torch", "run", "torch waits for onnxruntime"]


@pytest.mark.gpu
def test_on_a_gpu_tensors_stay_there_and_numbers_are_those_of_the_cpu(tiny_engine: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers() or not torch.cuda.is_available():
        pytest.skip("needs onnxruntime-gpu, a CUDA build of torch and a GPU")
    cpu, cuda = load_engine(tiny_engine, device="cpu"), load_engine(tiny_engine, device="cuda")
    assert cuda.device.type == "cuda"
    embeddings, latents, index = given(3, 4, 8)
    expected = cpu.eps(latents, 500, cpu.condition(embeddings), index)
    bank, there = cuda.condition(embeddings), latents.cuda()
    answers = [cuda.eps(there, 500, bank, index) for _ in range(50)]  # not waited for: streams alone keep the order
    assert all(answer.device.type == "cuda" for answer in answers)
    for answer in answers:
        assert torch.equal(answer, answers[0])
    torch.testing.assert_close(answers[0].cpu(), expected, rtol=0, atol=1e-4)
