"""The dataset's card: README.md that says what the images are, how they were made, and what to be careful about."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dive_fast import __version__
from dive_fast.data.names import abbreviate, natural_key
from dive_fast.io import atomic_write, read_json, sha256_bytes
from dive_fast.quality.dataset import dataset_hash
from dive_fast.quality.sidecar import facts_path
from dive_fast.synth.manifest import dataset_plan, dropped, read_manifest
from dive_fast.types import MODALITIES, InputError, Modality

NAME = "README.md"
_MARK = re.compile(rb"<!-- written by dive-fast card, sha256 ([0-9a-f]{64}) -->\n")
MODES = {
    "real-rgb": "the RGB side of a pair is a real photo, the infrared side is generated",
    "synthetic": "both sides of a pair are generated, from one noise",
    "photo-guided": "the RGB side of a pair is a real photo, the infrared side is generated from that photo",
}
SIDE_NAMES: dict[Modality, str] = {"rgb": "RGB", "ir": "infrared"}


@dataclass
class Contents:
    """What a dataset holds, counted in one walk: a few numbers per identity and camera."""

    pairs: int = 0
    rejected: int = 0
    dropped: int = 0
    made: Counter[tuple[str, Modality]] = field(default_factory=Counter)  # (camera, side)
    photos: Counter[tuple[str, Modality]] = field(default_factory=Counter)  # pairs with a photo on that side
    pairs_of: Counter[str] = field(default_factory=Counter)
    engines: Counter[str] = field(default_factory=Counter)


def write_card(
    dataset: Path, *, model: Path | None = None, licence: str | None = None, contact: str | None = None
) -> Path:
    """Writes README.md into the dataset, or brings its own up to date.

    `model` is the engine or fused folder that made the images, which knows the adapter and the base. A README.md that
    this did not write, or that was edited since, raises `InputError` and stays, and so does a model that is another one.
    """
    path = dataset / NAME
    if path.exists() and not _ours(path.read_bytes()):
        raise InputError(
            f"{path} was not written by dive-fast card, or was edited since, and is not overwritten; move it away (licence "
            "and contact can be given as --licence and --contact)"
        )
    try:
        body = ("\n".join(_lines(dataset, model, licence, contact)) + "\n").encode()
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # what reads sidecars trusts their shape
        raise InputError(
            f"dataset {dataset}: scores.json, filter.json or sets.json is not as dive-fast wrote it ({error!r}); score, "
            "filter or compare again"
        ) from error
    atomic_write(path, f"<!-- written by dive-fast card, sha256 {sha256_bytes(body)} -->\n".encode() + body)
    return path


def _ours(data: bytes) -> bool:
    """Whether the file is as `write_card` left it."""
    match = _MARK.match(data)
    return match is not None and sha256_bytes(data[match.end() :]).encode() == match[1]


def _contents(dataset: Path) -> Contents:
    gone, found = dropped(dataset), Contents()
    for record in read_manifest(dataset):
        spec = record.spec
        found.pairs += 1
        found.engines[record.engine_fingerprint] += 1
        found.dropped += spec.pair_id in gone
        if record.status != "done":
            found.rejected += 1
            continue
        found.pairs_of[spec.pid] += 1
        found.made[spec.ir, "ir"] += 1
        (found.made if spec.photo is None else found.photos)[spec.rgb, "rgb"] += 1
    if not found.pairs:
        raise InputError(f"dataset {dataset} has no finished pair yet; run synth again")
    return found


def _lines(dataset: Path, model: Path | None, licence: str | None, contact: str | None) -> Iterator[str]:
    plan, found = dataset_plan(dataset), _contents(dataset)
    people = sorted(found.pairs_of, key=natural_key)
    yield f"# {dataset.resolve().name}: RGB-infrared pairs of persons, partly or wholly synthetic"
    yield ""
    yield (
        f"{found.pairs:,} pairs of {len(people):,} identities, made by dive-fast: {MODES[plan.mode]}. "
        f"The plan has {len(plan.pairs):,} pairs; {len(plan.pairs) - found.pairs:,} are missing."
    )
    yield ""
    yield "## What is synthetic, and how it is marked"
    yield from _marks(plan.mode)
    yield "## How it was made"
    yield from _table(("", ""), _origin(plan, found, model))
    yield "## What it holds"
    yield from _counts(found)
    yield "## Checks of quality"
    yield from _quality(dataset, found)
    yield "## Privacy"
    yield from _privacy(dataset, plan.mode)
    yield "## Licence and contact"
    yield f"Licence: {licence or '**TO BE FILLED IN by the owner of this dataset** (`dive-fast card --licence TEXT`)'}"
    yield ""
    yield f"Contact, and requests to remove a person: {contact or '**TO BE FILLED IN by the owner** (`--contact TEXT`)'}"
    yield ""
    yield (
        "No licence follows from the software that made the images. The terms of the sets that the photos come from, and of "
        "the base model, apply to what is derived from them."
    )
    yield ""
    yield "## Verify and regenerate"
    yield from _verify()


def _marks(mode: str) -> Iterator[str]:
    yield "- Every generated image says so itself: PNG text entries `dive_fast:synthetic`, `dive_fast:plan_id`,"
    yield "  `dive_fast:pair_id` and `dive_fast:fingerprint` (the engine's); in JPEG files the same in EXIF."
    yield "- `shards/*.jsonl` holds a record of every pair: its seed, cameras, files, their SHA-256 and the engine."
    if mode == "synthetic":
        yield "- No image here is a photo."
    else:
        yield "- The RGB images are unchanged copies of real photos; their record names the photo (`spec.photo`)."
    yield "- Do not use generated images as queries or gallery of an evaluation, and do not present them as photos."
    yield ""


def _origin(plan: Any, found: Contents, model: Path | None) -> Iterator[tuple[str, str]]:
    yield "mode", plan.mode
    yield "sampling", plan.sampling.describe()
    if plan.strength is not None:
        yield "strength (how far from the photo)", f"{plan.strength:g}"
    yield "seed of the run", str(plan.seed)
    yield "image size (height x width)", f"{plan.height}x{plan.width}"
    yield "plan id", f"`{plan.plan_id}`"
    yield "fused model's fingerprint", f"`{plan.model_fingerprint}`"
    for name, fingerprint in _ancestors(model, plan.model_fingerprint):
        yield name, f"`{fingerprint}`"
    for engine, count in found.engines.most_common():
        yield "engine's fingerprint", f"`{engine}` ({count:,} pairs)"
    yield "card written by", f"dive-fast {__version__}"


def _ancestors(model: Path | None, fingerprint: str) -> Iterator[tuple[str, str]]:
    """Base and adapter, from the model's prompts.json; an engine of another model raises `InputError`."""
    if model is None:
        yield "base and adapter", "not stated (dive-fast card --model FOLDER reads them off the engine)"
        return
    if (model / "engine.json").is_file():
        spec = read_json(model / "engine.json", "engine")
        if not isinstance(spec, dict) or spec.get("model_fingerprint") != fingerprint:
            raise InputError(f"{model} is of another model than this dataset's plan; give the engine that made it")
    prompts = read_json(model / "prompts.json", "prompts")
    for name in ("base", "adapter"):
        value = prompts.get(f"{name}_fingerprint") if isinstance(prompts, dict) else None
        if not isinstance(value, str) or not re.fullmatch(r"[\w.:-]{1,128}", value):
            raise InputError(f"{model / 'prompts.json'} names no {name}_fingerprint; fuse and export again")
        yield f"{name}'s fingerprint", value


