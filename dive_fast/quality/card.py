"""The dataset's card: its README.md with contents, origin, quality, privacy and licence."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError
from markupsafe import Markup

from dive_fast import __version__
from dive_fast.data.names import abbreviate, natural_key
from dive_fast.io import atomic_write, sha256_bytes
from dive_fast.json_files import read_json
from dive_fast.quality.config import CardConfig
from dive_fast.quality.dataset import dataset_hash
from dive_fast.quality.sidecar import metadata_path
from dive_fast.synth.manifest import dataset_plan, dropped, read_manifest
from dive_fast.types import MODALITIES, InputError, Modality
from dive_fast.words import count

NAME = "README.md"
_MARK = re.compile(rb"<!-- written by dive-fast card, sha256 ([0-9a-f]{64}) -->\n")
_SIGNS = re.compile(r"[\\`*_\[\]|~$!]")  # of Markdown
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
    virtual: set[str] = field(default_factory=set)
    engines: Counter[str] = field(default_factory=Counter)


def write_card(dataset: Path, config: CardConfig = CardConfig()) -> Path:
    """Writes README.md into the dataset, or updates its own.

    Raises `InputError` for a README.md that this did not write or that was edited since, and for another model.
    """
    path = dataset / NAME
    if path.exists() and not (path.is_file() and _ours(path.read_bytes())):
        raise InputError(
            f"{path} was not written by dive-fast card, or was edited since, and is not overwritten; move it away (licence "
            "and contact can be given as --licence and --contact)"
        )
    plan, found = dataset_plan(dataset), _contents(dataset)
    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_escape,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    page.filters["n"] = lambda number: f"{number:,}"
    page.filters["counted"] = count
    page.filters["code"] = _code
    try:
        body = page.get_template("card.md").render(
            name=dataset.resolve().name,
            origin=list(_origin(plan, found, config.model)),
            mode=plan.mode,
            modes=MODES,
            planned=len(plan.pairs),
            found=found,
            licence=config.licence,
            contact=config.contact,
            side_names=SIDE_NAMES,
            **_counts(found),
            **_quality(dataset),
        )
    except (KeyError, TypeError, AttributeError, ValueError, TemplateError) as error:  # sidecars of another shape
        raise InputError(
            f"{dataset}: scores.json, filter.json or sets.json is damaged ({error!r}); make it again"
        ) from error
    data = body.encode()
    atomic_write(path, f"<!-- written by dive-fast card, sha256 {sha256_bytes(data)} -->\n".encode() + data)
    return path


def _escape(value: object) -> Markup:
    """Text as Markdown that shows it and does nothing else: no link, no HTML, no second line."""
    if isinstance(value, Markup):
        return value
    line = "".join(sign if sign.isprintable() else " " for sign in str(value))
    return Markup(_SIGNS.sub(r"\\\g<0>", html.escape(line, quote=False)))


def _code(value: object) -> Markup:
    """An identifier as code."""
    return Markup("`" + re.sub(r"[^\w.:+/-]", "?", str(value), flags=re.ASCII)[:128] + "`")


def _ours(data: bytes) -> bool:
    """Whether the file is unchanged since `write_card` wrote it."""
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
        found.virtual |= {spec.pid} if spec.virtual else set()
        found.made[spec.ir, "ir"] += 1
        (found.made if spec.photo is None else found.photos)[spec.rgb, "rgb"] += 1
    if not found.pairs:
        raise InputError(f"dataset {dataset} has no finished pair yet; run synth again")
    return found


def _origin(plan: Any, found: Contents, model: Path | None) -> Iterator[tuple[str, str]]:
    yield "mode", plan.mode
    yield "sampling", plan.sampling.describe()
    if plan.strength is not None:
        yield "strength (how far from the photo)", f"{plan.strength:g}"
    yield "seed of the run", str(plan.seed)
    yield "image size (height x width)", f"{plan.height}x{plan.width}"
    yield "plan id", _code(plan.plan_id)
    yield "fused model's fingerprint", _code(plan.model_fingerprint)
    yield from _ancestors(model, plan.model_fingerprint)
    for engine, pairs in found.engines.most_common():
        yield "engine's fingerprint", _code(engine) + f" ({count(pairs, 'pair')})"
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
        yield f"{name}'s fingerprint", _code(value)


def _counts(found: Contents) -> dict[str, Any]:
    names = sorted(found.pairs_of, key=natural_key)
    return {
        "people": names,
        "shown": abbreviate(names, 12),
        "counts": sorted(found.pairs_of.values()),
        "cameras": [
            (camera, SIDE_NAMES[side], f"{found.made[camera, side]:,}", f"{found.photos[camera, side]:,}")
            for side in MODALITIES
            for camera in sorted({c for c, s in found.made | found.photos if s == side}, key=natural_key)
        ],
    }


def _quality(dataset: Path) -> dict[str, Any]:
    metadata, sets = _optional(metadata_path(dataset)), _optional(dataset / "scores" / "sets.json")
    return {
        "metadata": metadata,
        "stale": metadata is not None and metadata["records"] != dataset_hash(dataset),
        "scores": [] if metadata is None else list(_scores(metadata)),
        "filter": _optional(dataset / "filter.json"),
        "sets": sets,
        "distances": [] if sets is None else [_distance(row) for row in sets["rows"]],
    }


def _optional(path: Path) -> dict[str, Any] | None:
    """A sidecar's content; None where there is none."""
    if not path.is_file():
        return None
    value = read_json(path, path.name)
    if not isinstance(value, dict):
        raise InputError(f"{path} is not what dive-fast wrote; make it again")
    return value


def _scores(metadata: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, held in metadata["scores"].items():
        for side in MODALITIES:
            made, real = (metadata[kind].get(name, {}).get(side) for kind in ("made", "real"))
            if made:
                yield name, SIDE_NAMES[side], "high" if held["high_is_good"] else "low", _span(made), _span(real)


def _span(quantiles: Mapping[str, float] | None) -> str:
    return ", ".join(f"{quantiles[q]:.3f}" for q in ("5%", "50%", "95%")) if quantiles else "-"


def _distance(row: Mapping[str, Any]) -> tuple[str, ...]:
    halves = "-" if row["real_kid"] is None else f"{1000 * row['real_kid']:.2f}"
    return (
        row["camera"],
        SIDE_NAMES[row["side"]],
        f"{row['made']:,}",
        f"{row['real']:,}",
        f"{1000 * row['kid']:.2f}",
        f"{row['fid']:.2f}",
        halves,
    )
