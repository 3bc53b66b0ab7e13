"""Our adapters as files that diffusers, and LoRA loaders of kohya's layout, read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from dive_fast.io import write_json
from dive_fast.models.adapter import Adapter, describe, diffusers_lora, diffusers_metadata, tones_of
from dive_fast.models.files import write_tensors
from dive_fast.models.interop.lora_names import kohya_name
from dive_fast.models.interop.sources import EMBEDDING_FILES, IDENTITIES, LORA_FILES, TONES
from dive_fast.models.lora import lora_pairs
from dive_fast.outputs import holds, output_folder
from dive_fast.types import InputError, shown

if TYPE_CHECKING:
    import torch

Layout = Literal["diffusers", "kohya"]


def export_adapter(adapter: Adapter, path: Path, layout: Layout = "diffusers", overwrite: bool = False) -> None:
    """Writes the folder `path`, whole or not at all: the LoRA, the embeddings by word, and `identities.json`.

    The tensors keep their bits, `layout` names those of the LoRA; `import_adapter` makes the same adapter of the folder.
    An equal export at `path` stays; another one raises `InputError` without `overwrite`, other content and an unknown
    layout always.
    """
    if layout not in get_args(Layout):
        raise InputError(f"export: layout must be one of {', '.join(get_args(Layout))}, got {shown(layout)}")
    words = [word for identity in adapter.identities for word in identity.words]
    with output_folder(path, holds(IDENTITIES), overwrite) as folder:
        if layout == "kohya":
            write_tensors(folder / LORA_FILES[0], _kohya(adapter))
        else:
            write_tensors(folder / LORA_FILES[0], diffusers_lora(adapter), metadata=diffusers_metadata(adapter))
        write_tensors(folder / EMBEDDING_FILES[0], dict(zip(words, adapter.embeddings, strict=True)))
        if adapter.tones is not None:
            write_tensors(folder / TONES, tones_of(adapter))
        write_json(folder / IDENTITIES, describe(adapter))  # what the layouts cannot hold: pids, cameras, template


def _kohya(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Unlike diffusers' `convert_state_dict_to_kohya`, this writes the adapter's alpha, not its rank."""
    import torch

    tensors: dict[str, torch.Tensor] = {}
    for linear, (a, b) in lora_pairs(adapter.lora).items():
        name = kohya_name(linear)
        tensors |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b}
        tensors[f"{name}.alpha"] = torch.tensor(adapter.alpha, dtype=torch.float64)  # exact for any alpha
    return tensors