def _counts(found: Contents) -> Iterator[str]:
    yield from _table(
        ("camera", "side", "generated images", "pairs with a real photo"),
        [
            (camera, SIDE_NAMES[side], f"{found.made[camera, side]:,}", f"{found.photos[camera, side]:,}")
            for side in MODALITIES
            for camera in sorted({c for c, s in found.made | found.photos if s == side}, key=natural_key)
        ],
    )
    counts = sorted(found.pairs_of.values())
    names = sorted(found.pairs_of, key=natural_key)
    if counts:
        yield (
            f"Pairs per identity: {counts[0]:,} to {counts[-1]:,}, median {counts[len(counts) // 2]:,}. "
            f"Identities: {abbreviate(names, 12)}; all of them are in `plan.json`."
        )
    if found.rejected:
        yield f"{found.rejected:,} pairs are recorded as rejected and have no use."
    yield ""


def _quality(dataset: Path, found: Contents) -> Iterator[str]:
    facts = _optional(facts_path(dataset))
    if facts is None:
        yield "The images are not scored (`dive-fast score`)."
        yield ""
    else:
        if facts["records"] != dataset_hash(dataset):
            yield "**These scores are of an earlier state of the dataset; `dive-fast score` brings them up to date.**"
            yield ""
        yield from _scores(facts)
    yield from _filter(_optional(dataset / "filter.json"), found)
    yield from _sets(_optional(dataset / "scores" / "sets.json"))


def _optional(path: Path) -> dict[str, Any] | None:
    """A sidecar's content; None where there is none."""
    if not path.is_file():
        return None
    value = read_json(path, path.name)
    if not isinstance(value, dict):
        raise InputError(f"{path} is not what dive-fast wrote; make it again")
    return value


