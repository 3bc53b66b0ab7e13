"""Tensor files from elsewhere, read as data only: safetensors, or a pickle of tensors and names that runs nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.models.files import check_safetensors
from dive_fast.types import InputError

if TYPE_CHECKING:
    import torch

LARGEST_PICKLE = 2 << 30  # bytes; a LoRA of rank 128 on Stable Diffusion 1.5 takes a twentieth
_ASKED_FOR = re.compile(r"GLOBAL (\S+)")
# torch's reason stands between advice on how to run the file all the same, and where to read more
_ADVICE = ("WeightsUnpickler error:", "Check the documentation")


@dataclass(frozen=True)
class State:
    """What a file holds: names to tensors and, in a pickle, to plain values. `metadata` is a safetensors header."""

    path: Path
    values: dict[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)

    def tensor(self, name: str, shape: str, *ndims: int) -> torch.Tensor:
        """The tensor called `name` as float32 on the CPU.

        Another type, another number of dimensions than `ndims`, or no number at all in it raises `InputError`, which
        names the `shape` wanted.
        """
        return as_float(self.values[name], f"{self.path}: {name!r}", shape, *ndims)


def as_float(value: object, where: str, shape: str, *ndims: int) -> torch.Tensor:
    """`value` as a float32 tensor on the CPU with as many dimensions as `ndims` allow; else `InputError`."""
    import torch

    plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.is_floating_point()
    if not isinstance(value, torch.Tensor) or not plain or value.ndim not in ndims or not value.numel():
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise InputError(f"{where} is {found}, expected floating point {shape}; make the file again")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        # a view that repeats a few bytes: a file of kilobytes that would fill the memory
        raise InputError(f"{where} claims more numbers than the file holds; get the file again from its author")
    return value.detach().float().cpu()


def read_state(path: Path) -> State:
    """What the file holds; a name that ends in `.safetensors` is read as that, any other as a pickle without code.

    A missing or broken file, or a pickle that wants to run something, raises `InputError`; nothing of it has then run.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist or is no file; give a LoRA or embedding file, or a folder with them")
    return _safetensors(path) if path.suffix == ".safetensors" else _pickle(path)


def _safetensors(path: Path) -> State:
    from safetensors import safe_open
    from safetensors.torch import load_file

    check_safetensors(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    return State(path, load_file(path), metadata)


def _pickle(path: Path) -> State:
    import torch

    size = path.stat().st_size
    if size > LARGEST_PICKLE:
        raise InputError(
            f"{path} is a pickle of {size / 1e9:.1f} GB, and those of LoRA and embeddings are below"
            f" {LARGEST_PICKLE / 1e9:.1f} GB; give the LoRA or embeddings alone, or as safetensors"
        )
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler fed with broken bytes raises anything
        raise InputError(_refusal(path, str(error))) from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise InputError(f"{path} holds a {type(values).__name__}, expected names with tensors; is it the right file?")
    return State(path, values)


def _refusal(path: Path, error: str) -> str:
    asked = _ASKED_FOR.search(error)
    if asked:
        return (
            f"{path} is a pickle that runs {asked[1]} when it is opened, so it was not opened; ask its author for"
            " safetensors, or for a pickle of tensors and names only"
        )
    detail = " ".join(error.rpartition(_ADVICE[0])[2].partition(_ADVICE[1])[0].split())[:80] or "it ends too early"
    return (
        f"{path} is not a whole file of tensors and names, and nothing else ({detail}); copy it again, or ask its author"
        " for safetensors"
    )
