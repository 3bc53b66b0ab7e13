"""Second stage of the pocket base: a text encoder that binds adjectives to nouns before any image is seen.

Stable Diffusion's text encoder comes from CLIP, trained on captions beforehand; a UNet that had to teach words to a
random one through its own noise would spend most of its steps on that (docs/log.md). Ours learns to tell, from the
positions after the caption's end, which word belongs to which noun.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.train.loop import Stage, batch_indices, run_stage
from dive_fast.train.parallel import my_rows
from dive_fast.types import InputError
from dive_fast.world.base_model import BaseShape, new_text_encoder

if TYPE_CHECKING:
    import torch
    from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class TextConfig:
    """Training of the text encoder on captions alone."""

    steps: int = 4000
    batch: int = 256
    lr: float = 1.5e-3
    warmup: int = 200
    tail: int = 8  # positions after the end that must know the caption
    seed: int = 0
    save_every: int = 250


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> torch.Tensor:
    """int64 [N, tokens], padded as Stable Diffusion pads."""
    return tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids


def bindings(caption: str) -> set[str]:
    """What a caption says, as words bound to the noun that ends their phrase: "red shirt" gives "0 red shirt".

    The number counts earlier words of the same phrase that are not glue, so "red over blue" differs from "blue over red".
    """
    found = set()
    for phrase in caption.split(" , "):
        words = [word for word in phrase.split() if word not in ("a", "photo", "of", "and", "with", "over")]
        found |= {f"{i} {word} {words[-1]}" for i, word in enumerate(words)}
        found |= {f"{mark} {words[-1]}" for mark in ("over", "with") if mark in phrase.split()}
    return found


def letters(caption: str) -> set[str]:
    """The letters of a caption's camera code by position; a code is a word of four after the leading "a".

    Codes mean nothing here; but an encoder that passes their letters on, as CLIP does with any odd word, lets a LoRA
    give them a meaning later.
    """
    words = caption.split()
    code = words[1] if len(words) > 2 and words[0] == "a" and words[2] == "photo" else ""
    return {f"letter {i} {letter}" for i, letter in enumerate(code)}


def binding_labels(captions: Sequence[str], least: int = 20) -> tuple[list[str], torch.Tensor]:
    """Bindings and code letters that occur at least `least` times, sorted, and which caption says which: bool [N, B]."""
    import torch

    each = [bindings(caption) | letters(caption) for caption in captions]
    counts: dict[str, int] = {}
    for said in each:
        for name in said:
            counts[name] = counts.get(name, 0) + 1
    names = sorted(name for name, count in counts.items() if count >= least)
    column = {name: i for i, name in enumerate(names)}
    labels = torch.zeros(len(captions), len(names), dtype=torch.bool)
    for row, said in enumerate(each):
        labels[row, [column[name] for name in said if name in column]] = True
    return names, labels


def train_text_encoder(
    captions: Sequence[str],
    tokenizer: CLIPTokenizer,
    shape: BaseShape,
    config: TextConfig,
    work: Path,
    device: str = "cpu",
) -> CLIPTextModel:
    """Trains on captions and resumes from `work`; logs the recall of what the captions say."""
    import torch

    torch.manual_seed(config.seed)
    names, labels = binding_labels(captions)
    if not names:
        raise InputError(f"{len(captions)} captions are too few to train a text encoder on; render more images")
    model = new_text_encoder(shape, tokenizer).train().to(device)
    readout = torch.nn.Linear(shape.text_width, len(names)).to(device)
    ids = token_ids(tokenizer, captions)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        mine = my_rows(config.batch)
        rows = torch.from_numpy(batch_indices(len(ids), config.batch, step, config.seed))[mine]
        hidden = model(ids[rows].to(device)).last_hidden_state  # [B, L, D]
        end = (ids[rows] == tokenizer.eos_token_id).int().argmax(dim=1)
        offset = torch.randint(0, config.tail, (config.batch,), generator=torch.Generator().manual_seed(step))[mine]
        at = (end + offset).clamp(max=shape.tokens - 1)
        logits = readout(hidden[torch.arange(len(rows), device=device), at.to(device)])
        truth = labels[rows].float().to(device)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth) * 20
        return loss, {"recall": ((logits > 0) * truth).sum() / truth.sum()}

    stage = Stage(
        "text", work, config.steps, config.lr, config.warmup, config.save_every, betas=(0.9, 0.98), average=0.99
    )
    run_stage(stage, [{"params": [*model.parameters(), *readout.parameters()], "weight_decay": 0.01}], loss_at)
    return model.cpu().eval().requires_grad_(False)
