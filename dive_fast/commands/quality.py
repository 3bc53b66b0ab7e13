"""`dive-fast score`, `filter`, `compare-sets` and `card`: what generated images are worth, and saying so."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dive_fast.commands.common import Device, Json, finish, image_size, names, say, torch_device
from dive_fast.types import InputError, to_dict

if TYPE_CHECKING:
    from dive_fast.data.sets import SetSpec
    from dive_fast.quality.extractor import Extractor

Dataset = Annotated[Path, typer.Argument(help="Dataset folder, from dive-fast synth.")]
SET_HELP = (
    "LAYOUT:PATH with a layout of sysu, regdb, llcm, market, market-gt-bbox, msmt17, folder; give it once a set. After the "
    "path may follow ,prefix=P ,split=S ,camera=C ,trial=N, as for prepare."
)
NET_HELP = "ReID checkpoint folder that saw real images only, and is not the net that will be trained on this dataset."
Batch = Annotated[int, typer.Option(min=1, help="Images a call of the net.")]


def score(
    dataset: Dataset,
    net: Annotated[Path, typer.Option(help=NET_HELP)],
    real: Annotated[
        list[str], typer.Option(help="Real images of the dataset's identities and of both modalities: " + SET_HELP)
    ],
    train: Annotated[
        list[str] | None, typer.Option(help="What the generator learned from, if that is not --real: as there.")
    ] = None,
    scores: Annotated[
        str, typer.Option(help="Scores to give, comma-separated.")
    ] = "identity,modality,diversity,memorisation",
    percentile: Annotated[
        float,
        typer.Option(
            min=50, max=100, help="Of similarities between real images of a person: memorisation's threshold."
        ),
    ] = 99.9,
    batch: Batch = 128,
    again: Annotated[bool, typer.Option("--again", help="Throw older scores away and score anew.")] = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Score every generated image by a ReID net that saw real images only; rerun to resume."""
    from dive_fast.quality.config import ScoreConfig
    from dive_fast.quality.score import score_dataset

    config = ScoreConfig(tuple(names(scores)), percentile, batch)
    facts = score_dataset(
        dataset, net, _specs(real), _specs(train or []), config, again=again, device=torch_device(device)
    )
    if (dataset / "filter.json").exists():
        say("note: the filter in force was made from the scores as they were then; run dive-fast filter again")
    finish(_summary(dataset, facts), {"dataset": dataset, "pairs": facts["pairs"], "made": facts["made"]}, json)


def _summary(dataset: Path, facts: dict) -> str:
    """Quantiles of each score beside those of real images, and what the thresholds say."""
    lines = [f"scores {dataset / 'scores'}: {facts['pairs']:,} pairs; median (5 % to 95 %), generated and real"]
    for name, sides in facts["made"].items():
        for side, made in sides.items():
            real = facts["real"].get(name, {}).get(side)
            lines.append(f"{name:13} {side:4} {_span(made):28} {_span(real) if real else '-'}")
    for side, held in facts["thresholds"].get("memorisation", {}).items():
        if side in facts["made"].get("memorisation", {}):
            lines.append(f"memorisation: {held['over']:,} generated {side} images above {held['value']:.4f}")
    if facts["probe"]:
        lines.append(f"modality's probe, on people it has not seen: area under the curve {facts['probe']['auc']:.3f}")
    return "\n".join(lines)


def _span(quantiles: dict[str, float]) -> str:
    return f"{quantiles['50%']:.3f} ({quantiles['5%']:.3f} to {quantiles['95%']:.3f})"


