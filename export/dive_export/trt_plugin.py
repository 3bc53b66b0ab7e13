"""TensorRT's plugin for the node `dive::cross_attention`: the kernel of `dive_kernels`, compiled ahead of time.

A Python plugin with a compiled implementation (`tensorrt.plugin.aot_impl`): at build time it returns PTX, grid and scalars,
which become part of the plan. TensorRT starts the kernel itself, so running a plan needs neither this file nor the kernels.

    query [R, T, C], kv_bank [P, 2, L, sumC], prompt_index int64 [R], heads, start -> [R, T, C]

The launch is that of the op's `plan`. R and P may be free: the grid grows with R, and the kernel gets P, which bounds the
index. All other sizes must be fixed. Not run in TensorRT yet (docs/engines.md).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import GenericAlias
from typing import Any

import torch
from onnx.helper import make_attribute, tensor_dtype_to_np_dtype

from dive_export.kernel_node import DOMAIN, NAME, VERSION, attributes, kernel_nodes
from dive_export.tensorrt_ptx import View, repassed
from dive_fast.engines import tensorrt_api as trt
from dive_fast.types import DiveError
from dive_kernels import package
from dive_kernels.cross_attention.plan import plan
from dive_kernels.launch import ALIGNMENT, Launch
from dive_kernels.package import Kernel

ID = f"{DOMAIN}::{NAME}"
TYPES = {"FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16"}  # of trt.DataType, as tensorrt.plugin writes them
VIEWS = {"key_ptr": View("kv_bank", "key_start"), "value_ptr": View("kv_bank", "value_start")}
INPUTS, OUTPUT = ("query_ptr", "kv_bank", "prompt_index_ptr"), "out_ptr"
PROMPTS = "prompts"  # the one scalar of the kernel that may change from call to call


@dataclass(frozen=True)
class Site:
    """The fixed sizes of one node: query [R, tokens, channels], kv_bank [P, 2, keys, width]."""

    dtype: torch.dtype
    heads: int
    start: int
    tokens: int
    channels: int
    keys: int
    width: int

    def launch(self, rows: int, prompts: int, capability: int) -> Launch:
        """Returns the launch with which torch starts the kernel."""
        query = torch.empty(rows, self.tokens, self.channels, dtype=self.dtype, device="meta")
        cache = torch.empty(prompts, 2, self.keys, self.width, dtype=self.dtype, device="meta")
        key, value = cache[..., self.start : self.start + self.channels].unbind(1)
        index = torch.empty(rows, dtype=torch.int64, device="meta")
        launch, _ = plan(query, key, value, index, self.heads, capability)
        return launch

    @property
    def starts(self) -> dict[str, int]:
        """The offsets of this layer's keys and values in the K/V cache, in elements."""
        return {"key_start": self.start, "value_start": self.keys * self.width + self.start}


@dataclass(frozen=True)
class Call:
    """The launch that a plan stores for a node. `scalars` are passed between inputs and output; None stands for P."""

    kernel: Kernel
    programs_a_row: int
    threads: int
    shared_bytes: int
    scalars: dict[str, int | None]

    def ptx(self, kernels: package.Package) -> str:
        """Returns the kernel's PTX, with the node's inputs, `scalars` and the output as parameters."""
        assert self.kernel.ptx is not None
        written = kernels.read(self.kernel.ptx).decode()
        return repassed(written, self.kernel.arguments, VIEWS, (*INPUTS, *self.scalars, OUTPUT))


def call_of(site: Site, rows: int, capability: int, kernels: package.Package) -> Call:
    """Returns the call of a node for up to `rows` rows on a GPU of `capability` (90 for 9.0).

    Raises `ValueError` with every reason against it.
    """
    launch = site.launch(rows, 1, capability)
    kernel = kernels.find(launch.identity, capability)
    reasons = launch.misaligned()
    if site.start * site.dtype.itemsize % ALIGNMENT:
        reasons.append(f"the address of column {site.start} is no multiple of {ALIGNMENT}")
    programs, rest = divmod(launch.grid[0], rows)
    if rest or any(n != 1 for n in launch.grid[1:]):
        reasons.append(f"the grid {launch.grid} is no multiple of {rows} rows")
    if kernel is None or kernel.ptx is None:
        what = f"{launch.kernel} for sm_{capability}, {site.dtype}, head dim {site.channels // site.heads}"
        made = f"{package.MAKE} makes those of Stable Diffusion 1.5 in fp16 and bf16"
        reasons.append(f"{kernels.folder} has no PTX of {what} and {site.keys} keys ({made})")
    elif why := package.stale(kernel):
        reasons.append(why)
    if reasons or kernel is None:
        raise ValueError("; ".join(reasons))
    integers = {name: value for name, value in launch.arguments.items() if isinstance(value, int)}
    scalars = {**integers, **site.starts, **({PROMPTS: None} if PROMPTS in integers else {})}
    return Call(kernel, programs, 32 * kernel.warps, kernel.shared_bytes, scalars)


def calls(graph: Any, rows: int, gpu: trt.Gpu, kernels: package.Package) -> dict[str, Call]:
    """Returns the calls of all kernel nodes by name; raises `ValueError` with every reason against them."""
    found, reasons = {}, []
    for name, site in sites(graph).items():
        try:
            found[name] = call_of(site, rows, capability_of(gpu), kernels)
            found[name].ptx(kernels)  # raises before anything is built
        except ValueError as error:
            reasons.append(str(error))
    if reasons:
        raise ValueError("; ".join(dict.fromkeys(reasons)))
    return found


