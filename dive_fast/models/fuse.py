"""Fuses an adapter into its base model: new vocabulary rows, and the LoRA added to the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.models.adapter import Adapter, check_rows, load_adapter
from dive_fast.models.bundle import ModelBundle, load_bundle
from dive_fast.models.files import add_words
from dive_fast.models.lora import check_lora_state, fold_lora, has_lora
from dive_fast.models.prompts import PromptEncoder, PromptTable, check_vocabulary
from dive_fast.models.student import attention_sums
from dive_fast.types import DiveError, Identity, InputError, shown

if TYPE_CHECKING:
    import torch

_EQUAL = 1e-9  # relative, of a sum of squares: a last bit that another machine rounds otherwise changes it by far less


def add_identity_tokens(bundle: ModelBundle, identities: Sequence[Identity], rows: torch.Tensor) -> list[int]:
    """Gives each word of the identities its own vocabulary row, in place, and returns the token ids.

    `rows` is float [T, D] by word, D the text encoder's width; the old rows stay bit for bit, gradients stay off. A word
    that the tokenizer already knows, or rows of another shape, raises `InputError` before anything changes.
    """
    check_new_tokens(bundle, identities, rows)
    bundle.fingerprint  # noqa: B018  # computed before the change, since it names the model as loaded
    return _insert_tokens(bundle, identities, rows)


def _insert_tokens(bundle: ModelBundle, identities: Sequence[Identity], rows: torch.Tensor) -> list[int]:
    import torch

    words = [word for identity in identities for word in identity.words]
    add_words(bundle.tokenizer, words)
    table = bundle.text_encoder.get_input_embeddings().weight
    grown = torch.cat([table.detach(), rows.detach().to(table.device, table.dtype)])
    bundle.text_encoder.set_input_embeddings(torch.nn.Embedding.from_pretrained(grown, freeze=True))
    bundle.text_encoder.config.vocab_size = grown.shape[0]
    return [bundle.tokenizer.convert_tokens_to_ids(word) for word in words]


def check_base(trained_on: str, bundle: ModelBundle, what: str) -> None:
    """Raises `InputError` unless `trained_on` is the fingerprint of `bundle`."""
    if trained_on != bundle.fingerprint:
        raise InputError(
            f"{what} belongs to base {trained_on[:12]}…, this base is {bundle.fingerprint[:12]}…;"
            " give the base model it was trained on"
        )


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
            f"the tokenizer already knows {len(known)} of {len(words)} placeholders, first {shown(known[0])};"
            " start from a base model without them or choose other placeholders"
        )
    if len(tokenizer) != table.shape[0]:  # a new token's id would not be that of its row
        raise InputError(
            f"the tokenizer knows {len(tokenizer)} tokens but the text encoder has {table.shape[0]} rows;"
            " use a model folder whose tokenizer and text encoder belong together"
        )


def check_prompts(bundle: ModelBundle, adapter: Adapter) -> PromptTable:
    """Returns the adapter's prompts; raises `InputError` for one that the bundle's text encoder cannot read."""
    prompts = PromptTable(
        adapter.identities, adapter.cameras, adapter.template, adapter.base_fingerprint, adapter.fingerprint
    )
    tokenizer = copy.deepcopy(bundle.tokenizer)
    add_words(tokenizer, [word for identity in prompts.phrases for word in identity.words])
    PromptEncoder(tokenizer, prompts).check()
    return prompts


def fuse(bundle: ModelBundle | Path | str, adapter: Adapter | Path | str, scale: float = 1.0) -> ModelBundle:
    """Returns a new bundle with the adapter's identities and cameras, without PEFT; `bundle` is untouched.

    Both may be given by the folder or name that `load_bundle` and `load_adapter` take. Adds scale * alpha / rank * B A to
    each weight, in float64, and rounds once to the weight's dtype. An adapter of another base, or one that does not fit,
    raises `InputError`; a UNet that carries LoRA layers `DiveError`.
    """
    if not math.isfinite(scale):
        raise InputError(f"fuse: scale must be a finite number, got {shown(scale)}; 1.0 is as trained")
    bundle, adapter = load_bundle(bundle), load_adapter(adapter)
    if has_lora(bundle.unet):
        raise DiveError("fuse: the UNet already carries LoRA layers; remove_lora first")
    check_base(adapter.base_fingerprint, bundle, "the adapter")
    check_lora_state(bundle.unet, adapter.lora, adapter.rank)
    check_new_tokens(bundle, adapter.identities, adapter.embeddings)
    fused = replace(
        copy.deepcopy(bundle), prompts=check_prompts(bundle, adapter)
    )  # `replace` drops the copy's cached fingerprint
    _insert_tokens(fused, adapter.identities, adapter.embeddings)
    fold_lora(fused.unet, adapter.lora, scale * adapter.alpha / adapter.rank)  # as PEFT scales it
    return fused


def taught_by(fused: ModelBundle, student: ModelBundle) -> ModelBundle:
    """Returns a student of `fused`, which has the base and the LoRA of the teacher of `student` and perhaps more people.

    Only the UNet was distilled, and people are in the text encoder: so that of `student` serves. Another base or LoRA, or
    a model that is no student, raises `InputError`.
    """
    record = student.student
    if record is None or student.prompts is None or fused.prompts is None:
        raise InputError("--student must name a student, from dive-fast distil; this model has no student.json")
    found = attention_sums(fused.unet)
    alike = len(found) == len(record.attention) and all(
        math.isclose(ours, theirs, rel_tol=_EQUAL) for ours, theirs in zip(found, record.attention, strict=True)
    )
    if not alike or fused.prompts.base_fingerprint != student.prompts.base_fingerprint:
        raise InputError(
            "--student was distilled from a model with another base, LoRA or --scale than this adapter's; distil this"
            " adapter's fused model"
        )
    return replace(
        fused,
        unet=student.unet,
        scheduler_config=student.scheduler_config,
        sampling=student.sampling,
        student=replace(record, teacher=fused.fingerprint),
    )
