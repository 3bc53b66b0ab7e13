"""`dive-fast world train-tagger`: a classifier that predicts the words of the pocket's phrase from RGB photos.

It trains on identities of the base's distribution, which are in no world, and on the words of their captions.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dive_fast.io import write_json
from dive_fast.models.phrase import Phrase
from dive_fast.outputs import check_same, holds, output_folder
from dive_fast.train.loop import Loss
from dive_fast.train.tagger import Tagger, TaggerNet, mixed_words, save_tagger, tagger_loss
from dive_fast.world.base.config import TaggerConfig
from dive_fast.world.base.data import base_identities, cached_images, render_base_images
from dive_fast.world.base.fit import RECORD, fit
from dive_fast.world.captions import caption_phrase, phrase_words

_SEED, _TEST_SEED = 4, 5  # of the rendered identities; those of the base's own phases are 1 to 3
_TEST_IMAGES = 500


def train_tagger(config: TaggerConfig, out: Path, work: Path, overwrite: bool = False) -> dict[str, float]:
    """Trains in `work`, from which a rerun resumes, and writes the folder `out`.

    Another tagger at `out` raises `InputError` without `overwrite`, other content always.

    Returns the accuracy on unseen identities, the mean over all words; `out/training.json` has it for each word.
    """
    import torch

    is_ours = holds("tagger.json")
    check_same(out, is_ours, RECORD, asdict(config), overwrite)
    torch.manual_seed(config.seed)
    phrase = Phrase(caption_phrase())
    choices = mixed_words(phrase)
    photos = cached_images(
        work / "tagger-images.npz", _SEED, config.images, monochrome_fraction=0.0, noise_fraction=1.0
    )
    labels = torch.from_numpy(_labels(choices, _SEED, config.images))
    net = TaggerNet([len(words) for words in choices])
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    counts = [torch.bincount(labels[:, k], minlength=len(words)) for k, words in enumerate(choices)]
    net.prior.copy_(torch.cat([((count + 1) / (count + 1).sum()).log() for count in counts]))

    def loss_on(rows: np.ndarray, mine: slice, generator: torch.Generator) -> Loss:
        return tagger_loss(net, torch.from_numpy(photos.images[rows[mine]]), labels[rows[mine]])

    options: dict[str, Any] = {"weight_decay": 0.02, "average": 0.995, "identity": repr(config)}
    fit("tagger", [net], config.images, loss_on, config, work, **options)
    tagger = Tagger(phrase, net, photos.images.shape[1:3])
    right = _accuracy(tagger, choices)
    with output_folder(out, is_ours, overwrite) as fresh:
        save_tagger(tagger, fresh)
        write_json(fresh / RECORD, {"config": asdict(config), "right": right})
    return {"right": round(float(np.mean(list(right.values()))), 4)}


def _labels(choices: list[list[str]], seed: int, count: int) -> np.ndarray:
    """The index of the true choice, int64 [N, mixed words], of each identity in the rendered images."""
    identities = base_identities(seed, count)
    return np.array(
        [[words.index(word) for words, word in zip(choices, phrase_words(i), strict=True)] for i in identities]
    )


def _accuracy(tagger: Tagger, choices: list[list[str]]) -> dict[str, float]:
    """The accuracy on single photos of unseen identities, by number and first choice of the word."""
    import torch

    unseen = render_base_images(_TEST_SEED, _TEST_IMAGES, monochrome_fraction=0.0, noise_fraction=1.0)
    truth = _labels(choices, _TEST_SEED, _TEST_IMAGES)
    with torch.inference_mode():
        predicted = [logp.argmax(dim=1).numpy() for logp in tagger.net(torch.from_numpy(unseen.images))]
    return {f"{k} {words[0]}": round(float((predicted[k] == truth[:, k]).mean()), 3) for k, words in enumerate(choices)}