def sites(graph: Any) -> dict[str, Site]:
    """Returns the sizes of all kernel nodes by name; raises `ValueError` for a free size."""
    values = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input)}
    found = {}
    for node in kernel_nodes(graph):
        query, cache = (values[name] for name in node.input[:2])
        free = [d.dim_param for d in (*query.shape.dim[1:], *cache.shape.dim[1:]) if not d.dim_value]
        if free:
            raise ValueError(f"{node.name} reads tensors of free size ({', '.join(free)})")
        dtype = getattr(torch, tensor_dtype_to_np_dtype(query.elem_type).name)
        (tokens, channels), (_, keys, width) = ([d.dim_value for d in value.shape.dim[1:]] for value in (query, cache))
        given = attributes(node)
        found[node.name] = Site(dtype, given["heads"], given["start"], tokens, channels, keys, width)
    return found


def why_not(kind: trt.Flavour) -> list[str]:
    """Returns every reason why this package cannot build plans with the kernel here."""
    reasons = trt.reasons(kind)
    if not reasons and not hasattr(trt.load(kind), "QuickPluginCreationRequest"):
        reasons.append(f"{kind.name} {trt.version(kind)} has no ahead-of-time Python plugins")
    if compiled() is None:
        reasons.append(f"no kernels compiled ahead of time in {package.folder()} ({package.MAKE} makes them)")
    return reasons


def compiled() -> package.Package | None:
    """Returns the kernels compiled ahead of time; raises `DiveError` for a broken folder."""
    try:
        return package.installed()
    except ValueError as error:
        raise DiveError(f"build: {error}") from error


def capability_of(gpu: trt.Gpu) -> int:
    return int(gpu.capability.replace(".", ""))


def for_plugin(model: Any) -> Any:
    """Copies an `onnx.ModelProto` without the kernel nodes' body, which parsers prefer to the plugin."""
    result = type(model)()
    result.CopyFrom(model)
    kept = [function for function in result.functions if (function.domain, function.name) != (DOMAIN, NAME)]
    del result.functions[:]
    result.functions.extend(kept)
    for node in kernel_nodes(result.graph):
        given = attributes(node)
        del node.attribute[:]
        named = {"heads": given["heads"], "start": given["start"]}
        chosen = {"plugin_namespace": DOMAIN, "plugin_version": str(VERSION), "aot": 1}
        node.attribute.extend(make_attribute(name, value) for name, value in {**named, **chosen}.items())
    return result


def register(module: Any) -> None:
    """Registers the plugin in `module` (tensorrt), once per process; `why_not` lists what prevents it."""
    trtp = importlib.import_module(f"{module.__name__}.plugin")
    if hasattr(getattr(trtp.op, DOMAIN, None), NAME):
        return

    def describe(query: Any, kv_bank: Any, prompt_index: Any, heads: int, start: int) -> Any:
        return query.like()

    def combinations(query: Any, kv_bank: Any, prompt_index: Any, outputs: Any) -> Any:
        own = TYPES[query.dtype.name]
        return [trtp.AutoTuneCombination(f"{own}, {own}, INT64, {own}", "LINEAR")]

    def implementation(
        query: Any, kv_bank: Any, prompt_index: Any, heads: int, start: int, outputs: Any, tactic: int
    ) -> Any:
        rows = query.shape.max[0] if query.shape.is_dynamic else query.shape[0]
        (tokens, channels), (_, keys, width) = list(query.shape)[1:], list(kv_bank.shape)[1:]
        dtype = getattr(torch, trt.torch_dtype(query.dtype))
        gpu, why_none = trt.find_gpu()
        kernels = compiled()
        if gpu is None or kernels is None or min(tokens, channels, keys, width) < 1:
            raise DiveError(f"{ID} on {list(query.shape)} and {list(kv_bank.shape)}: {why_none or 'no kernels for it'}")
        call = call_of(Site(dtype, heads, start, tokens, channels, keys, width), rows, capability_of(gpu), kernels)
        launch = trtp.KernelLaunchParams()
        launch.grid_x = query.shape_expr[0] * call.programs_a_row
        launch.block_x = call.threads
        launch.shared_mem = call.shared_bytes
        scalars = trtp.SymIntExprs(len(call.scalars))
        for i, value in enumerate(call.scalars.values()):
            scalars[i] = trtp.SymInt32(kv_bank.shape_expr[0] if value is None else value)
        return call.kernel.function, call.ptx(kernels), launch, scalars

    # TensorRT reads the functions' annotations, which need its module.
    inputs = dict.fromkeys(("query", "kv_bank", "prompt_index"), trtp.TensorDesc)
    outputs = {"outputs": GenericAlias(tuple, (trtp.TensorDesc,))}
    sizes = {"heads": int, "start": int}
    describe.__annotations__ = {**inputs, **sizes, "return": trtp.TensorDesc}
    combinations.__annotations__ = {**inputs, **outputs, "return": GenericAlias(list, (trtp.AutoTuneCombination,))}
    made = GenericAlias(tuple, (str, str, trtp.KernelLaunchParams, trtp.SymExprs))
    implementation.__annotations__ = {**inputs, **sizes, **outputs, "tactic": int, "return": made}
    trtp.register(ID)(describe)
    trtp.autotune(ID)(combinations)
    trtp.aot_impl(ID)(implementation)
