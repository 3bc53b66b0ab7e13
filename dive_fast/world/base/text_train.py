"""Second stage of the pocket base: a text encoder that binds adjectives to nouns before any image is seen.

Stable Diffusion's text encoder comes from CLIP, trained on captions beforehand; a UNet that had to teach words to a
random one through its own noise would spend most of its steps on that. Ours learns to tell, at the noun that ends a phrase,
what the phrase says of it. There, and not in one summary of the whole caption: a UNet that reads a coat's dye at the coat
can be taught by few people what that dye is in infrared; from a summary it learns the few people (docs/log.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.train.loop import Stage, batch_indices, run_stage
from dive_fast.train.parallel import my_rows
from dive_fast.types import InputError
from dive_fast.world.base.model import BaseShape, new_text_encoder

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
    seed: int = 0
    save_every: int = 250


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> torch.Tensor:
    """int64 [N, tokens], padded as Stable Diffusion pads."""
    return tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids


def bindings(caption: str) -> list[tuple[int, set[str]]]:
    """For each phrase of a caption, the position of its noun among the words, and what is said of it.

    "red over blue coat" says red, over, blue and coat, and that red is first; in "coat with blue logo" coat and logo have
    each their own. A fact is the same whatever the noun. The head's noun also knows the letters of the camera's code, a word
    of four after the leading "a". Codes mean nothing here; but an encoder that passes their letters on, as CLIP does with
    any odd word, lets a LoRA give them a meaning later.
    """
    words = caption.split()
    code = words[1] if len(words) > 2 and words[0] == "a" and words[2] == "photo" else ""
    found: list[tuple[int, set[str]]] = []
    start = 0
    for i, word in enumerate([*words, ","]):
        if word not in (",", "with"):
            continue
        said = [w for w in words[start:i] if w not in ("a", "photo", "of", "and", code)]
        if said:
            facts = {*said, f"first {said[0]}"}
            if start == 0:
                facts |= {f"letter {k} {letter}" for k, letter in enumerate(code)}
            found.append((i - 1, facts))
        start = i + 1
    return found


def noun_positions(tokenizer: CLIPTokenizer, captions: Sequence[str], at: Sequence[Sequence[int]]) -> list[list[int]]:
    """Where the words numbered `at` of each caption end among its tokens, the start token counted."""

    @cache
    def length(word: str) -> int:
        return len(tokenizer(word, add_special_tokens=False)["input_ids"])

    ends = (list(accumulate(length(word) for word in caption.split())) for caption in captions)
    return [[end[i] for i in numbers] for end, numbers in zip(ends, at, strict=True)]


def binding_labels(
    captions: Sequence[str], tokenizer: CLIPTokenizer, least: int = 20
) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Facts that are said at least `least` times, sorted; token positions int64 [N, P] of each caption's nouns, 0 where it
    has fewer; and which noun has which fact: bool [N, P, F].
    """
    import torch

    each = [bindings(caption) for caption in captions]
    counts = Counter(fact for nouns in each for _, facts in nouns for fact in facts)
    names = sorted(name for name, count in counts.items() if count >= least)
    column = {name: i for i, name in enumerate(names)}
    most = max(len(nouns) for nouns in each)
    positions = torch.zeros(len(captions), most, dtype=torch.int64)
    labels = torch.zeros(len(captions), most, len(names), dtype=torch.bool)
    ends = noun_positions(tokenizer, captions, [[i for i, _ in nouns] for nouns in each])
    for row, nouns in enumerate(each):
        positions[row, : len(nouns)] = torch.tensor(ends[row])
        for k, (_, facts) in enumerate(nouns):
            labels[row, k, [column[fact] for fact in facts if fact in column]] = True
    return names, positions, labels


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
    names, positions, labels = binding_labels(captions, tokenizer)
    if not names:
        raise InputError(f"{len(captions)} captions are too few to train a text encoder on; render more images")
    model = new_text_encoder(shape, tokenizer).train().to(device)
    readout = torch.nn.Linear(shape.text_width, len(names)).to(device)
    ids = token_ids(tokenizer, captions)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        mine = my_rows(config.batch)
        rows = torch.from_numpy(batch_indices(len(ids), config.batch, step, config.seed))[mine]
        caption, noun = positions[rows].nonzero(as_tuple=True)
        at = positions[rows][caption, noun]
        # [B, L, D]; attention is causal, so what follows the last noun changes nothing
        hidden = model(ids[rows, : int(at.max()) + 1].to(device)).last_hidden_state
        logits = readout(hidden[caption.to(device), at.to(device)])
        truth = labels[rows][caption, noun].float().to(device)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth) * 20
        return loss, {"recall": ((logits > 0) * truth).sum() / truth.sum()}

    stage = Stage(
        "text", work, config.steps, config.lr, config.warmup, config.save_every, betas=(0.9, 0.98), average=0.99
    )
    run_stage(stage, [{"params": [*model.parameters(), *readout.parameters()], "weight_decay": 0.01}], loss_at)
    return model.cpu().eval().requires_grad_(False)
