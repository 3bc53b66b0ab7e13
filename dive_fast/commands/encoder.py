"""`dive-fast train-encoder`, `encode` and `virtual`: people from photos in one pass, and people who do not exist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dive_fast.commands.common import (
    Base,
    Device,
    DryRun,
    Json,
    LastFile,
    Overwrite,
    PhotoSet,
    Plot,
    Tokenizer,
    Training,
    beside,
    finish,
    following,
    torch_device,
)
from dive_fast.data.sets import SET_HELP, read_photos
from dive_fast.encoder.config import FREE_WORDS, EncoderConfig, VirtualConfig
from dive_fast.options import Changes
from dive_fast.progress import log
from dive_fast.settings import Part
from dive_fast.train.config import PersonalizeConfig
from dive_fast.train.recipes import with_rates_of
from dive_fast.types import InputError
from dive_fast.words import count

if TYPE_CHECKING:
    from dive_fast.encoder.encode import Encoded

EncoderFolder = Annotated[str, "Encoder folder, from dive-fast train-encoder; pocket is the shipped one."]
Onto = Annotated[
    str | None,
    "Adapter that gets the people, whose LoRA and people stay as they are; by default the encoder's own,"
    " or the shipped one for the shipped encoder.",
]
_ONE_PASS: Any = PersonalizeConfig(steps=0)  # what the help shows; rates are the adapter's
Clip = Annotated[Path | None, "Folder of the CLIP whose features the encoder reads, if it has moved."]


def train_encoder(
    out: Annotated[Path, "Encoder folder to write; it holds an adapter too if a LoRA is learned."],
    config: EncoderConfig,
    photos: Annotated[Sequence[PhotoSet], f"Photos of many people, two RGB photos of each at least: {SET_HELP}"],
    features: Annotated[
        Path | None,
        "What reads the photos, frozen: a checkpoint folder of dive-fast reid train, a tagger (pocket: the shipped one) or a"
        " local CLIP folder; by default that of --start-from.",
    ] = None,
    onto: Annotated[str | None, "Adapter whose LoRA is in the model, frozen; without it a LoRA is learned too."] = None,
    start_from: Annotated[str | None, "Encoder of the same base whose mapper is trained on."] = None,
    model: Base = "pocket",
    tokenizer: Tokenizer = None,
    exclude: Annotated[tuple[str, ...], "Identities to leave out."] = (),
    plot: Plot = None,
    dry_run: DryRun = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Learn to predict a person's words from RGB photos, by drawing other photos of the person; rerun to resume.

    Started by torchrun or by accelerate launch --multi_gpu, the processes share every batch.
    """
    if (features is None) == (start_from is None):
        raise InputError("give --features (a ReID checkpoint or a CLIP folder), or --start-from, which has its own")
    from dive_fast.commands.model import with_phrase, without
    from dive_fast.distributed import process_group
    from dive_fast.encoder.features import open_features
    from dive_fast.encoder.folder import load_encoder
    from dive_fast.encoder.train import dry_run_encoder
    from dive_fast.encoder.train import train_encoder as learn
    from dive_fast.models import load_adapter, load_bundle
    from dive_fast.train.photos import samples_of
    from dive_fast.train.trainer import PHASES

    training = Training(out / "encoder.json", plot, dry_run, json, PHASES)
    settings = replace(config, training=with_phrase(config.training))
    chosen = torch_device(device)
    samples = samples_of(without(read_photos(*photos), exclude))
    adapter = None if onto is None else load_adapter(onto)
    bundle = load_bundle(model, tokenizer)
    with process_group(chosen):
        start = None if start_from is None else load_encoder(start_from, device=chosen)
        if start is not None and settings.training.phrase not in (FREE_WORDS, start.phrase):
            raise InputError("--phrase is that of the encoder that --start-from names; leave it out")
        source = start.source if start is not None else open_features(features or "", chosen)
        encoder = training.run(
            lambda: learn(bundle, samples, out, settings, source, adapter, start, device=chosen),
            lambda: dry_run_encoder(bundle, samples, out, settings, source, adapter, start, chosen),
        )
    if encoder is None:
        return
    people = len(encoder.distribution.coordinates)
    finish(
        f"encoder {out}: {count(encoder.words, 'word')} a person, trained on {count(people, 'person')}",
        {"encoder": out, "words": encoder.words, "people": people, "fingerprint": encoder.fingerprint},
        json,
        then=following("encode", encoder=out, onto=onto, photos="folder:PHOTOS", out=beside(out, "more-people")),
        kept=training.last.kept,
    )


