"""Tensor files of other tools, read as data: safetensors, or a pickle of tensors and names of which no code runs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.io import POINTER, is_pointer
from dive_fast.models.files import check_safetensors
from dive_fast.types import InputError, shown

if TYPE_CHECKING:
    import torch

LARGEST_PICKLE = 2 << 30  # bytes; a LoRA of rank 128 on Stable Diffusion 1.5 takes a twentieth
_FORBIDDEN = re.compile(r"GLOBAL (\S+)")  # what torch's unpickler refused to call


@dataclass(frozen=True)
class State:
    """What a file holds: names to tensors and, in a pickle, to plain values. `metadata` is a safetensors header."""

    path: Path
    values: dict[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)

    def tensor(self, name: str, *ndims: int) -> torch.Tensor:
        """The tensor called `name` as float32 on the CPU; see `as_float`."""
        return as_float(self.values[name], f"{self.path}: {shown(name)}", *ndims)


def as_float(value: object, where: str, *ndims: int) -> torch.Tensor:
    """Returns `value` as a float32 tensor on the CPU.

    Another type, another number of dimensions than `ndims`, or an empty tensor raises `InputError`.
    """
    import torch

    plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.is_floating_point()
    if not isinstance(value, torch.Tensor) or not plain or value.ndim not in ndims or not value.numel():
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        wanted = " or ".join(map(str, ndims))
        raise InputError(f"{where} is {found}, expected floating point in {wanted} dimensions; make the file again")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        # a view that repeats a few bytes: a file of kilobytes that would fill the memory
        raise InputError(f"{where} claims more numbers than the file holds; get the file again from its author")
    return value.detach().float().cpu()


def read_state(path: Path) -> State:
    """Reads a file whose name ends in `.safetensors` as that, any other as a pickle of which no code runs.

    A missing or broken file, or a pickle that would call something, raises `InputError`.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist or is no file; give a LoRA or embedding file, or a folder with them")
    return _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pickle(path)


def _read_safetensors(path: Path) -> State:
    from safetensors import safe_open
    from safetensors.torch import load_file

    check_safetensors(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    return State(path, load_file(path), metadata)


def _plain(value: Any) -> Any:
    """A ParameterDict, as the first code of textual inversion saves, as a dictionary; as versions of torch fill it."""
    import torch

    if isinstance(value, torch.nn.ParameterDict):
        return dict(vars(value)["_parameters"])
    return {key: _plain(inner) for key, inner in value.items()} if type(value) is dict else value


def _read_pickle(path: Path) -> State:
    import torch

    size = path.stat().st_size
    if size > LARGEST_PICKLE:
        raise InputError(
            f"{path} is a pickle of {size / 1e9:.1f} GB, the limit is {LARGEST_PICKLE / 1e9:.1f} GB;"
            " give the LoRA or embeddings alone, or as safetensors"
        )
    with open(path, "rb") as stream:
        if is_pointer(stream.read(100)):
            raise InputError(f"{path} {POINTER}")
    try:
        with torch.serialization.safe_globals([torch.nn.ParameterDict]):  # which unpickling only fills
            values = _plain(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # an unpickler fed with broken bytes raises anything
        called = _FORBIDDEN.search(str(error))
        reason = f"calls {called[1]} when opened" if called else "is no whole file of tensors and names"
        raise InputError(f"{path} was not opened: it {reason}; copy it again, or ask for safetensors") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise InputError(f"{path} holds a {type(values).__name__}, expected names with tensors; give another file")
    return State(path, values)
