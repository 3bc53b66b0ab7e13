"""The reference against numpy, and the CUDA C++ kernel against the reference: its own source, compiled for this CPU.

A few macros stand for CUDA's words, and threads run one after another. What differs on a GPU is how three operations are
asked for (epilogue.h) and the conversion of a half, which the hardware does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from itertools import accumulate

import numpy as np
import pytest
import torch
from torch import Tensor

from dive_kernels import nvrtc
from dive_kernels import run as running
from dive_kernels.image_epilogue import api, image_epilogue, why_not_fused
from dive_kernels.image_epilogue.plan import plan
from dive_kernels.launch import Launch
from dive_kernels.package import Code
from dive_kernels.sources import PACKAGE
from tests.support.kernel_cases import TYPE_IDS, TYPES, shape_id, shared_library
from tests.support.refusals import refused

LAYOUTS = {
    f"{name}-{layout}": (dtype, layout == "planar")
    for name, dtype in zip(TYPE_IDS, TYPES, strict=True)
    for layout in ("planar", "interleaved")
}
every_layout = pytest.mark.parametrize(("dtype", "planar"), LAYOUTS.values(), ids=LAYOUTS)
SHAPES = [(1, 3, 1, 1), (3, 3, 7, 5), (2, 3, 32, 16), (17, 3, 3, 2), (1, 3, 45, 31), (2, 3, 64, 33)]
# Lanes of a warp run from the last to the first, so that the sum is complete when lane 0, which alone uses it, is there.
HARNESS = """
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
struct Index { unsigned x, y; };
static Index blockIdx, threadIdx, blockDim;
static int warp_sum;
static int __reduce_add_sync(unsigned, int value) { return warp_sum += value; }
static void atomicAdd(int* to, int value) { *to += value; }
#include "epilogue.cu"
extern "C" void start(void* kernel, unsigned rows, unsigned blocks, unsigned threads, const void* images,
                      unsigned char* bytes, int* broken, int pixels) {
    const auto function = reinterpret_cast<void (*)(const void*, unsigned char*, int*, int)>(kernel);
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < rows; ++blockIdx.x)
        for (blockIdx.y = 0; blockIdx.y < blocks; ++blockIdx.y)
            for (unsigned warp = 0; warp < threads / 32; ++warp) {
                warp_sum = 0;
                for (int lane = 31; lane >= 0; --lane) {
                    threadIdx.x = warp * 32 + lane;
                    function(images, bytes, broken, pixels);
                }
            }
}
"""


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Launch], None]:
    """Runs a launch of the kernel's source, compiled by the host's C++ compiler."""
    folder = tmp_path_factory.mktemp("epilogue")
    flags = ("-std=c++17", "-O2", "-ffp-contract=off", f"-I{PACKAGE / 'image_epilogue'}")
    library = ctypes.CDLL(str(shared_library(folder, "epilogue.so", HARNESS, *flags)))

    def run(launch: Launch) -> None:
        images, out, broken, pixels = launch.arguments.values()
        function = ctypes.cast(getattr(library, launch.kernel.partition(":")[2]), ctypes.c_void_p)
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (images, out, broken)]
        library.start(function, *launch.grid, 32 * launch.warps, *pointers, ctypes.c_int(pixels))

    return run


def checked(images: Tensor, on_cpu: Callable[[Launch], None]) -> Tensor:
    """Runs the kernel, whose pixels and counts must be the reference's; returns the counts of broken values."""
    launch, (pixels, broken) = plan(images)
    on_cpu(launch)
    expected = image_epilogue(images, impl="reference")
    assert torch.equal(pixels, expected[0]) and torch.equal(broken, expected[1])
    return broken


def laid_out(images: Tensor, planar: bool) -> Tensor:
    return images.contiguous() if planar else images.contiguous(memory_format=torch.channels_last)


