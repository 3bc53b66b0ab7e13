"""Frozen image features of photos: maps of a network at three depths, pooled in stripes, and what it says of the photo.

That is an embedding, or a tagger's log probabilities of words.

A ReID net forgets what does not tell people apart, CLIP what no caption says; earlier maps keep colours and textures
(ELITE, arXiv 2302.13848, reads several depths of CLIP). Stripes keep the height, which says what garment it is (arXiv
1711.09349).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dive_fast.json_files import read_json
from dive_fast.models.files import fingerprint_of, library_errors, resolve
from dive_fast.reid.data.augment import normalise
from dive_fast.reid.data.dataset import image_chunks
from dive_fast.reid.training.checkpoint import load_model
from dive_fast.train.tagger import FILES as TAGGER_FILES
from dive_fast.train.tagger import SHIPPED, load_tagger
from dive_fast.types import InputError, Sample, shown

Kind = Literal["reid", "tagger", "clip"]
DEPTHS, STRIPES = 3, 6
_CHUNK = 512  # photos decoded at once
_LARGEST = 60000.0  # features are stored in float16


@dataclass(frozen=True)
class FeatureNet:
    """An opened network; `folder` holds it, `people` are the identities that it was trained on, if it says so.

    An encoder's folder takes copies of `files`; a network without any stays where it is. `maps` returns
    the embedding [B, D] and the maps [B, C, h, w] of images uint8 [B, 3, `height`, `width`].
    """

    kind: Kind
    folder: Path
    fingerprint: str
    height: int
    width: int
    files: tuple[str, ...]
    people: tuple[str, ...]
    network: torch.nn.Module
    maps: Callable[[Tensor], tuple[Tensor, list[Tensor]]]
    phrase: str | None = None  # of a tagger, whose log probabilities of its words are the first features

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Returns features float16 [B, F] on the CPU of images uint8 [B, 3, height, width]."""
        device = next(self.network.parameters()).device
        embedding, maps = self.maps(images.to(device))
        stripes = [F.adaptive_avg_pool2d(each.float(), (STRIPES, 1)).flatten(1) for each in maps]
        return torch.cat([embedding.float(), *stripes], dim=1).clamp(-_LARGEST, _LARGEST).half().cpu()

    @property
    def dims(self) -> int:
        return self(torch.zeros(1, 3, self.height, self.width, dtype=torch.uint8)).shape[1]

    def features(self, samples: Sequence[Sample], batch: int = 64, progress: str | None = None) -> Tensor:
        """Returns features float16 [N, F] of photos; a damaged one raises `InputError` that names it."""
        parts = [
            self(images)
            for chunk in image_chunks(samples, self.height, self.width, _CHUNK, progress)
            for images in chunk.images.split(batch)
        ]
        return torch.cat(parts)


def open_features(path: Path | str, device: str = "cpu") -> FeatureNet:
    """Opens a checkpoint folder of `dive-fast reid train`, a tagger's, or a local CLIP folder of transformers.

    "pocket" is the shipped tagger. Anything else, and a damaged folder, raises `InputError`.
    """
    folder = resolve(path, SHIPPED)
    if (folder / "reid.json").is_file():
        return _open_reid(folder, device)
    if (folder / TAGGER_FILES[0]).is_file():
        return _open_tagger(folder, device)
    if (folder / "config.json").is_file():
        return _open_clip(folder, device)
    raise InputError(
        f"{folder} holds no network that reads photos: give a checkpoint of dive-fast reid train (reid.json), a tagger"
        " (tagger.json), or a CLIP folder (config.json and model.safetensors)"
    )


