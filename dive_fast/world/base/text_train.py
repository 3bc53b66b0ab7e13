"""Second phase of the pocket base: a text encoder that binds adjectives to nouns, trained on captions alone.

At the noun that ends a phrase it predicts the phrase's words, and not those of the whole caption: a UNet that reads a coat's
dye at the coat learns that dye's infrared from few identities; from a summary it learns those identities (docs/log.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.train.loop import Loss
from dive_fast.types import InputError
from dive_fast.world.base.config import BaseShape, FitConfig
from dive_fast.world.base.fit import fit
from dive_fast.world.base.model import new_text_encoder
from dive_fast.world.captions import MONOCHROME, TONES

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import CLIPTextModel, CLIPTokenizer


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> torch.Tensor:
    """Returns ids int64 [N, tokens], padded as for Stable Diffusion."""
    return tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids


def bindings(caption: str) -> list[tuple[int, set[str]]]:
    """Returns, for each phrase of a caption, the position of its noun among the words, and the phrase's attributes.

    "red over blue coat" has red, over, blue, coat and "first red"; in "coat with blue logo", coat and logo have their own.
    A tone counts for the colour that it precedes, the first or second of its phrase. The first noun also has the letters of
    the camera's code, an odd word after the leading "a": an encoder that keeps them, as CLIP keeps any odd word, lets a
    LoRA give the code a meaning.
    """
    words = caption.split()
    code = words[1] if len(words) > 1 and words[0] == "a" and words[1] not in ("photo", MONOCHROME) else ""
    found: list[tuple[int, set[str]]] = []
    start = 0
    for i, word in enumerate([*words, ","]):
        if word not in (",", "with"):
            continue
        named = [w for w in words[start:i] if w not in ("a", MONOCHROME, "photo", "of", "and", code, *TONES)]
        if named:
            attributes = {*named, f"first {named[0]}", *(w for w in words[start:i] if w == MONOCHROME)}
            attributes |= {f"tone {k} {tone}" for k, tone in enumerate(w for w in words[start:i] if w in TONES)}
            if start == 0:
                attributes |= {f"letter {k} {letter}" for k, letter in enumerate(code)}
            found.append((i - 1, attributes))
        start = i + 1
    return found


def binding_labels(
    captions: Sequence[str], tokenizer: CLIPTokenizer, least: int = 20
) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Returns the attributes that occur at least `least` times, sorted; the token positions int64 [N, P] of each caption's
    nouns, 0 past its last; and the attributes of each noun, bool [N, P, F].
    """
    import torch

    @cache
    def length(word: str) -> int:
        return len(tokenizer(word, add_special_tokens=False)["input_ids"])

    each = [bindings(caption) for caption in captions]
    counts = Counter(attribute for nouns in each for _, attributes in nouns for attribute in attributes)
    names = sorted(name for name, count in counts.items() if count >= least)
    column = {name: i for i, name in enumerate(names)}
    most = max(len(nouns) for nouns in each)
    positions = torch.zeros(len(captions), most, dtype=torch.int64)
    labels = torch.zeros(len(captions), most, len(names), dtype=torch.bool)
    for row, (caption, nouns) in enumerate(zip(captions, each, strict=True)):
        ends = list(accumulate(map(length, caption.split())))  # each word's last token, after the start token
        for k, (i, attributes) in enumerate(nouns):
            positions[row, k] = ends[i]
            labels[row, k, [column[a] for a in attributes if a in column]] = True
    return names, positions, labels


def copy_words(old_tokenizer: CLIPTokenizer, old: CLIPTextModel, new: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
    """Copies an encoder's weights to one of another vocabulary, whose new words keep their initial embeddings."""
    import torch

    rows, before = new.get_input_embeddings().weight.detach().clone(), old.get_input_embeddings().weight.detach()
    known = old_tokenizer.get_vocab()
    for token, i in tokenizer.get_vocab().items():
        if token in known:
            rows[i] = before[known[token]]
    old.set_input_embeddings(torch.nn.Embedding.from_pretrained(rows))
    new.load_state_dict(old.state_dict())


def train_text_encoder(
    captions: Sequence[str],
    tokenizer: CLIPTokenizer,
    shape: BaseShape,
    config: FitConfig,
    work: Path,
    device: str = "cpu",
    start: tuple[CLIPTokenizer, CLIPTextModel] | None = None,
) -> CLIPTextModel:
    """Trains on captions, from `start`, an encoder and its own tokenizer, if given; logs the recall of the attributes."""
    import torch

    torch.manual_seed(config.seed)
    names, positions, labels = binding_labels(captions, tokenizer)
    if not names:
        raise InputError(f"{len(captions)} captions are too few to train a text encoder; render more images")
    model = new_text_encoder(shape, tokenizer)
    if start is not None:
        copy_words(*start, model, tokenizer)
    readout = torch.nn.Linear(shape.text_width, len(names))
    ids = token_ids(tokenizer, captions)

    def loss_on(rows: np.ndarray, mine: slice, generator: torch.Generator) -> Loss:
        batch = torch.from_numpy(rows)[mine]
        caption, noun = positions[batch].nonzero(as_tuple=True)
        at = positions[batch][caption, noun]
        # [B, L, D]; attention is causal, so tokens after the last noun change nothing
        hidden = model(ids[batch, : int(at.max()) + 1].to(device)).last_hidden_state
        logits = readout(hidden[caption.to(device), at.to(device)])
        truth = labels[batch][caption, noun].float().to(device)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth) * 20
        return loss, {"recall": ((logits > 0) * truth).sum() / truth.sum()}

    options: dict[str, Any] = {"weight_decay": 0.01, "betas": (0.9, 0.98), "average": 0.99}
    fit("text", [model, readout], len(ids), loss_on, config, work, device, **options)
    return model