def by_numpy(values: np.ndarray) -> np.ndarray:
    """Float32 steps, each rounded on its own; what is not a number becomes 0."""
    unit = (values.astype(np.float32) * np.float32(0.5)).astype(np.float32) + np.float32(0.5)
    inside = np.clip(np.nan_to_num(unit, nan=0.0, posinf=1.0, neginf=0.0), np.float32(0), np.float32(1))
    return np.rint(inside * np.float32(255)).astype(np.uint8)


def hard_values() -> Tensor:
    """Float32: every byte's value and every tie between two bytes with neighbours, and what is no image at all."""
    edges = (torch.arange(0, 511, dtype=torch.float64) / 2 / 255 * 2 - 1).float()
    near = [edges]
    for end in (torch.full_like(edges, -2.0), torch.full_like(edges, 2.0)):
        near += accumulate([edges, end, end, end], torch.nextafter)
    odd = [float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 1e-45, -1e-45, 0.0, -0.0, 1.0000001, -1.0000001, 2.0]
    generator = torch.Generator().manual_seed(5)
    return torch.cat([*near, torch.tensor(odd), torch.randn(4000, generator=generator) * 2])


def as_images(values: Tensor) -> Tensor:
    """Any values as images [2, 3, H, 7], padded with zeros: the size divides by nothing that the kernel counts in."""
    height = -(-len(values) // (2 * 3 * 7)) | 1
    padded = torch.zeros(2 * 3 * height * 7, dtype=values.dtype)
    padded[: len(values)] = values
    return padded.view(2, 3, height, 7)


def test_reference_is_the_formula_in_float32() -> None:
    images = as_images(hard_values())
    pixels, broken = image_epilogue(images, impl="reference")
    assert np.array_equal(pixels.numpy(), by_numpy(images.numpy().transpose(0, 2, 3, 1)))
    assert broken.tolist() == (~np.isfinite(images.numpy())).sum((1, 2, 3)).tolist() and broken.sum() == 3


def test_reference_is_what_engines_decode() -> None:
    """dive_fast.engines.base's own line, on what it lets through: finite images."""
    images = torch.randn(3, 3, 9, 7, generator=torch.Generator().manual_seed(1))
    decoded = ((images * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
    assert torch.equal(image_epilogue(images)[0], decoded)


@every_layout
def test_kernel_on_every_kind_of_value(dtype: torch.dtype, planar: bool, on_cpu: Callable[[Launch], None]) -> None:
    """All 65,536 values of a half type; of float32 the hard ones."""
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    images = laid_out(as_images(hard_values() if dtype == torch.float32 else every.view(dtype)), planar)
    assert checked(images, on_cpu).sum() > 0


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "misaligned"])
@every_layout
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_kernel_on_every_shape_and_layout(
    shape: tuple[int, ...], dtype: torch.dtype, planar: bool, offset: int, on_cpu: Callable[[Launch], None]
) -> None:
    generator = torch.Generator().manual_seed(shape[-1])
    values = torch.randn(shape, generator=generator).to(dtype)
    values[0, 1, 0, 0], values[-1, 2, -1, -1] = float("nan"), float("inf")
    images = laid_out(values, planar)
    room = torch.zeros(images.numel() + offset, dtype=dtype)  # a view that begins `offset` elements late
    images = room[offset:].as_strided(images.shape, images.stride(), offset).copy_(images)
    assert checked(images, on_cpu).sum() == 2


def test_one_block_is_not_enough(on_cpu: Callable[[Launch], None]) -> None:
    images = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(2))
    assert plan(images)[0].grid == (2, 3)
    checked(images, on_cpu)


