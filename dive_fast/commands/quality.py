"""`dive-fast score`, `filter`, `compare-sets` and `card`: what generated images are worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dive_fast.commands.common import (
    Dataset,
    Device,
    Json,
    LastFile,
    Overwrite,
    PhotoSet,
    beside,
    finish,
    following,
    torch_device,
)
from dive_fast.data.sets import SET_HELP
from dive_fast.progress import log
from dive_fast.quality.config import CardConfig, CompareConfig, FilterConfig, ScoreConfig
from dive_fast.settings import ImageSize, PositiveInt
from dive_fast.types import InputError, to_dict
from dive_fast.words import count

if TYPE_CHECKING:
    from dive_fast.quality.extractor import Extractor

NET = "ReID checkpoint folder that saw real images only, and is not the net that will be trained on this dataset."


def score(
    dataset: Dataset,
    /,
    net: Annotated[Path, NET],
    real: Annotated[Sequence[PhotoSet], f"Real images of the dataset's identities, in both modalities: {SET_HELP}"],
    config: ScoreConfig,
    train: Annotated[Sequence[PhotoSet], "What the generator learned from, if that is not --real."] = (),
    overwrite: Annotated[bool, "Delete older scores and score everything."] = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Score every generated image by a ReID net that saw real images only; rerun to resume."""
    from dive_fast.quality.score import score_dataset

    last = LastFile(dataset / "scores" / "scores.json")
    scored = score_dataset(dataset, net, real, train, config, overwrite=overwrite, device=torch_device(device))
    if (dataset / "filter.json").exists():
        log("note: the filter was made from older scores; run dive-fast filter again")
    summary = {"dataset": dataset, "pairs": scored["pairs"], "made": scored["made"]}
    rules = {"keep_fraction": f"{config.scores[0]}=0.9"}
    if "memorisation" in config.scores:
        rules = {"max": "memorisation=calibrated"}
    finish(_summary(dataset, scored), summary, json, then=following("filter", dataset, **rules), kept=last.kept)


def _summary(dataset: Path, scored: dict[str, Any]) -> str:
    """Returns quantiles of each score beside those of real images, and the counts above thresholds."""
    lines = [f"scores {dataset / 'scores'}: {count(scored['pairs'], 'pair')}; median (5 % to 95 %), generated and real"]
    for name, sides in scored["made"].items():
        for side, made in sides.items():
            real = scored["real"].get(name, {}).get(side)
            lines.append(f"{name:13} {side:4} {_span(made):28} {_span(real) if real else '-'}")
    for side, held in scored["thresholds"].get("memorisation", {}).items():
        if side in scored["made"].get("memorisation", {}):
            lines.append(f"memorisation: {held['over']:,} generated {side} images above {held['value']:.4f}")
    if scored["probe"]:
        lines.append(f"modality probe, on held-out identities: area under the curve {scored['probe']['auc']:.3f}")
    return "\n".join(lines)


def _span(quantiles: dict[str, float]) -> str:
    return f"{quantiles['50%']:.3f} ({quantiles['5%']:.3f} to {quantiles['95%']:.3f})"


def filter_pairs(
    dataset: Dataset,
    /,
    config: FilterConfig,
    undo: Annotated[bool, "Remove the filter; the scores stay."] = False,
    page: Annotated[Path | None, "HTML report to write, with pictures; by default scores/filter.html."] = None,
    overwrite: Annotated[bool, "Replace another page at --page."] = False,
    json: Json = False,
) -> None:
    """Drop pairs by their scores, and show what was dropped and what was just kept; no image is deleted."""
    from dive_fast.outputs import PAGE, check_place, output_file
    from dive_fast.quality.filter import filter_dataset
    from dive_fast.quality.filter import undo as remove_filter
    from dive_fast.quality.filter_page import write_filter_page
    from dive_fast.quality.sidecar import read_metadata

    report = page or dataset / "scores" / "filter.html"
    then = following("report", dataset, out=beside(dataset, "report"))
    if undo:
        if config.thresholds:
            raise InputError("filter: --undo goes with no threshold")
        back = remove_filter(dataset)
        text = f"dataset {dataset}: filter removed, {count(back, 'pair')} back"
        finish(text, {"dataset": dataset, "back": back}, json, then=then)
        return
    check_place(report, PAGE)
    last = LastFile(dataset / "filter.json", by_content=True)
    record, tally = filter_dataset(dataset, config)
    with output_file(report, PAGE, overwrite or page is None) as fresh:
        write_filter_page(dataset, fresh, tally, read_metadata(dataset))
    lines = [f"dataset {dataset}: {record['dropped']:,} of {count(record['pairs'], 'pair')} dropped; see {report}"]
    lines += [f"{pairs:,} by {rule}" for rule, pairs in record["by_threshold"].items()]
    lines += [
        f"{count(len(pids), 'identity')} without a {side} image" for side, pids in record["identities_lost"].items()
    ]
    summary = {name: record[name] for name in ("pairs", "dropped", "by_threshold", "by_camera", "identities_lost")}
    finish("\n".join(lines), {"dataset": dataset, "report": report, **summary}, json, then=then, kept=last.kept)


def compare_sets(
    dataset: Dataset,
    /,
    real: Annotated[Sequence[PhotoSet], f"Real images of the dataset's cameras: {SET_HELP}"],
    config: CompareConfig,
    net: Annotated[Path | None, "ReID checkpoint folder of real images only, whose features are compared."] = None,
    extractor: Annotated[
        Path | None,
        "In place of --net: a TorchScript file, float RGB images [B, 3, H, W] in 0..1 to features [B, D]. Its code runs "
        "here: give only a file that you trust.",
    ] = None,
    size: Annotated[ImageSize, "Image size that --extractor takes."] = (299, 299),
    batch: Annotated[PositiveInt, "Images per call of the net."] = 128,
    out: Annotated[Path | None, "JSON file to write; by default scores/sets.json."] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """KID and FID between a dataset's generated images and real ones, per camera and over all."""
    from dive_fast.quality.sets import compare_sets as compare
    from dive_fast.quality.sets import table

    last = LastFile(out or dataset / "scores" / "sets.json")
    features = _extractor(net, extractor, size, torch_device(device), batch)
    rows, lacking = compare(dataset, real, features, config, out=out, overwrite=overwrite)
    if lacking:
        log(f"note: too few images to compare for {', '.join(lacking)}, in the dataset or in the real sets")
    summary = {"dataset": dataset, "rows": [to_dict(row) for row in rows], "cameras_without_real": lacking}
    finish(table(rows), summary, json, then=following("card", dataset), kept=last.kept)


def _extractor(net: Path | None, script: Path | None, size: tuple[int, int], device: str, batch: int) -> Extractor:
    from dive_fast.quality.extractor import ReidFeatures, open_script
    from dive_fast.quality.reid_extractor import open_extractor

    if net is not None and script is None:
        return ReidFeatures(open_extractor(net, device, batch))
    if net is None and script is not None:
        return open_script(script, *size, device, batch)
    raise InputError("compare-sets: give either --net or --extractor")


def card(
    dataset: Dataset,
    /,
    config: CardConfig,
    json: Json = False,
) -> None:
    """Write the dataset's card, README.md: origin, counts, scores, provenance tags, privacy."""
    from dive_fast.quality.card import write_card

    last = LastFile(dataset / "README.md", by_content=True)
    path = write_card(dataset, config)
    then = following("pack", dataset, out=beside(dataset, "tars"))
    finish(f"card {path}", {"card": path}, json, then=then, kept=last.kept)
