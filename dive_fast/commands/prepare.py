"""`dive-fast prepare`: raw sets of photos to one training set that loads without them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dive_fast.commands.common import (
    WITHOUT_DRY_RUN,
    Base,
    Device,
    Json,
    PhotoSet,
    Tokenizer,
    beside,
    finish,
    following,
    torch_device,
)
from dive_fast.data.config import PrepareConfig
from dive_fast.data.sets import SET_HELP, read_sets
from dive_fast.progress import ProgressBar, log
from dive_fast.types import to_dict
from dive_fast.words import count, duration, size

if TYPE_CHECKING:
    from dive_fast.data.prepare import PreparePlan
    from dive_fast.models.bundle import ModelBundle


def prepare(
    out: Annotated[Path, "Folder to write: WebDataset tars, latents, and the report prepared.json."],
    photos: Annotated[Sequence[PhotoSet], f"A set of photos: {SET_HELP}"],
    config: PrepareConfig,
    model: Base = "pocket",
    tokenizer: Tokenizer = None,
    latents: Annotated[bool, "Cache the latents of --model's VAE; a later run of the same sets can add them."] = True,
    dry_run: Annotated[bool, "Only count images and report dropped ones, space and time; write nothing."] = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Verify and pack the images of one or more sets, and cache their latents; rerun to resume.

    Counts are printed beside the published ones. The sets are only read. Identity names must differ between the sets;
    prefix= puts a text before a set's names. Example: dive-fast prepare --photos sysu:SYSU-MM01 --photos
    market-gt-bbox:Market-1501,prefix=1 --min-images 12 --tall --model SD15 --out runs/prepared
    """
    from dive_fast.data.counts import table
    from dive_fast.models import load_bundle

    plan = _plan(photos, config)
    log(table(plan.read))
    for record in plan.dropped:
        log(record.sentence())
    bundle = load_bundle(model, tokenizer) if latents else None
    if bundle is not None:
        bundle.vae.to(torch_device(device))
    if dry_run:
        needed, seconds = _needed(plan, out, set(), bundle), _encode_seconds(plan, bundle)
        listed = {name: [to_dict(row) for row in getattr(plan, name)] for name in ("read", "dropped")}
        finish(
            f"{count(len(plan.images), 'image')} in {count(plan.shards, 'shard')} need at most {size(needed)}"
            f"{'' if seconds is None else f', and about {duration(seconds)} to encode'}",
            {"images": len(plan.images), "shards": plan.shards, "bytes": needed, "encode_seconds": seconds, **listed},
            json,
            then=WITHOUT_DRY_RUN,
        )
        return
    report, kept = _make(plan, out, bundle)
    learning = following("personalize", prepared=out, model=model, tokenizer=tokenizer, out=beside(out, "adapter"))
    then = learning if report["latents"] else "the same command with --latents, which personalize requires"
    finish(_text(out, report), {"out": out, **_summary(report)}, json, then=then, kept=kept)


def _plan(photos: Sequence[PhotoSet], config: PrepareConfig) -> PreparePlan:
    from dive_fast.data.counts import count_sets
    from dive_fast.data.filters import apply_filters
    from dive_fast.data.prepare import PreparePlan

    sets = read_sets(photos)
    total = sum(len(named.samples) for named in sets)
    with ProgressBar(total=total, desc="sizes", unit="image", disable=not config.tall) as bar:
        left, dropped = apply_filters(sets, config, bar.update)
    return PreparePlan(tuple(left), tuple(count_sets(sets)), config, tuple(dropped))


def _needed(plan: PreparePlan, out: Path, finished: set[int], bundle: ModelBundle | None) -> int:
    """Bytes still to be written."""
    from dive_fast.data.prepare import space_needed

    needed = space_needed(plan, finished)
    if bundle is not None:
        from dive_fast.train.prepared import encoder_fingerprint, latent_space, missing_latents

        needed += latent_space(plan, missing_latents(plan, out, finished, encoder_fingerprint(bundle)), bundle)
    return needed


def _encode_seconds(plan: PreparePlan, bundle: ModelBundle | None) -> float | None:
    from dive_fast.train.prepared import encode_seconds

    return None if bundle is None else encode_seconds(plan, bundle)


def _make(plan: PreparePlan, out: Path, bundle: ModelBundle | None) -> tuple[dict[str, Any], bool]:
    """Packs, encodes and reports what is not there yet; returns what `prepared.json` says, and whether all was there."""
    from dive_fast.data.prepare import check_space, claimed, finished_shards, pack
    from dive_fast.data.prepare import finish as write_report
    from dive_fast.data.prepared import open_prepared

    total = len(plan.images)
    with claimed(out, plan):
        finished = finished_shards(out, plan)
        kept = len(finished) == plan.shards and (out / "prepared.json").is_file()
        check_space(out, _needed(plan, out, finished, bundle))
        done = sum(len(plan.shard(number)) for number in finished)
        with ProgressBar(total=total, initial=done, desc="verify and pack", unit="image") as bar:
            pack(plan, out, finished, bar.update)
        if bundle is not None:
            from dive_fast.train.prepared import encode_shards, encoder_fingerprint, missing_latents

            todo = missing_latents(plan, out, set(range(plan.shards)), encoder_fingerprint(bundle))
            kept = kept and not todo
            done = total - sum(len(plan.shard(number)) for number in todo)
            with ProgressBar(total=total, initial=done, desc="encode", unit="image") as bar:
                encode_shards(plan, out, todo, bundle, bar.update)
        write_report(plan, out)
    return open_prepared(out).report, kept


def _text(out: Path, report: dict[str, Any]) -> str:
    from dive_fast.data.counts import Count, table
    from dive_fast.data.names import abbreviate

    lines = [table([Count(**row) for row in report["prepared"]])]
    damaged = [f"{image['set']}/{image['path']}" for image in report["damaged"]]
    if damaged:
        lines.append(f"{count(len(damaged), 'damaged image')} left out: {abbreviate(damaged)}; prepared.json says why")
    if report["duplicates"]:
        groups = report["duplicates"]
        lines.append(
            f"{count(len(groups), 'group')} of images are the same byte for byte, first {abbreviate(groups[0])}"
        )
    lines.append(
        f"prepared set {out}: {count(report['images'], 'image')} of {count(report['identities'], 'person')} in "
        f"{count(len(report['shards']), 'shard')}, {'with' if report['latents'] else 'without'} latents"
    )
    return "\n".join(lines)


def _summary(report: dict[str, Any]) -> dict[str, Any]:
    """The report with counts instead of its long lists, which stay in `prepared.json`."""
    kept = {name: report[name] for name in ("images", "identities", "read", "prepared", "sets", "filters")}
    counted = {name: len(report[name]) for name in ("damaged", "duplicates", "shards")}
    dropped = [{**row, "images": len(row["images"]), "identities": len(row["identities"])} for row in report["dropped"]]
    latents = report["latents"][0]["encoder"] if report["latents"] else None
    return {**kept, **counted, "dropped": dropped, "latents": latents}
