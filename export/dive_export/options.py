"""What to export, build and quantise. Importing these records loads neither torch nor numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from dive_fast.io import user_cache
from dive_fast.sampling.config import Sampling
from dive_fast.settings import Above, NonNegativeFloat, PositiveInt, Reads, Settings, Within
from dive_fast.types import InputError, shown

if TYPE_CHECKING:
    from dive_fast.engines.tensorrt_api import Flavour

GIB = 1 << 30
CALIBRATION = Sampling(steps=10)  # of the images that set the scales of FP8
# Graph optimizations that are made on request only: whether they are faster depends on what runs the graph.
# kv_gather: keys and values are not copied for each row, and every cross-attention is one node `dive::cross_attention`
# (`kernel_node`, variant kv-cache only).
ON_REQUEST = ("kv_gather",)
BANK_ONLY = ("shared_prefix", "kv_gather")


def _optimizations(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(text.split(","))


def _gibibytes(text: str) -> int:
    try:
        size = int(float(text) * GIB)
    except ValueError:
        size = 0
    if size < GIB // 100:
        raise InputError(f"must be a number of GiB, at least 0.01, got {shown(text)}")
    return size


@dataclass(frozen=True)
class GraphOptions(Settings):
    """How the four networks become graphs.

    Raises `InputError` for an unknown optimization, and for what variant "kv-cache" alone has with variant "plain".
    """

    variant: Literal["plain", "kv-cache"] = "plain"
    """What the UNet reads of the prompts: plain, embeddings (named as optimum names them), or kv-cache, keys and values of
    the cross-attentions, computed once for all steps."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Type of weights and of floating inputs and outputs."""
    optimizations: Annotated[tuple[str, ...], Reads(_optimizations, "NAME,...|none")] | None = None
    """Exact optimizations of the UNet's graph; by default all that the variant allows of time_table, shared_prefix (variant
    bank), unit_scale and fused_qkv."""
    any_size: bool = False
    """Leave height and width free in the graphs, in multiples of what the UNet's levels need; --size is the default."""
    kernels: bool = False
    """Variant kv-cache: make each cross-attention one node, for which dive-fast build --kernels takes our kernel
    (optimization kv_gather). Other runtimes run it too, without a gain."""

    def __post_init__(self) -> None:
        from dive_fast.unet.optimizations import OPTIMIZATIONS

        super().__post_init__()
        unknown = [name for name in self.optimizations or () if name not in (*OPTIMIZATIONS, *ON_REQUEST)]
        if unknown:
            names = ", ".join((*OPTIMIZATIONS, *ON_REQUEST))
            raise InputError(f"optimizations: unknown {', '.join(unknown)}; choose from {names}")
        misfits = [name for name in self._requested if name in BANK_ONLY and self.variant != "kv-cache"]
        if misfits:
            raise InputError(
                f"optimizations: {', '.join(misfits)} requires variant kv-cache, got variant {self.variant}"
            )

    @property
    def _requested(self) -> tuple[str, ...]:
        return (self.optimizations or ()) + (ON_REQUEST if self.kernels else ())

    @property
    def applied(self) -> tuple[str, ...]:
        """The optimizations made, in the order of `OPTIMIZATIONS` and `ON_REQUEST`."""
        from dive_fast.unet.optimizations import OPTIMIZATIONS

        by_default = () if self.optimizations is not None else OPTIMIZATIONS
        made = [name for name in by_default if self.variant == "kv-cache" or name not in BANK_ONLY] + list(
            self._requested
        )
        return tuple(name for name in (*OPTIMIZATIONS, *ON_REQUEST) if name in made)


@dataclass(frozen=True)
class ExportRecipe:
    """A named way to export: `rows_usual` are the UNet rows a call that `synth` takes by default."""

    options: GraphOptions
    rows_max: int
    rows_usual: int


def _cpu() -> ExportRecipe:
    return ExportRecipe(GraphOptions(), rows_max=64, rows_usual=32)


def _gpu() -> ExportRecipe:
    """72 rows are two of DiVE's calls of 18 images with guidance, and what `BuildConfig.rows` builds for."""
    return ExportRecipe(GraphOptions(variant="kv-cache", precision="fp16"), rows_max=144, rows_usual=72)


