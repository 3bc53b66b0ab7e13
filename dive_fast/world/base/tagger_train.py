"""`dive-fast world train-tagger`: a classifier that reads the words of the pocket's phrase off RGB photos.

It learns from people of the kind that the base learned from, who are in no world, and from the words of their captions. So
it knows no more than the base was told.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dive_fast.io import write_json
from dive_fast.models.phrase import Phrase
from dive_fast.train.loop import Stage, batch_indices, run_stage
from dive_fast.train.tagger import Tagger, TaggerNet, mixed_words, save_tagger, tagger_loss
from dive_fast.world.base.data import base_people, cached_images
from dive_fast.world.persons import caption_phrase, phrase_words

_SEED, _JUDGE_SEED = 4, 5  # of the rendered people; those of the base's own stages are 1 to 3
_JUDGED = 500


@dataclass(frozen=True)
class TaggerConfig:
    """Training of the tagger."""

    images: int = 48000
    steps: int = 2600
    batch: int = 64
    lr: float = 3e-3
    warmup: int = 100
    seed: int = 0
    save_every: int = 100


def train_tagger(config: TaggerConfig, out: Path, work: Path) -> dict[str, float]:
    """Trains in `work` (a rerun resumes), writes the folder `out`; the share of right words on unseen people by place.

    Returns the mean over all words of the phrase. `out/training.json` has them one by one, by their first choice.
    """
    import torch

    torch.manual_seed(config.seed)
    phrase = Phrase(caption_phrase())
    choices = mixed_words(phrase)
    photos = cached_images(work / "tagger-images.npz", _SEED, config.images, grey_share=0.0, noise_share=1.0)
    labels = torch.from_numpy(_labels(choices, _SEED, config.images))
    net = TaggerNet([len(words) for words in choices]).train()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    counts = [torch.bincount(labels[:, k], minlength=len(words)) for k, words in enumerate(choices)]
    net.prior.copy_(torch.cat([((count + 1) / (count + 1).sum()).log() for count in counts]))

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        rows = batch_indices(config.images, config.batch, step, config.seed)
        return tagger_loss(net, torch.from_numpy(photos.images[rows]), labels[rows])

    stage = Stage(
        "tagger", work, config.steps, config.lr, config.warmup, config.save_every, average=0.995, identity=repr(config)
    )
    run_stage(stage, [{"params": list(net.parameters()), "weight_decay": 0.02}], loss_at)
    tagger = Tagger(phrase, net.eval().requires_grad_(False), photos.images.shape[1:3])
    right = _judge(tagger, choices)
    save_tagger(tagger, out)
    write_json(out / "training.json", {"config": asdict(config), "right": right})
    return {"right": round(float(np.mean(list(right.values()))), 4)}


def _labels(choices: list[list[str]], seed: int, count: int) -> np.ndarray:
    """Which choice is true, int64 [N, mixed words], of everybody in the rendered images."""
    people = base_people(seed, count)
    return np.array(
        [[words.index(word) for words, word in zip(choices, phrase_words(person), strict=True)] for person in people]
    )


def _judge(tagger: Tagger, choices: list[list[str]]) -> dict[str, float]:
    """Share of right words on single photos of people who were not trained on, by number and first choice of the word."""
    import torch

    from dive_fast.world.base.data import render_base_images

    unseen = render_base_images(_JUDGE_SEED, _JUDGED, grey_share=0.0, noise_share=1.0)
    truth = _labels(choices, _JUDGE_SEED, _JUDGED)
    with torch.inference_mode():
        said = [logp.argmax(dim=1).numpy() for logp in tagger.net(torch.from_numpy(unseen.images))]
    return {f"{k} {words[0]}": round(float((said[k] == truth[:, k]).mean()), 3) for k, words in enumerate(choices)}
