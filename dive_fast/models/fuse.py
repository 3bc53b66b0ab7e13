"""People and cameras written into the model itself: new vocabulary rows, LoRA added to the weights. No PEFT is left."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dive_fast.models.adapter import Adapter, check_rows
from dive_fast.models.bundle import ModelBundle
from dive_fast.models.lora import check_lora_state, has_lora, lora_pairs
from dive_fast.models.prompts import PromptTable, check_vocabulary
from dive_fast.types import DiveError, Identity, InputError

if TYPE_CHECKING:
    import torch


def add_identity_tokens(bundle: ModelBundle, identities: Sequence[Identity], rows: torch.Tensor) -> list[int]:
    """Gives each word of the identities its own vocabulary row, in place, and returns the token ids.

    `rows` is float [T, D] by word, D the text encoder's width; the old rows stay bit for bit, gradients stay off. A word
    that the tokenizer already knows, or rows of another shape, raises `InputError` before anything is changed.
    """
    check_new_tokens(bundle, identities, rows)
    bundle.fingerprint  # noqa: B018  # taken before the change: it names the model as loaded
    return _insert_tokens(bundle.tokenizer, bundle.text_encoder, identities, rows)


def _insert_tokens(tokenizer: Any, text_encoder: Any, identities: Sequence[Identity], rows: torch.Tensor) -> list[int]:
    import torch
    from tokenizers import AddedToken

    # not normalized: matched in the raw text as one whole token, before lower-casing and splitting
    words = [word for identity in identities for word in identity.words]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    table = text_encoder.get_input_embeddings().weight
    grown = torch.cat([table.detach(), rows.detach().to(table.device, table.dtype)])
    embedding = torch.nn.Embedding.from_pretrained(grown, freeze=True)
    text_encoder.set_input_embeddings(embedding)
    text_encoder.config.vocab_size = grown.shape[0]
    return [tokenizer.convert_tokens_to_ids(word) for word in words]


def check_new_tokens(bundle: ModelBundle, identities: Sequence[Identity], rows: torch.Tensor) -> None:
    """Raises `InputError` unless the words of `identities`, with `rows` [T, D], can join the bundle's vocabulary."""
    tokenizer, table = bundle.tokenizer, bundle.text_encoder.get_input_embeddings().weight
    check_vocabulary(identities, [], [], "identity tokens")
    check_rows(identities, rows, "identity tokens")
    if rows.shape[1] != table.shape[1]:
        raise InputError(
            f"identity tokens are {rows.shape[1]} wide, this text encoder's {table.shape[1]};"
            " use the base model they were trained on"
        )
    vocabulary = tokenizer.get_vocab()
    words = [word for identity in identities for word in identity.words]
    known = [word for word in words if word in vocabulary]
    if known:
        raise InputError(
            f"the tokenizer already knows {len(known)} of {len(words)} placeholders, first {known[0]!r};"
            " start from a base model without them or choose other placeholders"
        )
    if len(tokenizer) != table.shape[0]:
        # the next ids the tokenizer gives out would not be the next rows of the table
        raise InputError(
            f"the tokenizer knows {len(tokenizer)} tokens but the text encoder has {table.shape[0]} rows;"
            " use a model folder whose tokenizer and text encoder belong together"
        )


def fuse(bundle: ModelBundle, adapter: Adapter, scale: float = 1.0) -> ModelBundle:
    """A new bundle that knows the adapter's people and cameras; the given one is untouched.

    LoRA is added as scale * alpha / rank * B A, in float64, then rounded once to the weight's dtype. An adapter trained
    on another base, or one that does not fit, raises `InputError`; a UNet that carries LoRA layers `DiveError`.
    """
    if not math.isfinite(scale):
        raise InputError(f"fuse: scale must be a finite number, got {scale!r}; 1.0 is as trained")
    if has_lora(bundle.unet):
        raise DiveError("fuse: the UNet already carries LoRA layers; remove_lora first")
    if adapter.base_fingerprint != bundle.fingerprint:
        raise InputError(
            f"the adapter was trained on base {adapter.base_fingerprint[:12]}…, this base is"
            f" {bundle.fingerprint[:12]}…; give the base model it was trained on"
        )
    check_lora_state(bundle.unet, adapter.lora, adapter.rank)
    check_new_tokens(bundle, adapter.identities, adapter.embeddings)
    prompts = PromptTable(
        adapter.identities, adapter.cameras, adapter.template, adapter.base_fingerprint, adapter.fingerprint
    )
    fused = replace(copy.deepcopy(bundle), prompts=prompts)  # replace: the copy's cached fingerprint is not kept
    _insert_tokens(fused.tokenizer, fused.text_encoder, adapter.identities, adapter.embeddings)
    _add_to_weights(fused.unet, adapter, scale)
    return fused


def _add_to_weights(unet: Any, adapter: Adapter, scale: float) -> None:
    import torch

    factor = scale * adapter.alpha / adapter.rank  # as PEFT scales it
    with torch.no_grad():
        for name, (a, b) in lora_pairs(adapter.lora).items():
            weight = unet.get_submodule(name).weight
            product = b.to(weight.device).double() @ a.to(weight.device).double()
            weight.copy_(weight.double() + factor * product)
