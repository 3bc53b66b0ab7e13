"""LoRA on the attention of a UNet, or on all its layers: PEFT adds and removes it, and every key of a state is counted.

A key is a layer's name plus `.lora_A.weight` [rank, in] or `.lora_B.weight` [out, rank], as PEFT names them; those of a
convolution are [rank, in, h, w] and [out, rank, 1, 1].
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dive_fast.types import DiveError, InputError, shown

if TYPE_CHECKING:
    import torch

_TARGETS = re.compile(r".*\.attn[12]\.to_(q|k|v|out\.0)")
_A, _B = ".lora_A.weight", ".lora_B.weight"


def lora_targets(unet: Any) -> list[str]:
    """Returns the names of the linears that carry LoRA: to_q, to_k, to_v, to_out.0 of every attn1 and attn2.

    A UNet without them raises `InputError`.
    """
    names = [name for name, _ in unet.named_modules() if _TARGETS.fullmatch(name)]
    if not names:
        raise InputError("LoRA: the UNet has no attention (to_q, to_k, to_v, to_out.0); use another base model")
    return names


def every_layer(unet: Any) -> list[str]:
    """Returns the names of all linears and convolutions of a UNet without LoRA."""
    import torch

    return [name for name, layer in unet.named_modules() if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d))]


def lora_shapes(unet: Any, rank: int, targets: Sequence[str] | None = None) -> dict[str, tuple[int, ...]]:
    """Returns the keys of a LoRA of this rank on the layers `targets`, by default `lora_targets`, and their shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in lora_targets(unet) if targets is None else targets:
        layer = unet.get_submodule(name)
        out, into, *kernel = getattr(layer, "base_layer", layer).weight.shape
        shapes[name + _A] = (rank, into, *kernel)
        shapes[name + _B] = (out, rank, *(1 for _ in kernel))
    return shapes


def lora_pairs(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Returns A and B by linear; a key that is neither, or without its partner, raises `InputError`."""
    names = {key.removesuffix(_A).removesuffix(_B) for key in state}
    odd = sorted(key for key in state if not key.endswith((_A, _B)))
    odd += sorted(name for name in names if name + _A not in state or name + _B not in state)
    if odd:
        raise InputError(
            f"LoRA: {len(odd)} of {len(state)} keys are not whole {_A} / {_B} pairs, first {shown(odd[0])}"
        )
    return {name: (state[name + _A], state[name + _B]) for name in sorted(names)}


def check_rank(rank: object, alpha: object, where: str) -> None:
    """Raises `InputError` unless `rank` is a positive int and `alpha` a positive finite number."""
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise InputError(f"{where}: rank must be a whole number >= 1, got {shown(rank)}")
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not math.isfinite(alpha) or alpha <= 0:
        raise InputError(f"{where}: alpha must be a finite number > 0, got {shown(alpha)}")


def fold_lora(unet: Any, state: Mapping[str, torch.Tensor], scale: float) -> None:
    """Adds scale * B A to each weight of `unet`, in place: in float64, rounded once to the weight's dtype."""
    import torch

    with torch.no_grad():
        for name, (a, b) in lora_pairs(state).items():
            weight = unet.get_submodule(name).weight
            product = b.to(weight.device).double().flatten(1) @ a.to(weight.device).double().flatten(1)
            weight.copy_(weight.double() + scale * product.view_as(weight))


def check_lora_state(
    unet: Any, state: Mapping[str, torch.Tensor], rank: int, targets: Sequence[str] | None = None
) -> None:
    """Raises `InputError` unless `state` holds exactly the keys and shapes of this rank on `unet`.

    diffusers only warns about keys that fit nowhere, so a LoRA can load as nothing; here each key must land.
    """
    expected = lora_shapes(unet, rank, targets)
    landed = expected.keys() & state.keys()
    found = {
        "fit no attention of this UNet": sorted(state.keys() - expected.keys()),
        "are missing": sorted(expected.keys() - state.keys()),
        "have another shape": sorted(k for k in landed if tuple(state[k].shape) != expected[k]),
    }
    problems = [f"{len(keys)} {problem} (first {shown(keys[0])})" for problem, keys in found.items() if keys]
    if problems:
        raise InputError(
            f"LoRA of rank {rank}: {len(landed)} of {len(expected)} keys land, {'; '.join(problems)};"
            " use the adapter with the base model it was trained on"
        )


def has_lora(unet: Any) -> bool:
    return any(".lora_" in name for name, _ in unet.named_modules())


def add_lora(unet: Any, rank: int, alpha: float, targets: Sequence[str] | None = None) -> list[torch.nn.Parameter]:
    """Adds LoRA layers to `unet` in place (PEFT, A gaussian, B zero) and returns their parameters, all trainable.

    `targets` are the layers that get one, by default `lora_targets`. With B zero, the output is unchanged. A bad rank or
    alpha, or a UNet without attention, raises `InputError`; LoRA already present raises `DiveError`.
    """
    from peft import LoraConfig

    check_rank(rank, alpha, "LoRA")
    names = lora_targets(unet) if targets is None else list(targets)
    if has_lora(unet):
        raise DiveError("the UNet already carries LoRA layers; remove_lora first")
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, init_lora_weights="gaussian"))
    return [parameter for name, parameter in unet.named_parameters() if ".lora_" in name]


def lora_state(unet: Any) -> dict[str, torch.Tensor]:
    """Returns a copy of the LoRA in `unet`: PEFT keys, float32, on the CPU. Without LoRA raises `DiveError`."""
    from peft.utils import get_peft_model_state_dict

    if not has_lora(unet):
        raise DiveError("the UNet carries no LoRA layers; add_lora first")
    return {key: tensor.detach().float().cpu().clone() for key, tensor in get_peft_model_state_dict(unet).items()}


def set_lora_state(unet: Any, state: Mapping[str, torch.Tensor]) -> None:
    """Writes `state` into the LoRA layers of `unet`; a missing or unknown key raises `InputError`."""
    import torch

    layers = {n.replace(".default.", "."): p for n, p in unet.named_parameters() if ".lora_" in n}
    if not layers:
        raise DiveError("the UNet carries no LoRA layers; add_lora first")
    rank = next(parameter.shape[0] for key, parameter in layers.items() if key.endswith(_A))
    check_lora_state(unet, state, rank, [key.removesuffix(_A) for key in layers if key.endswith(_A)])
    with torch.no_grad():
        for key, parameter in layers.items():
            parameter.copy_(state[key])


def remove_lora(unet: Any) -> None:
    """Removes the LoRA layers from `unet` in place and leaves its own weights."""
    unet.unload_lora()
