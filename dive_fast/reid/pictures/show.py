"""Pictures of a retrieval: what queries find, and real and synthetic images in feature space."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dive_fast.io import canonical_json, is_empty, sha256_bytes, write_json
from dive_fast.json_files import read_json
from dive_fast.reid.comparison.plots import require_matplotlib
from dive_fast.reid.data.dataset import check_samples
from dive_fast.reid.evaluation.evaluate import check_unseen, embed_files
from dive_fast.reid.evaluation.protocols import Permutations, Protocol, describe, draw_trials
from dive_fast.reid.evaluation.task import check_sides
from dive_fast.reid.pictures.config import ORDERS, ShowConfig
from dive_fast.reid.pictures.features import (
    NEIGHBOURS,
    neighbour_shares,
    people_in_turn,
    require_tsne,
    sample_people,
    tsne,
)
from dive_fast.reid.pictures.page import Section, split_pages, write_pages
from dive_fast.reid.pictures.plots import PICTURES, feature_section, plot_groups, plot_people
from dive_fast.reid.pictures.rank import Retrieval, choose, retrieve
from dive_fast.reid.pictures.sheet import write_sheet
from dive_fast.reid.training.checkpoint import load_model
from dive_fast.report import html
from dive_fast.types import InputError, Sample

RECORD = "show.json"
Embeddings = dict[Path, NDArray[np.float32]]


def show_retrieval(
    checkpoint: Path | str,
    query: Sequence[Sample],
    gallery: Sequence[Sample],
    out: Path | str,
    config: ShowConfig = ShowConfig(),  # noqa: B008 - frozen
    *,
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    dataset: str = "pocket",
    permutations: Permutations | None = None,
    features_of: Sequence[Sample] | None = None,
    other_people: bool = False,
    device: str = "cpu",
    progress: bool = True,
) -> Path:
    """Writes pages, `sheets/*.png`, `features-*.png` and `show.json` into `out`; returns the page to open, `index.html`.

    The pictures and counts of features are of the test half and of `features_of`. `out` must be new, empty or of the same
    checkpoint, images and settings; its pictures are then made again. Raises `InputError` as `evaluate_reid` does, and for
    an `out` with other files.
    """
    out = Path(out)
    check_sides(query, gallery, protocol)
    trials = draw_trials(query, gallery, protocol, permutations)
    if config.shown_trial > len(trials):
        raise InputError(f"the protocol has {len(trials)} trials, got trial {config.shown_trial} to show")
    trial = trials[config.shown_trial - 1]
    pictured = list({s.path: s for s in [*(features_of or ()), *query, *gallery]}.values()) if config.images else []
    if pictured:
        require_matplotlib()
        require_tsne()
        check_samples(pictured, "features")
    model, recipe, record = load_model(checkpoint, device)
    if not other_people:
        check_unseen(record, query, gallery)
    metadata = {
        **protocol.metadata(),
        "dataset": dataset,
        "checkpoint": record["sha256"],
        "shown_trial": config.shown_trial,
        "synthetic_in_training": record.get("synthetic"),
        "other_people": other_people,
    }
    listed = [[str(s.path), s.pid, s.camera, s.modality, s.source] for s in [*query, *gallery, *pictured]]
    images = sha256_bytes(canonical_json(listed).encode())
    settings = {"config": asdict(config), "facts": metadata, "images": images}
    _claim(out, settings)

    trained = set(record["pids"])
    people = people_in_turn(pictured, trained, config.seed)
    counted = [pictured[i] for i in sample_people(pictured, people, config.counted)]
    query = [query[i] for i in trial.query] if trial.query is not None else query
    gallery = [gallery[i] for i in trial.gallery] if trial.gallery is not None else gallery
    needed = list({s.path: s for s in [*query, *gallery, *counted]}.values())
    size = recipe.model.height, recipe.model.width
    vectors = embed_files(model, needed, size, flip=config.flip, progress="images" if progress else None)
    embeddings = dict(zip((s.path for s in needed), vectors, strict=True))
    sides = _rows(embeddings, query), _rows(embeddings, gallery)
    retrieval = retrieve(query, gallery, sides, protocol.rule)
    sections = list(_sections(retrieval, config))
    for section in sections:
        write_sheet(out / "sheets" / f"{section.name}.png", retrieval, section)
    found, after = None, ""
    if pictured:
        drawn = _draw_features(counted, _rows(embeddings, counted), people, trained, config, out)
        found = {"images": len(pictured), "identities": len(people), **drawn}
        after = feature_section(found, record.get("synthetic"), out)
    write_pages(
        out,
        f"Retrieval in {Path(dataset).name}",
        _lead(metadata, retrieval, config),
        _cameras(retrieval),
        after,
        retrieval,
        split_pages(sections, config.per_page),
    )
    write_json(out / RECORD, {**settings, **_record(retrieval, sections), "features": found, "finished": True})
    return out / "index.html"


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Marks `out` as the folder of these pictures; settings determine file names, so no other run's files remain."""
    if (out / RECORD).exists():
        known = read_json(out / RECORD, "pictures of a retrieval")
        if not isinstance(known, dict) or any(
            canonical_json(known.get(key)) != canonical_json(value) for key, value in settings.items()
        ):
            raise InputError(f"{out} holds pictures of another choice; choose another --out or delete it")
        return
    if out.is_file() or not is_empty(out):
        raise InputError(f"{out} holds other files; choose another --out")
    write_json(out / RECORD, {**settings, "finished": False})


