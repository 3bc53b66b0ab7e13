"""Adapters made of other tools' files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dive_fast.io import sha256_file
from dive_fast.models.adapter import Adapter, merge_identities, read_description
from dive_fast.models.bundle import ModelBundle
from dive_fast.models.files import read_tensors
from dive_fast.models.fuse import check_base, check_new_tokens, check_prompts
from dive_fast.models.interop.cameras import find_cameras
from dive_fast.models.interop.embeddings import named, read_embeddings
from dive_fast.models.interop.lora import convert
from dive_fast.models.interop.sources import CAMERAS, IDENTITIES, PEFT_CONFIG, TONES, Sources, find_sources
from dive_fast.models.lora import lora_targets
from dive_fast.models.phrase import ONE_WORD
from dive_fast.models.prediction import check_trained_on
from dive_fast.models.prompts import DEFAULT_TEMPLATE
from dive_fast.models.tones import read_tones
from dive_fast.types import Camera, Identity, InputError, shown

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Imported:
    """An adapter made of other tools' `files`, and what it holds of them.

    The LoRA changes `landed` of the UNet's `linears`; `dropped` are layers of the file left out on request.
    """

    adapter: Adapter
    landed: int
    linears: int
    dropped: tuple[str, ...]
    files: tuple[Path, ...]


def import_adapter(
    bundle: ModelBundle,
    paths: Sequence[Path],
    cameras: Sequence[Camera] = (),
    template: str | None = None,
    drop_unsupported: bool = False,
    init_from: Adapter | None = None,
    persons: Mapping[Path, str] = MappingProxyType({}),
) -> Imported:
    """Makes an adapter for `bundle` of the LoRA and the embeddings in `paths`, files or folders with them.

    `cameras` override those of a `dataset_info.json`. With `init_from`, an adapter of this base, only embeddings are
    taken: they join its identities, everything else of it stays. `persons` names the identities of files, which are read
    too; others are called as `embeddings.named` says. Files that do not fit, lack a part or cannot be read
    raise `InputError`; `drop_unsupported` leaves out layers of a LoRA that no adapter changes.
    """
    persons = {path.absolute(): name for path, name in persons.items()}
    read = [path.absolute() for path in paths]
    sources = find_sources([*read, *(path for path in persons if path not in read and path.parent not in read)])
    if init_from is not None:
        return _joined(bundle, sources, init_from, bool(cameras or template is not None), persons)
    path = sources.descriptions.get(IDENTITIES)
    exported = read_description(path) if path is not None else {}
    if path is not None:
        check_base(exported["base_fingerprint"], bundle, str(path))
    identities, rows = _identities(bundle, sources, persons, exported.get("identities"))
    if sources.lora is None:
        raise InputError(
            f"no LoRA in {sources.describe()}; give one, or the adapter that the identities join (--init-from)"
        )
    check_trained_on(sources.lora.metadata, bundle.scheduler_config, sources.lora.path)
    linears = {name: bundle.unet.get_submodule(name) for name in lora_targets(bundle.unet)}
    features = {name: (linear.in_features, linear.out_features) for name, linear in linears.items()}
    converted = convert(sources.lora, features, sources.descriptions.get(PEFT_CONFIG), drop_unsupported)
    adapter = Adapter(
        base_fingerprint=bundle.fingerprint,
        identities=identities,
        cameras=find_cameras(sources.descriptions.get(CAMERAS), (*exported.get("cameras", ()), *cameras)),
        embeddings=rows,
        lora=converted.lora,
        rank=converted.rank,
        alpha=converted.alpha,
        template=template if template is not None else exported.get("template", DEFAULT_TEMPLATE),
        phrase=exported.get("phrase", ONE_WORD),
        tones=read_tones(read_tensors(sources.descriptions[TONES])) if TONES in sources.descriptions else None,
        metadata={"imported": {**_provenance(sources), "dropped": list(converted.dropped)}},
    )
    check_prompts(bundle, adapter)
    return Imported(adapter, converted.landed, len(linears), converted.dropped, tuple(sources.files))


def _identities(
    bundle: ModelBundle,
    sources: Sources,
    persons: Mapping[Path, str],
    exported: tuple[Identity, ...] | None,
    taken: Collection[str] = (),
) -> tuple[tuple[Identity, ...], torch.Tensor]:
    """Returns the identities of the embedding files and their rows [T, D] by word; `exported` names them if given."""
    import torch

    if not sources.embeddings:
        raise InputError(f"no embeddings in {sources.describe()}; add those of at least one identity")
    width = bundle.text_encoder.get_input_embeddings().weight.shape[1]
    learned = [one for state in sources.embeddings for one in read_embeddings(state, width)]
    if exported is None:
        learned = named(learned, persons, taken)
        identities = tuple(one.identity() for one in learned)
    else:
        if persons:
            raise InputError(f"{sources.descriptions[IDENTITIES]} names the identities; leave --person out")
        identities = exported
        by_token = {one.token: one for one in learned}
        words = [word for identity in exported for word in identity.words]
        odd = sorted(set(words) ^ set(by_token)) or [one.token for one in learned if len(one.rows) != 1]
        if odd:
            raise InputError(
                f"{sources.descriptions[IDENTITIES]} and the embeddings disagree on {len(odd)} words, first {shown(odd[0])};"
                " export the adapter again"
            )
        learned = [by_token[word] for word in words]
    rows = torch.cat([one.rows for one in learned])
    check_new_tokens(bundle, identities, rows)
    return identities, rows


def _joined(
    bundle: ModelBundle, sources: Sources, adapter: Adapter, described: bool, persons: Mapping[Path, str]
) -> Imported:
    if sources.lora is not None:
        raise InputError(f"{sources.lora.path} is a LoRA, and the adapter to join has its own; leave one of them out")
    if described or sources.descriptions:
        raise InputError("the adapter to join has its own cameras and template; leave the other ones out")
    check_base(adapter.base_fingerprint, bundle, "the adapter to join")
    taken = {identity.pid for identity in adapter.identities}
    merged = merge_identities(adapter, *_identities(bundle, sources, persons, None, taken))
    check_prompts(bundle, merged)
    joined = [*adapter.metadata.get("joined", []), _provenance(sources)]
    merged = replace(merged, metadata={**adapter.metadata, "joined": joined})
    linears = len(adapter.lora) // 2
    return Imported(merged, linears, linears, (), tuple(sources.files))


def _provenance(sources: Sources) -> dict[str, Any]:
    """Names and hashes of the files that were read, for the adapter's metadata."""
    return {"files": [{"name": path.name, "sha256": sha256_file(path)} for path in sources.files]}
