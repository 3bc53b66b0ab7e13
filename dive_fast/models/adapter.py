"""An adapter: vocabulary rows of the learned identities and a LoRA for the cameras, for one base model.

A folder of `adapter.json`, `identities.safetensors` (`embeddings` [T, D], and the tensors of `Tones` if there are tones)
and `lora.safetensors` (PEFT keys behind `unet.`, so plain diffusers' `load_lora_weights` reads that file too).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.io import write_json
from dive_fast.json_files import read_json
from dive_fast.models.files import fingerprint_of, read_tensors, resolve, write_tensors
from dive_fast.models.lora import check_rank, lora_pairs
from dive_fast.models.phrase import ONE_WORD, Phrase
from dive_fast.models.prompts import DEFAULT_TEMPLATE, check_vocabulary, find, parse_table
from dive_fast.models.tones import Tones, check_tones, read_tones
from dive_fast.outputs import holds, output_folder
from dive_fast.types import Camera, Identity, InputError, shown, to_dict

if TYPE_CHECKING:
    import torch

FORMAT = "dive-fast adapter 2"
_METADATA = "facts"  # the key of `metadata` in files
_UNET = "unet."
_LARGEST = 65504.0  # of float16, in which engines compute and files are shipped
_TOO_LARGE = f"more than float16 holds ({_LARGEST:,.0f}); train again with a lower learning rate"


@dataclass(frozen=True)
class Adapter:
    """Identities and cameras learned on one base model. Invalid or inconsistent fields raise `InputError`.

    `embeddings` is float32 [T, D], rows by the words of `identities[0]`, then `identities[1]`, ...; `lora` maps PEFT
    keys to float32 A [rank, in] and B [out, rank]; `phrase` describes further identities (`Phrase`), those learned have
    their own in the placeholder; `tones` computes what infrared prompts add to the words of that phrase; `metadata` is
    JSON about the training. Tensors are on the CPU; do not change them.
    """

    base_fingerprint: str
    identities: tuple[Identity, ...]
    cameras: tuple[Camera, ...]
    embeddings: torch.Tensor
    lora: dict[str, torch.Tensor]
    rank: int
    alpha: float
    template: str = DEFAULT_TEMPLATE
    phrase: str = ONE_WORD
    metadata: dict[str, Any] = field(default_factory=dict)
    tones: Tones | None = None

    def __post_init__(self) -> None:
        check_vocabulary(self.identities, self.cameras, [self.template], "adapter")
        phrase = Phrase(self.phrase)
        check_rank(self.rank, self.alpha, "adapter")
        check_rows(self.identities, self.embeddings, "adapter")
        _check_lora(self.lora, self.rank, self.alpha)
        if self.tones is not None:
            check_tones(self.tones, phrase, self.embeddings.shape[1], "adapter")

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of everything in the adapter but its metadata."""
        described = {key: value for key, value in describe(self).items() if key != _METADATA}
        return fingerprint_of(described, {"identities/embeddings": self.embeddings, **self.lora, **tones_of(self)})


