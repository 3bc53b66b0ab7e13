"""The torch engines, CUDA graphs and the kernels inside a UNet, on the pocket model against float64: a minute on a GPU.

`make gpu-test` and the first call of `make first-gpu` run it there. A CPU runs the same, in float32, with the kernels'
references and without a compiler behind torch.compile; it has no CUDA graphs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dive_fast.engines.compiled_engine import CompiledEngine
from dive_fast.engines.torch_engine import TorchEngine
from dive_fast.models import load_bundle
from dive_fast.unet.graphs import CachedUnetGraph, IndexedUnetGraph, KVCacheGraph
from dive_fast.unet.kernels import use_kernels
from dive_fast.unet.optimizations import OPTIMIZATIONS
from tests.support.engines import floats

pytestmark = pytest.mark.slow

ROWS, IMAGES, PROMPTS, TOKENS = 4, 2, 3, 77
# Each of some 200 layers in a row rounds by up to half a unit, independently, so errors grow with the root; twice that.
EAGER_UNITS = 2 * 200**0.5 / 2


@dataclass(frozen=True)
class Machine:
    """Where the tests run; `compiler` is a backend of torch.compile, Inductor in its default mode on a GPU."""

    device: torch.device
    precision: str
    dtype: torch.dtype
    compiler: str | Callable[..., Any]
    impl: str

    def placed(self, module: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        return nn.Module.to(module, self.device, dtype or self.dtype).to(memory_format=torch.channels_last)

    @property
    def options(self) -> dict[str, Any]:
        return {"bundle": load_bundle("pocket"), "device": self.device, "precision": self.precision}


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest) -> Machine:
    if request.param == "cpu":
        return Machine(torch.device("cpu"), "fp32", torch.float32, "eager", "reference")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA build of torch and a GPU")
    from torch._inductor.compile_fx import compile_fx

    return Machine(torch.device("cuda"), "fp16", torch.float16, compile_fx, "fused")


@pytest.fixture(scope="module")
def eager(machine: Machine) -> TorchEngine:
    return TorchEngine(**machine.options)


@pytest.fixture(scope="module")
def exact(machine: Machine) -> TorchEngine:
    """In float64; its answers are float32."""
    engine = TorchEngine(**machine.options)
    for module in (engine._unet_module, engine._vae):
        nn.Module.double(module)
    engine.dtype = torch.float64
    return engine


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def predicted(engine: TorchEngine, prompts: int = PROMPTS, timestep: int = 500) -> Tensor:
    """Predictions of two rows an image, the first ones of the empty prompt."""
    latents = random(IMAGES, *engine.latent_shape, seed=timestep)
    states = engine.condition(random(prompts, TOKENS, 128, seed=prompts))
    index = torch.tensor([0, 0, 1, prompts - 1])
    return engine.eps(latents.to(engine.device), timestep, states, index.to(engine.device)).cpu()


def decoded(engine: TorchEngine) -> Tensor:
    return floats(engine, random(IMAGES, *engine.latent_shape).to(engine.device)).cpu()


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def assert_as_good(found: Tensor, plain: Tensor, wanted: Tensor) -> None:
    """No further from float64 than twice eager torch in the same type."""
    assert found.shape == wanted.shape and rms(wanted) > 0.1
    assert rms(found - wanted) <= 2 * rms(plain - wanted)  # NaN fails


@pytest.mark.parametrize("answer", [predicted, decoded])
def test_eager_torch(answer: Callable[[TorchEngine], Tensor], eager: TorchEngine, exact: TorchEngine) -> None:
    found, wanted = answer(eager), answer(exact)
    assert found.shape == wanted.shape
    assert 0 < rms(found - wanted) <= EAGER_UNITS * torch.finfo(eager.dtype).eps * rms(wanted)


@pytest.fixture(scope="module")
def compiled(machine: Machine) -> CompiledEngine:
    return CompiledEngine(**machine.options, row_counts=(ROWS,), compiler=machine.compiler)


def test_the_compiled_engine(compiled: CompiledEngine, eager: TorchEngine, exact: TorchEngine) -> None:
    assert_as_good(*map(predicted, (compiled, eager, exact)))
    assert_as_good(*map(decoded, (compiled, eager, exact)))
    latents = random(IMAGES, *compiled.latent_shape).to(compiled.device)
    assert int((compiled.decode(latents).int() - eager.decode(latents).int()).abs().max()) <= 2


@pytest.mark.parametrize("machine", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
def test_replayed_cuda_graphs(machine: Machine, eager: TorchEngine, exact: TorchEngine) -> None:
    """Of other latents, timesteps and prompts than were captured, too."""
    engine = CompiledEngine(**machine.options, row_counts=(ROWS,), compiler=machine.compiler, graphs=True)
    for prompts, timestep in ((PROMPTS, 500), (PROMPTS, 7), (PROMPTS + 2, 500), (PROMPTS, 7)):
        assert_as_good(*(predicted(e, prompts, timestep) for e in (engine, eager, exact)))


def two_heads() -> nn.Module:
    """The pocket UNet with two heads for its four: head dims 48, 64 and 72, where 36 is none of our kernels'."""
    unet = load_bundle("pocket").unet
    other: nn.Module = type(unet).from_config(unet.config, attention_head_dim=2).eval().requires_grad_(False)
    other.load_state_dict(unet.state_dict())
    return other


@torch.inference_mode()
def test_the_kernels_inside_a_unet(machine: Machine) -> None:
    unet = two_heads()
    latents = random(IMAGES, 16, 16, 8).to(machine.device).contiguous(memory_format=torch.channels_last)
    embeddings = random(PROMPTS, TOKENS, 128).to(machine.device)
    rest = [torch.tensor(x, device=machine.device) for x in ([500], [0, 0, 1, 2], [0, 1, 0, 1])]
    reference = IndexedUnetGraph(machine.placed(copy.deepcopy(unet), torch.float64))
    wanted = reference(latents.double(), rest[0], embeddings.double(), *rest[1:])
    half = machine.placed(unet)
    bank = KVCacheGraph(half)(embeddings.to(machine.dtype))
    given = (latents.to(machine.dtype), rest[0], bank, *rest[1:])
    graph = CachedUnetGraph(half, OPTIMIZATIONS, 1000)
    plain = graph(*given)
    with use_kernels(graph, impl=machine.impl) as applied:
        assert {found.impl for found in applied.decisions} == {machine.impl}
        assert_as_good(graph(*given), plain, wanted)
        compiled = torch.compile(graph, backend=machine.compiler, fullgraph=True, dynamic=False)
        assert_as_good(compiled(*given), plain, wanted)


@torch.inference_mode()
def test_the_kernels_inside_a_vae(machine: Machine) -> None:
    vae = load_bundle("pocket").vae
    latents = random(IMAGES, 16, 16, 8).to(machine.device).contiguous(memory_format=torch.channels_last)
    wanted = machine.placed(copy.deepcopy(vae), torch.float64).decode(latents.double(), return_dict=False)[0]
    half = machine.placed(vae)
    plain = half.decode(latents.to(machine.dtype), return_dict=False)[0]
    with use_kernels(half, impl=machine.impl, ops=("groupnorm_silu",)):
        assert_as_good(half.decode(latents.to(machine.dtype), return_dict=False)[0], plain, wanted)