def filter_pairs(
    dataset: Dataset,
    min: Annotated[
        list[str] | None, typer.Option(help="[SIDE.]SCORE=NUMBER: keep pairs with at least that, as identity=0.1.")
    ] = None,
    max: Annotated[
        list[str] | None,
        typer.Option(
            help="[SIDE.]SCORE=NUMBER: keep pairs with at most that; memorisation=calibrated takes the threshold."
        ),
    ] = None,
    keep_share: Annotated[
        list[str] | None, typer.Option(help="[SIDE.]SCORE=SHARE: keep the best part of all pairs, as identity=0.9.")
    ] = None,
    allow_lost: Annotated[
        bool, typer.Option("--allow-lost", help="Go on when identities are left without a modality.")
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Take the filter back; the scores stay.")] = False,
    page: Annotated[
        Path | None, typer.Option(help="HTML report to write, with pictures; by default scores/filter.html.")
    ] = None,
    json: Json = False,
) -> None:
    """Drop pairs by their scores, and show what was dropped and what was just kept; no image is deleted."""
    from dive_fast.quality.config import FilterConfig
    from dive_fast.quality.filter import filter_dataset
    from dive_fast.quality.filter import undo as take_back
    from dive_fast.quality.filter_page import write_filter_page
    from dive_fast.quality.sidecar import read_metadata

    if undo:
        if min or max or keep_share:
            raise InputError("filter: --undo goes with no threshold")
        back = take_back(dataset)
        finish(
            f"dataset {dataset}: the filter is taken back, {back:,} pairs return",
            {"dataset": dataset, "back": back},
            json,
        )
        return
    record, tally = filter_dataset(
        dataset, FilterConfig(tuple(min or ()), tuple(max or ()), tuple(keep_share or ()), allow_lost)
    )
    report = write_filter_page(dataset, page or dataset / "scores" / "filter.html", tally, read_metadata(dataset))
    lines = [f"dataset {dataset}: {record['dropped']:,} of {record['pairs']:,} pairs are dropped; see {report}"]
    lines += [f"{count:,} by {rule}" for rule, count in record["by_threshold"].items()]
    lines += [f"{len(pids):,} identities have no {side} image left" for side, pids in record["identities_lost"].items()]
    summary = {name: record[name] for name in ("pairs", "dropped", "by_threshold", "by_camera", "identities_lost")}
    finish("\n".join(lines), {"dataset": dataset, "report": report, **summary}, json)


def compare_sets(
    dataset: Dataset,
    real: Annotated[list[str], typer.Option(help="Real images by the dataset's cameras: " + SET_HELP)],
    net: Annotated[Path | None, typer.Option(help="ReID checkpoint folder, of real images only: its features.")] = None,
    extractor: Annotated[
        Path | None,
        typer.Option(
            help="In place of --net: a TorchScript file, float RGB images [B, 3, H, W] in 0..1 to features [B, D]. It holds "
            "code that runs here: only files that you trust."
        ),
    ] = None,
    size: Annotated[str, typer.Option(help="Image size HEIGHTxWIDTH that --extractor takes.")] = "299x299",
    most: Annotated[int, typer.Option(min=4, help="Images a camera and set at most, drawn by --seed.")] = 50_000,
    kept_only: Annotated[bool, typer.Option("--kept-only", help="Leave out the pairs that a filter dropped.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws, and of KID's blocks.")] = 0,
    batch: Batch = 128,
    out: Annotated[Path | None, typer.Option(help="JSON file to write; by default scores/sets.json.")] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """KID and FID between a dataset's generated images and real ones, per camera and over all."""
    from dive_fast.quality.config import CompareConfig
    from dive_fast.quality.sets import compare_sets as run
    from dive_fast.quality.sets import table

    tool = _extractor(net, extractor, size, torch_device(device), batch)
    rows, lacking = run(dataset, _specs(real), tool, CompareConfig(most, seed, kept_only), out=out)
    if lacking:
        say(f"note: too few images to compare for {', '.join(lacking)}, in the dataset or in the real sets")
    finish(
        table(rows), {"dataset": dataset, "rows": [to_dict(row) for row in rows], "cameras_without_real": lacking}, json
    )


def _extractor(net: Path | None, script: Path | None, size: str, device: str, batch: int) -> Extractor:
    from dive_fast.quality.extractor import ReidFeatures, open_script
    from dive_fast.quality.reid_extractor import open_extractor

    if (net is None) == (script is None):
        raise InputError("compare-sets: give either --net or --extractor")
    if net is not None:
        return ReidFeatures(open_extractor(net, device, batch))
    assert script is not None
    height, width = image_size(size) or (299, 299)
    return open_script(script, height, width, device, batch)


def card(
    dataset: Dataset,
    model: Annotated[
        Path | None, typer.Option(help="Engine or fused folder that made the images: tells the base and the adapter.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="The dataset's licence; without it a place to fill in.")] = None,
    contact: Annotated[str | None, typer.Option(help="Whom to ask, and to ask for removal.")] = None,
    json: Json = False,
) -> None:
    """Write the dataset's card, README.md: origin, counts, scores, how images are marked, privacy."""
    from dive_fast.quality.card import write_card
    from dive_fast.quality.config import CardConfig

    path = write_card(dataset, CardConfig(model, licence, contact))
    finish(f"card {path}", {"card": path}, json)


def _specs(texts: list[str]) -> list[SetSpec]:
    from dive_fast.data.sets import EXTERNAL, PAIRED, parse_set

    return [parse_set(text, [*PAIRED, *EXTERNAL]) for text in texts]