def _scores(facts: Mapping[str, Any]) -> Iterator[str]:
    net = facts["net"]
    yield (
        f"Scores by a ReID net (SHA-256 `{net['sha256']}`) that was trained on {net['images']:,} real images of "
        f"{net['identities']:,} identities and on no generated one:"
    )
    yield ""
    rows = []
    for name, held in facts["scores"].items():
        for side in MODALITIES:
            made, real = (facts[kind].get(name, {}).get(side) for kind in ("made", "real"))
            if made:
                good = "high" if held["high_is_good"] else "low"
                rows.append((name, SIDE_NAMES[side], good, _span(made), _span(real) if real else "-"))
    yield from _table(("score", "side", "good is", "generated: 5 %, median, 95 %", "real: 5 %, median, 95 %"), rows)
    for name, held in facts["scores"].items():
        yield f"- {name}: {held['meaning']}."
    if facts.get("probe"):
        yield (
            f"- The probe of modality tells real RGB from real infrared of people that it has not seen with an area under "
            f"the curve of {facts['probe']['auc']:.3f}."
        )
    yield ""


def _span(quantiles: Mapping[str, float]) -> str:
    return ", ".join(f"{quantiles[share]:.3f}" for share in ("5%", "50%", "95%"))


def _filter(record: Mapping[str, Any] | None, found: Contents) -> Iterator[str]:
    if record is None:
        yield (
            "No filter is applied." if not found.dropped else f"{found.dropped:,} pairs are dropped (`dropped.jsonl`)."
        )
    else:
        rules = [f"{_side(rule)}{rule['score']} {rule['keep']} {rule['limit']:.6g}" for rule in record["thresholds"]]
        yield (
            f"A filter drops {record['dropped']:,} of {record['pairs']:,} pairs (listed with reasons in `dropped.jsonl`; "
            f"the files stay): kept is {', '.join(rules)}."
        )
    yield ""


def _side(rule: Mapping[str, Any]) -> str:
    return f"{rule['side']} " if rule.get("side") else ""


def _sets(record: Mapping[str, Any] | None) -> Iterator[str]:
    if record is None:
        return
    kind = record["extractor"]["kind"]
    yield f"Distance to real sets ({kind} features: no figure compares with those of other features; FID is biased for few"
    yield "images):"
    yield ""
    yield from _table(
        ("camera", "side", "generated", "real", "KID x1000", "FID", "two real halves: KID x1000"),
        [
            (row["camera"], SIDE_NAMES[row["side"]], f"{row['made']:,}", f"{row['real']:,}", f"{1000 * row['kid']:.2f}",
             f"{row['fid']:.2f}", "-" if row["real_kid"] is None else f"{1000 * row['real_kid']:.2f}")
            for row in record["rows"]
        ],
    )  # fmt: skip


def _privacy(dataset: Path, mode: str) -> Iterator[str]:
    yield "- The identities stand for real people: their words were learned from photos of them. Generated images are"
    yield "  derived from personal data, and may be personal data where a person can be recognised in them."
    if mode != "synthetic":
        yield "- The dataset also holds real photos. Whoever passes it on passes those on."
    yield "- Consent: the software cannot know whether the people in the photos agreed to this use; the owner must say."
    yield "- Re-identification is what such data is made for: a generated image is meant to match its person across cameras."
    yield "  Keep no list that links identity numbers to names, and do not use the images to look for people."
    facts = _optional(facts_path(dataset))
    held = {} if facts is None else facts["thresholds"].get("memorisation", {})
    if facts is None or "memorisation" not in facts["scores"]:
        yield "- Memorisation (images that copy a training photo) was not checked; `dive-fast score` does."
    for side in held:
        over, made = held[side].get("over", 0), facts["made"]["memorisation"].get(side) if facts else None
        if made:
            yield (
                f"- Memorisation check, {SIDE_NAMES[side]}: {over:,} of {made['images']:,} generated images are more alike "
                f"to a training image (cosine > {held[side]['value']:.3f}) than {held[side]['percentile']:g} % of real ones "
                "are to another of the same person. The check sees what the net sees: it proves no absence of copies."
            )
    yield ""


def _verify() -> Iterator[str]:
    yield "```"
    yield "dive-fast verify FOLDER      # every record has its file, and every file its record, by SHA-256"
    yield "dive-fast synth --plan FOLDER/plan.json --engine ENGINE --out FOLDER      # makes what is missing"
    yield "```"
    yield "The same plan, engine and machine give the same images; other hardware differs by rounding."


def _table(header: Sequence[str], rows: Any) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
    yield ""
