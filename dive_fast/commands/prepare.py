"""`dive-fast prepare`: raw sets of photos to one training set that loads without them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dive_fast.commands.common import EXTERNAL_HELP, PAIRED_HELP, Device, Json, Tokenizer, finish, say, torch_device

if TYPE_CHECKING:
    from dive_fast.data.prepare import PreparePlan
    from dive_fast.models.bundle import ModelBundle


def prepare(
    out: Annotated[Path, typer.Option(help="Folder to write: WebDataset tars, latents and prepared.json, the report.")],
    paired: Annotated[list[str] | None, typer.Option(help=PAIRED_HELP)] = None,
    external: Annotated[list[str] | None, typer.Option(help=EXTERNAL_HELP)] = None,
    min_images: Annotated[
        int, typer.Option(min=1, help="Leave out people of --external sets with fewer photos; DiVE: 12.")
    ] = 1,
    tall: Annotated[
        bool, typer.Option(help="Leave out images that are not at least twice as high as wide, as DiVE does.")
    ] = False,
    model: Annotated[
        str, typer.Option(help="Base model folder whose VAE makes the latents; pocket is the shipped one.")
    ] = "pocket",
    tokenizer: Tokenizer = None,
    latents: Annotated[bool, typer.Option(help="Cache latents; a later run of the same sets can add them.")] = True,
    shard_size: Annotated[int, typer.Option(min=1, help="Images a tar.")] = 1_000,
    strict: Annotated[bool, typer.Option(help="Stop at a damaged image instead of leaving it out.")] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Only count, and say what filters leave out and what space is needed; write nothing.")
    ] = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Verify and pack the images of one or more sets, and cache their latents; rerun to resume.

    Counts are printed beside the published ones. The sets are only read. Names of people must differ between the sets;
    prefix= puts something before a set's names. Example: dive-fast prepare --paired sysu:SYSU-MM01 --external
    market-gt-bbox:Market-1501,prefix=1 --min-images 12 --tall --model SD15 --out runs/prepared
    """
    from dive_fast.data.counts import table
    from dive_fast.data.filters import Filters
    from dive_fast.data.prepare import megabytes

    plan = _plan(paired or [], external or [], Filters(min_images, tall), shard_size)
    say(table(plan.read))
    for record in plan.dropped:
        say(record.sentence())
    bundle = _bundle(model, tokenizer, device) if latents else None
    if dry_run:
        needed = _needed(plan, out, set(), bundle)
        finish(
            f"{len(plan.images):,} images in {plan.shards:,} shards need at most {megabytes(needed)}",
            {"images": len(plan.images), "shards": plan.shards, "bytes": needed, **_lists(plan)},
            json,
        )
        return
    report = _make(plan, out, strict, bundle)
    finish(_text(out, report), _summary(out, report), json)


def _plan(paired: list[str], external: list[str], filters: Any, shard_size: int) -> PreparePlan:
    from tqdm import tqdm

    from dive_fast.data.counts import count_sets
    from dive_fast.data.filters import apply_filters
    from dive_fast.data.prepare import PreparePlan
    from dive_fast.data.sets import EXTERNAL, PAIRED, parse_set, read_sets

    specs = [parse_set(text, PAIRED) for text in paired] + [parse_set(text, EXTERNAL) for text in external]
    sets = read_sets(specs)
    total = sum(len(named.samples) for named in sets)
    with tqdm(total=total, desc="sizes", unit="image", disable=not filters.tall) as bar:
        left, dropped = apply_filters(sets, filters, bar.update)
    return PreparePlan(tuple(left), tuple(count_sets(sets)), filters, tuple(dropped), shard_size)


def _bundle(model: str, tokenizer: Path | None, device: str) -> ModelBundle:
    from dive_fast.models import load_bundle

    bundle = load_bundle(model, tokenizer)
    bundle.vae.to(torch_device(device))
    return bundle


def _needed(plan: PreparePlan, out: Path, finished: set[int], bundle: ModelBundle | None) -> int:
    """Bytes still to be written."""
    from dive_fast.data.prepare import space_needed

    needed = space_needed(plan, finished)
    if bundle is not None:
        from dive_fast.train.prepared import encoder_fingerprint, latent_space, missing_latents

        needed += latent_space(plan, missing_latents(plan, out, finished, encoder_fingerprint(bundle)), bundle)
    return needed


def _make(plan: PreparePlan, out: Path, strict: bool, bundle: ModelBundle | None) -> dict[str, Any]:
    """Packs, encodes and reports what is not there yet; gives what `prepared.json` says."""
    from tqdm import tqdm

    from dive_fast.data.prepare import check_space, claimed, finished_shards, pack
    from dive_fast.data.prepare import finish as write_report
    from dive_fast.data.prepared import open_prepared

    total = len(plan.images)
    with claimed(out, plan):
        finished = finished_shards(out, plan, strict)
        check_space(out, _needed(plan, out, finished, bundle))
        done = sum(len(plan.shard(number)) for number in finished)
        with tqdm(total=total, initial=done, desc="verify and pack", unit="image") as bar:
            pack(plan, out, finished, strict, bar.update)
        if bundle is not None:
            from dive_fast.train.prepared import encode_shards, encoder_fingerprint, missing_latents

            todo = missing_latents(plan, out, set(range(plan.shards)), encoder_fingerprint(bundle))
            done = total - sum(len(plan.shard(number)) for number in todo)
            with tqdm(total=total, initial=done, desc="encode", unit="image") as bar:
                encode_shards(plan, out, todo, bundle, bar.update)
        write_report(plan, out)
    return open_prepared(out).report


def _text(out: Path, report: dict[str, Any]) -> str:
    from dive_fast.data.counts import Count, table
    from dive_fast.data.names import abbreviate

    lines = [table([Count(**row) for row in report["prepared"]])]
    damaged = [f"{image['set']}/{image['path']}" for image in report["damaged"]]
    if damaged:
        lines.append(f"{len(damaged):,} damaged images are left out: {abbreviate(damaged)}; prepared.json says why")
    if report["duplicates"]:
        groups = report["duplicates"]
        lines.append(f"{len(groups):,} groups of images are the same byte for byte, first {abbreviate(groups[0])}")
    lines.append(
        f"prepared set {out}: {report['images']:,} images of {report['identities']:,} people in "
        f"{len(report['shards']):,} shards, {'with' if report['latents'] else 'without'} latents"
    )
    return "\n".join(lines)


def _summary(out: Path, report: dict[str, Any]) -> dict[str, Any]:
    """The report without its long lists, which stay in `prepared.json`."""
    counted = {name: len(report[name]) for name in ("damaged", "duplicates", "shards")}
    latents = report["latents"][0]["encoder"] if report["latents"] else None
    kept = {name: report[name] for name in ("images", "identities", "read", "prepared", "sets", "filters")}
    dropped = [{"set": r["set"], "rule": r["rule"], "images": len(r["images"]), "identities": len(r["identities"])}
               for r in report["dropped"]]  # fmt: skip
    return {"out": out, **kept, **counted, "dropped": dropped, "latents": latents}


def _lists(plan: PreparePlan) -> dict[str, Any]:
    from dive_fast.types import to_dict

    return {"read": [to_dict(row) for row in plan.read], "dropped": [to_dict(record) for record in plan.dropped]}
