"""Pedestrian attribute recognition: predicts the words of a phrase from photos, where textual inversion starts.

Without it, the UNet's loss needs thousands of steps to learn dyes and never learns weaves (docs/log.md). A tagger is a
folder of `tagger.json` (phrase, image size) and `tagger.safetensors`, and belongs to one phrase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dive_fast.data.images import photo_pixels
from dive_fast.io import write_json
from dive_fast.json_files import read_json
from dive_fast.models.files import read_tensors, resolve, write_tensors
from dive_fast.models.phrase import Phrase
from dive_fast.outputs import holds, output_folder
from dive_fast.train.photos import teaching
from dive_fast.types import InputError, Sample

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "dive-fast tagger 1"
FILES, SHIPPED = ("tagger.json", "tagger.safetensors"), "pocket-encoder/features"
WIDTHS = (32, 48, 64, 96, 96, 128)
_STRIDES = (2, 2, 1, 2, 1, 2)
_ROWS, _COLUMNS = 8, 2  # a garment's place in a photo is its height
INDEPENDENT = 3.0  # photos of one identity have correlated errors and count as at most so many


class TaggerNet(torch.nn.Module):
    """Convolutions and a linear read-out over coarse places; `choices` are the numbers of words of each mixed word."""

    prior: Tensor

    def __init__(self, choices: Sequence[int], widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.choices = list(choices)
        layers: list[torch.nn.Module] = []
        before = 3
        for i, (width, stride) in enumerate(zip(widths, _STRIDES, strict=True)):
            size = 3 if i else 5
            layers += [
                torch.nn.Conv2d(before, width, size, stride, size // 2, bias=False),
                torch.nn.GroupNorm(width // 8, width),  # keeps no running statistics, which no state saves
                torch.nn.SiLU(),
            ]
            before = width
        self.body = torch.nn.Sequential(*layers)
        self.readout = torch.nn.Linear(before * _ROWS * _COLUMNS, sum(self.choices))
        self.register_buffer("prior", torch.zeros(sum(self.choices)))  # log frequency of each word in training captions

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns log probabilities [N, words] of each mixed word for photos uint8 [N, H, W, 3]."""
        x = images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)
        places = torch.nn.functional.adaptive_avg_pool2d(self.body(x), (_ROWS, _COLUMNS)).flatten(1)
        return [part.log_softmax(dim=1) for part in self.readout(places).split(self.choices, dim=1)]


@dataclass(frozen=True)
class Tagger:
    """A trained classifier with its phrase and photo size (height, width)."""

    phrase: Phrase
    net: TaggerNet
    size: tuple[int, int]

    def logits(self, photos: Sequence[np.ndarray]) -> list[Tensor]:
        """Returns logits [words] of each mixed word of one identity, from photos uint8 [H, W, 3] of the tagger's size.

        The photos' mean log likelihood ratio to the prior counts `INDEPENDENT` times, or once per photo if those are fewer.
        """
        prior = self.net.prior.split(self.net.choices)
        with torch.inference_mode():
            predicted = self.net(torch.from_numpy(np.stack(photos)))
        weight = min(INDEPENDENT, float(len(photos)))
        return [(logp - before).mean(dim=0) * weight + before for logp, before in zip(predicted, prior, strict=True)]


def mixed_words(phrase: Phrase) -> list[list[str]]:
    """Returns the words that each mixed word of a phrase chooses from."""
    return [words for words in phrase.choices if len(words) > 1]


def save_tagger(tagger: Tagger, folder: Path) -> None:
    """Writes a tagger folder whole or not at all; anything but an equal tagger at `folder` raises `InputError`."""
    record, weights = FILES
    with output_folder(folder, holds(record)) as new:
        write_tensors(new / weights, tagger.net.state_dict(), torch.float16)
        height, width = tagger.size
        description = {"format": FORMAT, "phrase": tagger.phrase.text, "height": height, "width": width}
        write_json(new / record, description)


def load_tagger(path: Path | str) -> Tagger:
    """Reads a tagger folder, or the shipped one, "pocket"; a missing or damaged one raises `InputError`."""
    folder = resolve(path, SHIPPED)
    record, weights = FILES
    description = read_json(folder / record, "tagger")
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise InputError(f"tagger {folder}: tagger.json is not of {FORMAT!r}; give a folder from world train-tagger")
    text, size = description.get("phrase"), (description.get("height"), description.get("width"))
    if not isinstance(text, str) or not all(isinstance(side, int) and 8 <= side <= 4096 for side in size):
        raise InputError(f"tagger {folder}: tagger.json lacks a phrase or a height and width; copy the folder again")
    phrase = Phrase(text)
    tensors = read_tensors(folder / weights)
    net = TaggerNet([len(words) for words in mixed_words(phrase)])
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != expected:
        raise InputError(f"tagger {folder}: its weights do not belong to its phrase; copy the folder again")
    net.load_state_dict(tensors)
    return Tagger(phrase, net.eval().requires_grad_(False), size)  # type: ignore[arg-type]


def tag_identities(tagger: Tagger, samples: Sequence[Sample], phrase: Phrase, progress: bool = True) -> Tensor:
    """Returns logits of the mixed words of all identities, sorted by pid, float32 [identities, mixed words, most words].

    Uses the photos that train identities (`teaching`). Logits past a word's choices are 0. A tagger of another phrase raises
    `InputError`.
    """
    from dive_fast.progress import ProgressBar

    if tagger.phrase.plain != phrase.plain:
        raise InputError("the tagger of --words-from has another phrase than this training; give its own --phrase")
    by_identity: dict[str, list[Sample]] = {}
    for sample, teaches in zip(samples, teaching(samples), strict=True):
        if teaches:
            by_identity.setdefault(sample.pid, []).append(sample)
    words = [len(choice) for choice in mixed_words(phrase)]
    out = torch.zeros(len(by_identity), len(words), max(words, default=0))
    height, width = tagger.size
    for row, pid in enumerate(ProgressBar(sorted(by_identity), desc="tag", unit="identity", disable=not progress)):
        photos = [photo_pixels(sample.path, height, width) for sample in by_identity[pid]]
        for k, logits in enumerate(tagger.logits(photos)):
            out[row, k, : len(logits)] = logits
    return out


def tagger_loss(net: TaggerNet, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the summed cross entropy of photos uint8 [N, H, W, 3] with labels int64 [N, mixed words], and the accuracy."""
    predicted = net(images)
    loss = torch.stack([torch.nn.functional.nll_loss(logp, labels[:, k]) for k, logp in enumerate(predicted)]).sum()
    right = torch.stack([logp.argmax(dim=1) for logp in predicted], dim=1) == labels
    return loss, {"right": right.float().mean()}