def encode(
    out: Annotated[Path, "Adapter folder to write."],
    photos: Annotated[Sequence[PhotoSet], f"Photos of the new people, whose RGB photos are read: {SET_HELP}"],
    encoder: EncoderFolder = "pocket",
    onto: Onto = None,
    features: Clip = None,
    refine: Annotated[
        Changes[PersonalizeConfig],
        Part(
            "refine",
            only=("steps", "batch", "token_lr", "seed", "save_every"),
            texts={"steps": "Steps of textual inversion from the encoder's words on; 0 leaves them as they are."},
        ),
    ] = _ONE_PASS,
    model: Annotated[str, "Base model, which only --refine-steps needs; pocket is the shipped one."] = "pocket",
    tokenizer: Tokenizer = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Add everyone in the photos to an adapter, in one pass of an encoder; rerun to resume."""
    samples = read_photos(*photos)
    from dive_fast.encoder.encode import encode_onto
    from dive_fast.encoder.folder import load_encoder
    from dive_fast.models import load_adapter, load_bundle

    last = LastFile(out / "adapter.json")
    chosen = torch_device(device)
    opened = load_encoder(encoder, features, chosen)
    name = own_adapter(encoder) if onto is None else onto
    adapter = load_adapter(name)
    learning: PersonalizeConfig = refine.apply_to(with_rates_of(_ONE_PASS, adapter.metadata, f"adapter {name}"))
    bundle = load_bundle(model, tokenizer) if learning.steps else None
    made, found = encode_onto(opened, name, samples, out, learning if learning.steps else None, bundle, device=chosen)
    known = opened.known(found.pids)
    for note in found.notes:
        log(f"note: {note}")
    if known:
        log(f"note: {len(known):,} of {len(found.pids):,} people have names of people whom the encoder was trained on")
    finish(
        f"adapter {out}: {count(len(found.pids), 'person')} added from {count(found.photos, 'photo')}, "
        f"{len(made.identities):,} in all",
        {"adapter": out, "fingerprint": made.fingerprint, **_summary(found), "known_to_encoder": known},
        json,
        then=following("fuse", model=model, tokenizer=tokenizer, adapter=out, out=beside(out, "fused")),
        kept=last.kept,
    )


def _summary(found: Encoded) -> dict[str, object]:
    return {
        "people": len(found.pids),
        "photos": found.photos,
        "unreadable": found.unreadable,
        "without": found.without,
        "mixed": found.mixed,
    }


def own_adapter(encoder: str) -> Path | str:
    """Returns the adapter that was learned beside an encoder, "pocket" is the shipped one; none raises `InputError`."""
    from dive_fast.encoder.folder import ADAPTER, read_record

    if encoder == "pocket":
        return encoder
    folder, _ = read_record(encoder)
    if not (folder / ADAPTER).is_dir():
        raise InputError(f"encoder {folder} has no adapter of its own, as none was learned beside it; give --onto")
    return folder / ADAPTER


def virtual(
    out: Annotated[Path, "Adapter folder to write."],
    config: VirtualConfig,
    encoder: EncoderFolder = "pocket",
    onto: Onto = None,
    features: Clip = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Add people who do not exist to an adapter: words like those of real people, and near to nobody's."""
    from dive_fast.encoder.folder import load_encoder
    from dive_fast.encoder.virtual import add_virtual
    from dive_fast.models import load_adapter, save_adapter

    last = LastFile(out / "adapter.json")
    name = own_adapter(encoder) if onto is None else onto
    adapter, drawn = add_virtual(load_encoder(encoder, features), load_adapter(name), name, config)
    save_adapter(adapter, out, overwrite=overwrite)
    facts = drawn.facts()
    low, middle, high = facts["nearest_real_person"]
    real_low, real_middle, real_high = facts["nearest_real_person_of_real_people"]
    if drawn.uncompared:
        log(f"note: {drawn.uncompared:,} people of the adapter have words of another phrase and were not compared")
    finish(
        f"adapter {out}: {count(config.people, 'virtual person')}; distance to the nearest real person, 5/50/95 %: "
        f"{low:.3g}, {middle:.3g}, {high:.3g} (real people to theirs: {real_low:.3g}, {real_middle:.3g}, {real_high:.3g}); "
        f"{count(drawn.refused, 'draw')} refused below {drawn.limit:.3g}",
        {"adapter": out, "people": config.people, "fingerprint": adapter.fingerprint, **facts},
        json,
        then=following("fuse", adapter=out, model="BASE", out=beside(out, "fused")),
        kept=last.kept,
    )
