"""Declares the CUDA C++ kernels, for the plans that start them and for nvcc. A build has no torch to import."""

from __future__ import annotations

from dataclasses import dataclass, field

OPTIONS = ("-fmad=false", "-std=c++17")  # no multiply-add that the source does not ask for


@dataclass(frozen=True)
class CudaKernel:
    """One `extern "C"` function of a file: its arguments and warps."""

    kernel: str  # as `Launch.kernel`
    op: str
    dtype: str
    arguments: tuple[tuple[str, str], ...]
    warps: int
    key: dict[str, int] = field(default_factory=dict)
    stages: int = 0  # Triton's only

    @property
    def function(self) -> str:
        return self.kernel.partition(":")[2]


def image_epilogue(dtype: str, planar: bool) -> CudaKernel:
    """`dtype` is fp32, fp16 or bf16; `planar` images are [B, 3, H, W] in memory, others [B, H, W, 3]."""
    layout = "planar" if planar else "interleaved"
    arguments = (("images", f"*{dtype}"), ("bytes", "*u8"), ("broken", "*i32"), ("pixels", "i32"))
    name = f"image_epilogue/epilogue.cu:image_epilogue_{layout}_{dtype}"
    return CudaKernel(name, "image_epilogue", dtype, arguments, 8, {"planar": int(planar)})


CUDA_KERNELS = tuple(image_epilogue(dtype, planar) for dtype in ("fp32", "fp16", "bf16") for planar in (True, False))