RECIPES: dict[str, Callable[[], ExportRecipe]] = {"cpu": _cpu, "gpu": _gpu}  # functions, as GraphOptions loads torch


@dataclass(frozen=True)
class BuildConfig(Settings):
    """How to build a TensorRT engine. Raises one `InputError` with every setting that does not fit the others."""

    flavour: Literal["tensorrt", "tensorrt-rtx"] = "tensorrt"
    """tensorrt, for data-centre GPUs too, or tensorrt-rtx, for RTX cards, which builds without a GPU."""
    rows: tuple[int, ...] = (72,)
    """The UNet's row counts (guidance included), a static profile or two each; calls are padded to the next one."""
    vae_rows: tuple[int, ...] = (1, 18)
    """Row counts of both halves of the VAE."""
    text_rows: tuple[int, ...] = (1, 64)
    """Row counts of the text encoder, in prompts; variant kv-cache: also of what computes keys and values."""
    prompts_max: PositiveInt = 1024
    """Variant kv-cache: most prompts in a bank."""
    refittable: bool = False
    """Keep weights out of the plans: another adapter requires dive-fast refit only."""
    target: str | None = None
    """tensorrt-rtx: compute capability to build for, as 8.9; by default Ampere and later."""
    compatibility: Literal["none", "same-capability", "ampere"] = "none"
    """tensorrt: which other GPUs run the plans; both same-capability and ampere are slower."""
    level: Annotated[int, Within(0, 5)] | None = None
    """How long TensorRT searches; by default TensorRT chooses."""
    workspace: Annotated[int, Reads(_gibibytes, "GiB")] | None = None
    """Most GPU memory for a layer's scratch."""
    cache: Path | None = None
    """Folder of plans and timings built before; by default in the user's cache."""
    kernels: bool = False
    """tensorrt: use our compiled cross-attention kernel for a UNet exported with --kernels (docs/engines.md)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = self.kind
        wrong = [
            f"{name} must be whole numbers > 0, ascending, got {list(counts)}"
            for name, counts in (("rows", self.rows), ("vae_rows", self.vae_rows), ("text_rows", self.text_rows))
            if not counts or min(counts) < 1 or list(counts) != sorted(set(counts))
        ]
        if self.target is not None and self.target not in kind.capabilities:
            known = f"knows {', '.join(kind.capabilities)}" if kind.capabilities else "builds for the GPU it runs on"
            wrong.append(f"target {self.target!r}: {kind.name} {known}")
        if self.compatibility != "none" and not kind.compatibility:
            wrong.append(f"compatibility {self.compatibility}: {kind.name} does not know it, use target")
        if self.kernels and not kind.python_plugins:
            wrong.append(f"kernels: {kind.name} takes no compiled Python plugins, use tensorrt")
        if self.kernels and self.compatibility != "none":
            wrong.append(
                f"kernels are for this GPU alone, compatibility is {self.compatibility}; choose one of the two"
            )
        if wrong:
            raise InputError(f"build: {'; '.join(wrong)}")

    @property
    def kind(self) -> Flavour:
        from dive_fast.engines.tensorrt_api import FLAVOURS

        return FLAVOURS[self.flavour]

    @property
    def cache_folder(self) -> Path:
        return self.cache or user_cache("tensorrt")


@dataclass(frozen=True)
class Fp8Config(Settings):
    """How much of a UNet becomes FP8 or int8."""

    to: Literal["fp8", "int8"] = "fp8"
    """What layers become: fp8 for GPUs, or int8, of an fp32 engine, for --backend openvino on a CPU."""
    budget: NonNegativeFloat = 0.05
    """Most error of the UNet's output on held-out inputs in the worst call: the root mean square difference from the graph
    before, over that graph's root mean square."""
    percentile: Annotated[float, Above(0), Within(0, 100)] = 100.0
    """Percentile of activations that becomes the largest value (e4m3: 448, int8: 127); 100: the largest activation."""
    # Layers that stay as they are: ends of the network and the time embedding, which are cheap and which every step passes.
    keep: tuple[str, ...] = ("conv_in", "conv_out", "time_embedding.*", "*.time_emb_proj")

    def __post_init__(self) -> None:
        super().__post_init__()
        if math.isinf(self.budget):
            raise InputError("budget must be finite, got inf; any choice of layers meets 10")