def _rows(embeddings: Embeddings, samples: Sequence[Sample]) -> NDArray[np.float32]:
    return np.stack([embeddings[s.path] for s in samples])


def _sections(retrieval: Retrieval, config: ShowConfig) -> Iterator[Section]:
    for camera in retrieval.cameras():
        for order in (order for order in ORDERS if order in config.orders):
            rows = choose(retrieval, camera, order, config.queries, config.seed)
            if rows:
                name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{camera}-{order}")
                yield Section(camera, order, name, tuple(retrieval.ranking(row, config.top) for row in rows))


def _lead(metadata: dict[str, Any], retrieval: Retrieval, config: ShowConfig) -> str:
    return (
        f"{metadata['dataset']}, {describe(metadata)}: {len(retrieval.query):,} queries, {len(retrieval.gallery):,} gallery "
        f"images of trial {config.shown_trial}; checkpoint {metadata['checkpoint'][:12]}. Right answers have a solid green "
        "frame and a tick, wrong ones a dashed orange frame and a cross; the numbers are rank and cosine distance. Gallery "
        f"images that a query must ignore are not shown. After the nearest {config.top} comes the first right image, if it "
        "is not among them."
    )


def _cameras(retrieval: Retrieval) -> str:
    rows = []
    for camera in retrieval.cameras():
        own = retrieval.rows_of(camera)
        asked = sum(s.camera == camera for s in retrieval.query)
        scores = [f"{100 * retrieval.aps[own].mean():.1f} %", f"{100 * retrieval.hits[own].mean():.1f} %"]
        rows.append([camera, f"{asked:,}", f"{len(own):,}", *(scores if len(own) else ["-", "-"])])
    return html.section("By query camera", html.table(["camera", "queries", "with a match", "mAP", "rank-1"], rows))


def _record(retrieval: Retrieval, sections: Sequence[Section]) -> dict[str, Any]:
    """The content of the pages for a program: files as they were read, AP in 0..1, ranks from 1."""
    return {
        "queries": len(retrieval.query),
        "gallery": len(retrieval.gallery),
        "sections": [
            {
                "camera": section.camera,
                "order": section.order,
                "sheet": f"sheets/{section.name}.png",
                "queries": [
                    {
                        "file": str(retrieval.query[r.row].path),
                        "pid": retrieval.query[r.row].pid,
                        "ap": r.ap,
                        "first_right": r.first.rank,
                        "top": [
                            {"file": str(retrieval.gallery[hit.row].path), "right": hit.right, "distance": hit.distance}
                            for hit in r.top
                        ],
                    }
                    for r in section.rankings
                ],
            }
            for section in sections
        ],
    }


def _draw_features(
    counted: Sequence[Sample],
    features: NDArray[np.float32],
    people: Sequence[str],
    trained: set[str],
    config: ShowConfig,
    out: Path,
) -> dict[str, Any]:
    """Draws the pictures of features [N, D] and returns the numbers beside them."""
    among = {s.pid for s in counted}
    rows = sample_people(counted, [pid for pid in people if pid in among], config.images)
    shown = [counted[i] for i in rows]
    if not shown:
        raise InputError(f"every person has more than {config.images} images; raise --images, or give --images 0")
    pictured = {s.pid for s in shown}
    coloured = [pid for pid in people if pid in pictured][: config.people]
    points = tsne(features[rows], config.seed)
    plot_groups(points, shown, out / PICTURES[0])
    plot_people(points, shown, coloured, out / PICTURES[1])
    return {
        "counted": len(counted),
        "counted_identities": len(among),
        "shown": len(rows),
        "people": coloured,
        "neighbours": NEIGHBOURS,
        "shares": [asdict(group) for group in neighbour_shares(features, counted, trained)],
    }
