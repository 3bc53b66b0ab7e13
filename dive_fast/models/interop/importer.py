"""Files of other tools made into one of our adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.io import read_json, sha256_file
from dive_fast.models.adapter import Adapter, merge_identities
from dive_fast.models.bundle import ModelBundle
from dive_fast.models.fuse import check_new_tokens
from dive_fast.models.interop.dive import cameras_of
from dive_fast.models.interop.inversion import read_embeddings
from dive_fast.models.interop.lora_fold import FoldedLora, fold
from dive_fast.models.interop.lora_scale import Scaling
from dive_fast.models.interop.people import People
from dive_fast.models.interop.sources import Sources, find_sources
from dive_fast.models.interop.states import State
from dive_fast.models.lora import lora_targets
from dive_fast.models.phrase import ONE_WORD
from dive_fast.models.prompts import DEFAULT_TEMPLATE
from dive_fast.types import Camera, Identity, InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Imported:
    """An adapter made of other tools' files, and what of them it holds.

    The LoRA changes `landed` of the UNet's `linears`; `dropped` are layers of the file left out on request; `files` are
    those read.
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
    onto: Adapter | None = None,
) -> Imported:
    """The adapter for `bundle` that the LoRA and the embeddings in `paths` (files, or folders with them) amount to.

    `cameras` win over those that a `dataset_info.json` names. With `onto`, an adapter of this base, only embeddings are
    taken: they join its people, and everything else of it stays. What does not fit, lacks a part or cannot be read
    raises `InputError`; `drop_unsupported` leaves out layers of a LoRA that no adapter changes.
    """
    sources = find_sources(paths)
    if onto is not None:
        return _joined(bundle, sources, onto, bool(cameras or template is not None))
    people = People.read(sources.people, bundle.fingerprint) if sources.people is not None else None
    known = {camera.name: camera for camera in (*(people.cameras if people else ()), *cameras)}
    identities, rows = _people(bundle, sources, people)
    if sources.lora is None:
        raise InputError(
            f"no LoRA in {_listed(sources)}; give one, or the adapter that these people are to join (--init-from)"
        )
    named = cameras_of(sources.cameras, tuple(known.values()))
    folded = _lora(bundle, sources.lora, sources.peft, drop_unsupported)
    adapter = Adapter(
        base_fingerprint=bundle.fingerprint,
        identities=identities,
        cameras=named,
        embeddings=rows,
        lora=folded.lora,
        rank=folded.rank,
        alpha=folded.alpha,
        template=template if template is not None else people.template if people else DEFAULT_TEMPLATE,
        phrase=people.phrase if people else ONE_WORD,
        facts={"imported": {**_origin(sources), "dropped": list(folded.dropped)}},
    )
    return Imported(adapter, folded.landed, len(folded.lora) // 2, folded.dropped, tuple(sources.files))


def _people(bundle: ModelBundle, sources: Sources, people: People | None) -> tuple[tuple[Identity, ...], torch.Tensor]:
    """Who is in the embedding files, and their rows [T, D] by word."""
    import torch

    if not sources.embeddings:
        raise InputError(f"no embeddings in {_listed(sources)}, so there is no person; give those of at least one too")
    width = bundle.text_encoder.get_input_embeddings().weight.shape[1]
    learned = [one for state in sources.embeddings for one in read_embeddings(state, width)]
    if people is not None and sources.people is not None:
        identities, learned = people.identities, people.words_of(learned, sources.people)
    else:
        identities = tuple(one.identity() for one in learned)
    rows = torch.cat([one.rows for one in learned])
    check_new_tokens(bundle, identities, rows)
    return identities, rows


def _lora(bundle: ModelBundle, state: State, peft: Path | None, drop_unsupported: bool) -> FoldedLora:
    linears = {name: bundle.unet.get_submodule(name) for name in lora_targets(bundle.unet)}
    features = {name: (linear.in_features, linear.out_features) for name, linear in linears.items()}
    if not features:
        raise InputError("the base model's UNet has no attention that could carry a LoRA; give another base model")
    scaling = Scaling.parse(read_json(peft, "LoRA"), str(peft)) if peft is not None else None
    return fold(state, features, scaling, drop_unsupported)


def _joined(bundle: ModelBundle, sources: Sources, onto: Adapter, described: bool) -> Imported:
    if sources.lora is not None:
        raise InputError(f"{sources.lora.path} is a LoRA, and the adapter to join has its own; leave one of them out")
    if described or sources.cameras or sources.people:
        raise InputError("cameras and template are those of the adapter to join; leave the other ones out")
    if onto.base_fingerprint != bundle.fingerprint:
        raise InputError(
            f"the adapter to join was trained on base {onto.base_fingerprint[:12]}…, this base is"
            f" {bundle.fingerprint[:12]}…; give the base model it was trained on"
        )
    merged = merge_identities(onto, *_people(bundle, sources, None))
    joined = [*onto.facts.get("joined", []), _origin(sources)]
    linears = len(onto.lora) // 2
    return Imported(replace(merged, facts={**onto.facts, "joined": joined}), linears, linears, (), tuple(sources.files))


def _listed(sources: Sources) -> str:
    return ", ".join(str(path) for path in sources.files)


def _origin(sources: Sources) -> dict[str, Any]:
    """Names and hashes of the files that were read, for the adapter's facts."""
    return {"files": [{"name": path.name, "sha256": sha256_file(path)} for path in sources.files]}