def _open_reid(folder: Path, device: str) -> FeatureNet:
    model, config, record = load_model(folder, device)
    model.requires_grad_(False)
    conv = isinstance(model.trunk, torch.nn.Sequential)
    layers = [model.visible, *model.trunk] if conv else list(model.trunk.layers)
    grid: Any = None if conv else model.pool.grid

    def maps(images: Tensor) -> tuple[Tensor, list[Tensor]]:
        visible = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        with _outputs(evenly(layers)) as found:
            embedding = model.embed(normalise(images), visible)
        return embedding, [each if grid is None else _grid(each, grid) for each in found]

    files = ("reid.json", "best.safetensors" if "best" in record else "model.safetensors")
    people = tuple(map(str, record["pids"]))
    size = config.model.height, config.model.width
    return FeatureNet("reid", folder, str(record["sha256"]), *size, files, people, model, maps)


def _open_tagger(folder: Path, device: str) -> FeatureNet:
    tagger = load_tagger(folder)
    network = tagger.net.to(device)
    layers = [layer for layer in network.body if isinstance(layer, torch.nn.SiLU)]

    def maps(images: Tensor) -> tuple[Tensor, list[Tensor]]:
        with _outputs(evenly(layers)) as found:
            words = torch.cat(network(images.permute(0, 2, 3, 1)), dim=1)
        return words, found

    fingerprint = fingerprint_of([tagger.phrase.text, *tagger.size], network.state_dict())
    return FeatureNet("tagger", folder, fingerprint, *tagger.size, TAGGER_FILES, (), network, maps, tagger.phrase.plain)


def _open_clip(folder: Path, device: str) -> FeatureNet:
    from transformers import CLIPVisionModel

    remedy = "give a folder with the config.json and model.safetensors of a CLIP vision model"
    record = read_json(folder / "config.json", "CLIP")
    kind = record.get("model_type") if isinstance(record, dict) else None
    if kind not in ("clip", "clip_vision_model"):
        raise InputError(f"{folder} is no CLIP: config.json has model_type {shown(kind)}; {remedy}")
    with library_errors(f"CLIP {folder}", remedy):
        network, info = CLIPVisionModel.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
        if info["missing_keys"]:
            raise InputError(f"CLIP {folder} lacks {len(info['missing_keys'])} tensors of its vision model; {remedy}")
    network.eval().requires_grad_(False).to(device)
    side, patch = int(network.config.image_size), int(network.config.patch_size)
    mean, std = _normalisation(folder)

    def maps(images: Tensor) -> tuple[Tensor, list[Tensor]]:
        pixels = (images.float() / 255 - mean.to(images.device)) / std.to(images.device)
        output = network(pixels, output_hidden_states=True)
        return output.pooler_output, [_grid(each, (side // patch,) * 2) for each in evenly(output.hidden_states)]

    fingerprint = fingerprint_of([mean.flatten().tolist(), std.flatten().tolist()], network.state_dict())
    return FeatureNet("clip", folder, fingerprint, side, side, (), (), network, maps)


def _normalisation(folder: Path) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [1, 3, 1, 1] of the pixels that a CLIP expects."""
    from transformers import CLIPImageProcessor

    with library_errors(f"CLIP {folder}", "copy its preprocessor_config.json again"):
        known = (folder / "preprocessor_config.json").is_file()
        cls = CLIPImageProcessor
        form = cls.from_pretrained(str(folder), local_files_only=True) if known else cls()
        mean, std = (
            torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in (form.image_mean, form.image_std)
        )
    if not (mean.isfinite().all() and (std > 0).all()):
        raise InputError(f"CLIP {folder}: image_std must be above 0; copy its preprocessor_config.json again")
    return mean, std


def evenly(layers: Sequence[Any]) -> list[Any]:
    """Returns `DEPTHS` of the layers, the first, the last and those evenly between."""
    places = np.linspace(0, len(layers) - 1, min(DEPTHS, len(layers))).round().astype(int)
    return [layers[place] for place in places]


def _grid(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """A transformer's tokens [B, 1 + h * w, D], the class token first, as maps [B, D, h, w]."""
    return tokens[:, 1:].transpose(1, 2).unflatten(2, grid)


@contextmanager
def _outputs(layers: Sequence[torch.nn.Module]) -> Iterator[list[Tensor]]:
    """Yields a list that holds the outputs of `layers`, in the order in which the block computes them."""
    found: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