def test_fused_refuses_with_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "missing", lambda: "the library NVRTC (pip install nvidia-cuda-nvrtc)")
    images = torch.zeros(2, 3, 8, 8, dtype=torch.float64)[:, :, ::2]
    reasons = ("impl='fused' cannot run", "the library NVRTC (pip", "images is on cpu", "images is torch.float64")
    refused((*reasons, "strides are (192, 64, 16, 1)"), image_epilogue, images, impl="fused", error=ValueError)
    wide = torch.empty(1, 3, 1 << 13, 1 << 13, device="meta")
    assert "needs at most 67107840 pixels an image, got 8192 x 8192" in why_not_fused(wide)
    assert torch.equal(image_epilogue(images)[0], image_epilogue(images, impl="reference")[0])  # auto


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 4, 8, 8), r"images must be \[B, 3, H, W\], got shape \(2, 4, 8, 8\)"),
        (torch.zeros(3, 8, 8), r"got shape \(3, 8, 8\)"),
        (torch.zeros(1, 3, 2, 2, dtype=torch.uint8), "images must be floating point, got torch.uint8"),
    ],
    ids=["channels", "rank", "type"],
)
def test_bad_input_is_named(images: Tensor, message: str) -> None:
    refused(message, image_epilogue, images, error=ValueError)


def test_operator_under_compile_and_without_gradients() -> None:
    images = torch.randn(2, 3, 5, 4)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.dive.image_epilogue.default, (images, "auto"), test_utils=checks)
    compiled = torch.compile(image_epilogue, backend="aot_eager", fullgraph=True)
    assert all(torch.equal(a, b) for a, b in zip(compiled(images), image_epilogue(images), strict=True))
    assert not image_epilogue(images.requires_grad_())[0].requires_grad  # bytes have none


def test_empty_batch() -> None:
    pixels, broken = image_epilogue(torch.zeros(0, 3, 8, 4))
    assert pixels.shape == (0, 8, 4, 3) and broken.shape == (0,)


def test_nvrtc_compiles_every_function_without_a_gpu() -> None:
    if nvrtc.missing():
        pytest.skip(f"needs {nvrtc.missing()}")
    for dtype, planar in LAYOUTS.values():
        launch, _ = plan(laid_out(torch.zeros(1, 3, 2, 2, dtype=dtype), planar))
        code, reasons = nvrtc.compiled(launch.kernel, 90)
        assert code is not None, reasons
        assert code.image[:4] == b"\x7fELF" and code.function.encode() in code.image


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_layout
def test_kernel_on_a_gpu(dtype: torch.dtype, planar: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    images = laid_out(as_images(hard_values()).to(dtype), planar).cuda()
    expected = image_epilogue(images.cpu(), impl="reference")
    monkeypatch.setattr(api, "image_epilogue_reference", lambda *_: pytest.fail("auto ran the reference"))
    for got, wanted in zip(image_epilogue(images), expected, strict=True):
        assert torch.equal(got.cpu(), wanted)


@pytest.mark.parametrize("fault", ["no compiler", "no loader"])
def test_auto_goes_back_to_torch_and_says_so_where_the_kernel_cannot_be_had(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVRTC that refuses the chip, or cuda-python that does not import; the kernel asked for by name still raises."""

    def fails(*_: object) -> None:
        raise ImportError("libcudart.so.13 is not there")

    images = torch.randn(1, 3, 4, 4)
    monkeypatch.setattr(api, "why_not_fused", lambda images: [])
    monkeypatch.setattr(Launch, "device", property(lambda _: torch.device("cuda", 0)))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(running, "capability", lambda _: 90)
    monkeypatch.setattr(running, "_unloadable", {})
    code = None if fault == "no compiler" else Code("f", b"")
    monkeypatch.setattr(nvrtc, "compiled", lambda *_: (code, ["NVRTC cannot compile it here"]))
    monkeypatch.setattr(running.driver, "prepared", fails)
    expected = "NVRTC cannot compile" if code is None else "libcudart.so.13"
    with pytest.warns(RuntimeWarning, match=expected):
        pixels, broken = image_epilogue(images)
    assert torch.equal(pixels, image_epilogue(images, impl="reference")[0]) and broken.tolist() == [0]
    image_epilogue(images)  # warns once: another warning would raise
    with pytest.raises((ValueError, ImportError), match=expected):
        image_epilogue(images, impl="fused")