def check_rows(identities: Sequence[Identity], rows: torch.Tensor, where: str) -> None:
    """Raises `InputError` unless `rows` is a [T, D] of numbers in float16's range, one row, not zero, per word, T > 0."""
    words = sum(len(identity.words) for identity in identities)
    if rows.ndim != 2 or rows.shape[0] != words or not rows.numel():
        raise InputError(
            f"{where}: {len(identities)} identities with {words} words need embeddings [{words}, width] (and at least"
            f" one), got {list(rows.shape)}"
        )
    _check_numbers(rows, f"{where}: the embeddings hold")
    empty = (~rows.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        word = [word for identity in identities for word in identity.words][empty[0]]
        raise InputError(f"{where}: the embedding of {word} is all zeros, so nothing was learned; make it again")


def _check_lora(lora: dict[str, torch.Tensor], rank: int, alpha: float) -> None:
    pairs = lora_pairs(lora)
    if not pairs:
        raise InputError("adapter: the LoRA is empty; make the adapter again")
    for name, (a, b) in pairs.items():
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank or not (a.numel() and b.numel()):
            shapes = f"A {list(a.shape)} and B {list(b.shape)}"
            raise InputError(f"adapter: LoRA of {name} has {shapes}, needs A [{rank}, in] and B [out, {rank}]")
        _check_numbers(a, f"adapter: LoRA of {name} holds")
        _check_numbers(b, f"adapter: LoRA of {name} holds")
        change = float(alpha * a.abs().max() * b.abs().max())  # no weight changes by more
        if change > _LARGEST:
            raise InputError(f"adapter: LoRA of {name} may change weights by {change:.1e}, {_TOO_LARGE}")


def _check_numbers(tensor: torch.Tensor, what: str) -> None:
    if not bool(tensor.isfinite().all()):
        raise InputError(f"{what} NaN or infinity; train again with a lower learning rate")
    largest = float(tensor.abs().max())
    if largest > _LARGEST:
        raise InputError(f"{what} {largest:.1e}, {_TOO_LARGE}")


def merge_identities(adapter: Adapter, identities: Sequence[Identity], rows: torch.Tensor) -> Adapter:
    """Returns the adapter with further identities and their `rows`, float [T, D] by word; the rest stays bit for bit.

    Those of the adapter's phrase get its tones. A pid or placeholder that the adapter already holds, or another width,
    raises `InputError`.
    """
    import torch

    check_rows(identities, rows, "new identities")
    widths = rows.shape[1], adapter.embeddings.shape[1]
    if widths[0] != widths[1]:
        raise InputError(
            f"new identities: rows are {widths[0]} wide, those of the adapter {widths[1]}; learn them on its base model"
        )
    rows = rows.detach().to("cpu", adapter.embeddings.dtype)
    if adapter.tones is not None:
        identities, rows = adapter.tones.extend(Phrase(adapter.phrase), identities, rows)
    merged = torch.cat([adapter.embeddings, rows])
    return replace(adapter, identities=(*adapter.identities, *identities), embeddings=merged)


def tones_of(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Returns the tensors of the adapter's tones by name, none without tones."""
    return {} if adapter.tones is None else adapter.tones.tensors()


def subset(adapter: Adapter, pids: Sequence[str]) -> Adapter:
    """Returns the adapter with only `pids`, in that order; an unknown one raises `InputError`."""
    known = {identity.pid: identity for identity in adapter.identities}
    kept = tuple(find(pid, known, "identities", "adapter") for pid in pids)
    row_of = {word: row for row, word in enumerate(w for identity in adapter.identities for w in identity.words)}
    rows = [row_of[word] for identity in kept for word in identity.words]
    return replace(adapter, identities=kept, embeddings=adapter.embeddings[rows])


def describe(adapter: Adapter) -> dict[str, Any]:
    """Returns all but the tensors, as `adapter.json` holds it and `read_description` reads it."""
    return {
        "format": FORMAT,
        "base_fingerprint": adapter.base_fingerprint,
        "identities": [to_dict(identity) for identity in adapter.identities],
        "cameras": [to_dict(camera) for camera in adapter.cameras],
        "template": adapter.template,
        "phrase": adapter.phrase,
        "rank": adapter.rank,
        "alpha": float(adapter.alpha),
        _METADATA: adapter.metadata,
    }


def read_description(path: Path) -> dict[str, Any]:
    """Reads all fields of `Adapter` but its tensors; another format or a broken file raises `InputError`."""
    data = read_json(path, "adapter")
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise InputError(f"{path}: format is {shown(found)}, this version reads {FORMAT!r}; make it again")
    if not isinstance(data.get(_METADATA), dict):
        raise InputError(f"{path}: {_METADATA} must be a JSON object, got {shown(data.get(_METADATA))}")
    fields = parse_table(data, ("base_fingerprint", "template", "phrase"), str(path))
    return {**fields, "rank": data.get("rank"), "alpha": data.get("alpha"), "metadata": data[_METADATA]}


def save_adapter(adapter: Adapter, path: Path | str, dtype: torch.dtype | None = None, overwrite: bool = False) -> None:
    """Writes the adapter folder whole or not at all; `dtype` such as torch.float16 shrinks it for shipping.

    An equal adapter at `path` stays; another one raises `InputError` without `overwrite`, other content always.
    """
    with output_folder(path, holds("adapter.json"), overwrite) as folder:
        write_tensors(folder / "identities.safetensors", {"embeddings": adapter.embeddings, **tones_of(adapter)}, dtype)
        write_tensors(folder / "lora.safetensors", diffusers_lora(adapter), dtype, diffusers_metadata(adapter))
        write_json(folder / "adapter.json", describe(adapter))


def diffusers_lora(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Returns the LoRA under the names that diffusers reads."""
    return {_UNET + key: tensor for key, tensor in adapter.lora.items()}


def diffusers_metadata(adapter: Adapter) -> dict[str, str]:
    """Returns the header from which diffusers reads rank and alpha; without it, it assumes alpha = rank."""
    targets = sorted({key.split(".lora_")[0] for key in adapter.lora})
    config = {"r": adapter.rank, "lora_alpha": adapter.alpha, "target_modules": targets}
    config |= {"rank_pattern": {}, "alpha_pattern": {}}  # diffusers 0.37 does not open a header without them
    return {"lora_adapter_metadata": json.dumps({_UNET + key: value for key, value in config.items()})}


def load_adapter(path: Adapter | Path | str) -> Adapter:
    """Reads the adapter in a folder, as float32; "pocket" is the one shipped with the package.

    Returns an adapter as it is. A missing, broken or inconsistent file raises `InputError` with its name and what was
    expected.
    """
    if isinstance(path, Adapter):
        return path
    folder = resolve(path, "pocket-adapter")
    if not (folder / "adapter.json").is_file():
        raise InputError(f"adapter {folder} has no adapter.json; give a folder that `dive-fast personalize` wrote")
    try:
        description = read_description(folder / "adapter.json")
        tensors, lora = (read_tensors(folder / name) for name in ("identities.safetensors", "lora.safetensors"))
        tones = read_tones(tensors)
        if set(tensors) - set({} if tones is None else tones.tensors()) != {"embeddings"}:
            raise InputError(
                f"identities.safetensors must hold one tensor 'embeddings', found {shown(sorted(tensors))}"
            )
        other = [key for key in lora if not key.startswith(_UNET)]
        if other:
            raise InputError(f"lora.safetensors: {len(other)} of {len(lora)} keys lack the prefix {_UNET!r}")
        lora = {key.removeprefix(_UNET): tensor for key, tensor in lora.items()}
        return Adapter(**description, embeddings=tensors["embeddings"], lora=lora, tones=tones)
    except InputError as error:
        raise InputError(f"adapter {folder} cannot be used: {error}") from error
