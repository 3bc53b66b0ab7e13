"""Half precision without half-precision arithmetic, which is slow in torch on a CPU: weights are converted, the graph is
traced, and its rounding errors are emulated in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from dive_fast.unet.optimizations import M, copied

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def as_precision(x: Tensor, precision: str) -> Tensor:
    """Floating tensors in the type of `precision`; integers as they are."""
    return x.to(DTYPES[precision]) if x.is_floating_point() else x


def converted(module: M, precision: str) -> M:
    """A copy of `module` with weights of `precision`; fp32 shares them with the original."""
    return copied(module, lambda tensor: as_precision(tensor, precision))


def rounded_run(module: nn.Module, inputs: list[Tensor], precision: str) -> Tensor:
    """Runs `module` (float32) with every operator's operands rounded to `precision`.

    Sums inside an operator stay float32, as in half-precision kernels, and so do the sinusoids of the timestep, which
    diffusers always computes in float32.
    """
    rounding = _Rounding(precision)
    hooks = []
    for network in module.modules():
        if type(network).__name__ == "Timesteps":
            hooks.append(network.register_forward_pre_hook(lambda *_: setattr(rounding, "on", False)))
            hooks.append(network.register_forward_hook(lambda *_: setattr(rounding, "on", True)))
    try:
        with torch.no_grad(), rounding:
            out: Tensor = module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return as_precision(out, precision).float()


class _Rounding(TorchDispatchMode):
    def __init__(self, precision: str) -> None:
        super().__init__()
        self.precision, self.on = precision, True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.on or func._schema.is_mutable:  # a mutable one writes to its argument, no copy of it
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map(self._rounded, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _rounded(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        return as_precision(x, self.precision).to(x.dtype)


def upcast_bfloat16(path: Path, out: Path) -> None:
    """Writes the graph at `path` to `out` with its bfloat16 values and types as float32."""
    half, single = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    model = onnx.load(str(path))
    constants = [attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")]
    for tensor in (*model.graph.initializer, *constants):
        if tensor.data_type == half:
            wide = onnx.numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == half:
                attribute.i = single
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = single
    onnx.save(model, str(out), save_as_external_data=True, location=f"{out.name}.data")
