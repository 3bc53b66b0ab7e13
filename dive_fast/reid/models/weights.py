"""Pretrained weights from local, untrusted files; a net gets all of its tensors, in the right shapes, or an error."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dive_fast.environment.optional import optional
from dive_fast.io import brief
from dive_fast.json_files import read_json
from dive_fast.types import InputError, shown


def transformers() -> Any:
    return optional("transformers", "this ReID backbone")


def folder_model(
    cls: Any, form: Any, folder: str, *, name: str, fields: Sequence[str], kinds: Sequence[str] = (), **options: Any
) -> nn.Module:
    """Returns a transformers model `cls` in float32 with the weights of `folder` and the configuration `form`.

    The folder's configuration must be of model type `form.model_type` or one of `kinds` and equal `form` in `fields`. Of
    its other fields only `image_size` is read, into `form`; so a net rebuilt from `form`, as from a checkpoint, computes
    the same. Raises `InputError` for another net, and for damaged or incomplete weights.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise InputError(f"weights: {folder} is not a folder of a transformers {name} (no config.json)")
    if odd := sorted(
        entry.name for entry in path.iterdir() if entry.exists() and not (entry.is_file() or entry.is_dir())
    ):
        raise InputError(f"weights: {path / odd[0]} is a pipe or device, which never ends; remove it")
    record = read_json(path / "config.json", "weights")
    kind = record.get("model_type") if isinstance(record, dict) else None
    if kind not in (form.model_type, *kinds):
        expected = " or ".join(map(repr, (form.model_type, *kinds)))
        raise InputError(
            f"weights: {folder} is not a {name}: config.json has model_type {shown(kind)}, expected {expected}"
        )
    with _loading(folder, name):
        given = type(form).from_pretrained(folder, local_files_only=True)
        _check_same(given, form, fields, folder, name)
        if hasattr(form, "image_size"):
            form.image_size = given.image_size
        net, info = cls.from_pretrained(
            folder, config=form, local_files_only=True, output_loading_info=True, dtype=torch.float32, **options
        )
    if missing := info["missing_keys"]:
        raise InputError(f"weights: {folder} lacks {len(missing)} tensors of a {name}, as {shown(min(missing))}")
    return net


def _check_same(given: Any, form: Any, fields: Sequence[str], folder: str, name: str) -> None:
    values = {f: [_plain(getattr(config, f)) for config in (given, form)] for f in fields}
    wrong = [f"{f} is {found}, expected {wanted}" for f, (found, wanted) in values.items() if found != wanted]
    if wrong:
        raise InputError(f"weights: {folder} is not a {name}: its {'; its '.join(wrong)}")


def _plain(value: Any) -> Any:
    """`value` as JSON returns it: tuples as lists."""
    return list(value) if isinstance(value, tuple) else value


@contextmanager
def _loading(folder: str, name: str) -> Iterator[None]:
    """Silences transformers' progress bar and reports, and turns its many kinds of errors into `InputError`."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of transformers or safetensors, for a damaged or foreign folder
        raise InputError(f"weights: {folder} cannot be read as a {name} ({brief(error)}); save it again") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def read_state(path: Path) -> dict[str, Tensor]:
    """Reads the named tensors of a `.safetensors` file, or of a pickle that holds nothing else."""
    if not path.is_file():
        raise InputError(
            f"weights: {path} does not exist or is no file; give a .safetensors file or a pickle of tensors"
        )
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises any kind for broken bytes
        raise InputError(
            f"weights: {path} is no safetensors file or pickle of tensors ({brief(error, 120)})"
        ) from error
    named = isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not named:
        raise InputError(f"weights: {path} is not a state dict of names and tensors; save the model's state_dict()")
    return state


_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.(?:(conv|bn)([1-3])|downsample\.([01]))\.(\w+)")
_PARTS = {"conv": "convolution", "bn": "normalization", "0": "convolution", "1": "normalization"}


def _transformers_name(name: str) -> str:
    """transformers' name of torchvision's ResNet tensor `name`; other names stay."""
    if stem := re.fullmatch(r"(conv|bn)1\.(\w+)", name):
        return f"embedder.embedder.{_PARTS[stem[1]]}.{stem[2]}"
    if not (block := _BLOCK.fullmatch(name)):
        return name
    stage, number, part, place, shortcut, leaf = block.groups()
    where = f"encoder.stages.{int(stage) - 1}.layers.{number}"
    if shortcut is not None:
        return f"{where}.shortcut.{_PARTS[shortcut]}.{leaf}"
    return f"{where}.layer.{int(place) - 1}.{_PARTS[part]}.{leaf}"


def resnet50_state(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Renames torchvision's resnet50 state dict to the names of `wanted`, the state of a transformers ResNetModel.

    The classifier `fc` is left out. Files from before 2018 lack the counts of batches; `wanted`'s own stay there.
    Raises `InputError` naming `where` for tensors that are missing, left over, or of another shape.
    """
    named = {name: tensor for name, tensor in wanted.items() if name.endswith("num_batches_tracked")}
    named |= {_transformers_name(name): tensor for name, tensor in state.items() if not name.startswith("fc.")}
    wrong = {
        "lacks": set(wanted) - set(named),
        "has the unknown": set(named) - set(wanted),
        "has another shape of": {n for n in set(named) & set(wanted) if named[n].shape != wanted[n].shape},
    }
    for what, names in wrong.items():
        if names:
            detail = f"it {what} {shown(min(names))} ({len(names)} such tensors)"
            raise InputError(f"weights: {where} is not torchvision's resnet50: {detail}")
    return named
