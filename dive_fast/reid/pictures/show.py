"""Pictures of a retrieval: what queries find, and where real and synthetic images lie in feature space."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dive_fast.io import canonical_json, read_json, sha256_bytes, write_json
from dive_fast.reid.comparison.plots import require_matplotlib
from dive_fast.reid.data.dataset import check_samples, load_images
from dive_fast.reid.evaluation.evaluate import check_sides, check_strangers, embed, seen_people
from dive_fast.reid.evaluation.protocols import Permutations, Protocol, draw_trials, sentence
from dive_fast.reid.models.model import ReidModel
from dive_fast.reid.pictures.features import (
    NEIGHBOURS,
    neighbour_shares,
    people_in_turn,
    require_tsne,
    sample_people,
    tsne,
)
from dive_fast.reid.pictures.page import Section, split_pages, write_pages
from dive_fast.reid.pictures.plots import MOST_PEOPLE, draw_features, feature_section
from dive_fast.reid.pictures.rank import ORDERS, Retrieval, check_orders, choose, retrieve
from dive_fast.reid.pictures.sheet import write_sheet
from dive_fast.reid.training.checkpoint import load_model
from dive_fast.reid.training.config import ReidConfig
from dive_fast.report import html
from dive_fast.types import InputError, Sample

RECORD = "show.json"
_CHUNK = 512  # images decoded at once: 64 MB at 288x144


@dataclass(frozen=True)
class ShowConfig:
    """What is shown: `queries` of each query camera in each of `orders`, with `top` images of `shown_trial`'s gallery.

    A page has at most `per_page` queries. Features of at most `counted` images are counted and of `images` pictured (0: none
    are), `people` of them in colours. Random choices come from `seed`. `flip` as in `evaluate_reid`.
    """

    queries: int = 6
    orders: tuple[str, ...] = ORDERS
    top: int = 10
    shown_trial: int = 1
    per_page: int = 48
    counted: int = 10_000
    images: int = 1500
    people: int = 8
    seed: int = 0
    flip: bool = True

    def __post_init__(self) -> None:
        check_orders(self.orders)
        for name in ("queries", "top", "shown_trial", "per_page", "counted"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.images < 0 or not 0 <= self.people <= MOST_PEOPLE:
            raise InputError(
                f"images must be 0 or more and people 0 to {MOST_PEOPLE}, got {self.images}, {self.people}"
            )


def show_retrieval(
    checkpoint: Path | str,
    query: Sequence[Sample],
    gallery: Sequence[Sample],
    out: Path | str,
    config: ShowConfig = ShowConfig(),
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

    Features are pictured and counted of the test half, and of `features_of`. `out` must be new, empty or
    hold the pictures of the same checkpoint, images and choices, which are then made again.
    Raises `InputError` as `evaluate_reid` does, and for an `out` that holds anything else.
    """
    out = Path(out)
    check_sides(query, gallery, protocol)
    trials = draw_trials(query, gallery, protocol, permutations)
    if config.shown_trial > len(trials):
        raise InputError(f"trial {config.shown_trial} is not there: the protocol has {len(trials)}")
    pictured = list({s.path: s for s in [*(features_of or ()), *query, *gallery]}.values())
    if config.images:
        require_matplotlib()
        require_tsne()
        check_samples(pictured, "features")
    model, recipe, record = load_model(checkpoint, device)
    if not other_people:
        check_strangers(seen_people(record), query, gallery)
    facts = {
        **protocol.facts(),
        "dataset": dataset,
        "checkpoint": record["sha256"],
        "shown_trial": config.shown_trial,
        "synthetic_in_training": record.get("synthetic"),
        "other_people": other_people,
    }
    settings = {"config": asdict(config), "facts": facts, "images": _listed([*query, *gallery, *pictured])}
    _claim(out, settings)

    features = _Embedder(model, recipe, config.flip, progress)
    sides = {"query": list(query), "gallery": list(gallery)}
    sides[protocol.drawn_side] = [sides[protocol.drawn_side][i] for i in trials[config.shown_trial - 1]]
    vectors = features(sides["query"], "queries"), features(sides["gallery"], "gallery")
    retrieval = retrieve(sides["query"], sides["gallery"], vectors, protocol.rule)
    sections = list(_sections(retrieval, config))
    for section in sections:
        write_sheet(out / "sheets" / f"{section.name}.png", retrieval, section)
    found = _pictured(pictured, features, set(record["pids"]), config, out) if config.images else None
    write_pages(
        out,
        f"Retrieval in {Path(dataset).name}",
        _lead(facts, retrieval, config),
        [_cameras(retrieval)],
        [] if found is None else [feature_section(found, facts["synthetic_in_training"], out)],
        retrieval,
        split_pages(sections, config.per_page),
    )
    write_json(out / RECORD, {**settings, **_record(retrieval, sections), "features": found, "finished": True})
    return out / "index.html"


def _listed(samples: Sequence[Sample]) -> str:
    """A hash of which files are shown, and as whom."""
    return sha256_bytes(
        canonical_json([[str(s.path), s.pid, s.camera, s.modality, s.source] for s in samples]).encode()
    )


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Makes `out` the folder of these pictures; names of files follow from the settings, so no other run's stay behind."""
    if (out / RECORD).exists():
        known = read_json(out / RECORD, "pictures of a retrieval")
        if not isinstance(known, dict) or any(
            canonical_json(known.get(key)) != canonical_json(value) for key, value in settings.items()
        ):
            raise InputError(
                f"{out} holds pictures of another checkpoint, data or choice; choose another --out or delete it"
            )
        return
    if out.exists() and (not out.is_dir() or any(not entry.name.startswith(f".{RECORD}.") for entry in out.iterdir())):
        raise InputError(f"{out} holds other files; choose another --out")
    write_json(out / RECORD, {**settings, "finished": False})


class _Embedder:
    """Unit features of samples, a chunk of images in memory at a time, no image twice."""

    def __init__(self, model: ReidModel, config: ReidConfig, flip: bool, progress: bool):
        self._model, self._flip, self._progress = model, flip, progress
        self._size = (config.model.height, config.model.width)
        self._known: dict[Path, NDArray[np.float32]] = {}

    def __call__(self, samples: Sequence[Sample], what: str) -> NDArray[np.float32]:
        """float32 [N, D], in the order of `samples`; `what` names the progress bar."""
        check_samples(samples, what)
        new = [s for s in samples if s.path not in self._known]
        starts = range(0, len(new), _CHUNK)
        for start in tqdm(starts, desc=what, unit="chunk", disable=not self._progress, leave=False):
            part = new[start : start + _CHUNK]
            vectors = embed(self._model, load_images(part, *self._size), self._flip)
            self._known.update(zip((s.path for s in part), vectors, strict=True))
        return np.stack([self._known[s.path] for s in samples])


def _sections(retrieval: Retrieval, config: ShowConfig) -> Iterator[Section]:
    for camera in retrieval.cameras():
        for order in check_orders(config.orders):
            rows = choose(retrieval, camera, order, config.queries, config.seed)
            if rows:
                name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{camera}-{order}")
                yield Section(camera, order, name, tuple(retrieval.ranking(row, config.top) for row in rows))


def _lead(facts: dict[str, Any], retrieval: Retrieval, config: ShowConfig) -> str:
    return (
        f"{facts['dataset']}, {sentence(facts)}: {len(retrieval.query):,} queries, {len(retrieval.gallery):,} gallery "
        f"images of trial {config.shown_trial}; checkpoint {facts['checkpoint'][:12]}. Right answers have a whole green "
        "frame and a tick, wrong ones a dashed orange frame and a cross; the numbers are rank and cosine distance. Gallery "
        f"images that a query must ignore are not shown. After the nearest {config.top} comes the first right image, "
        "if it is not among them."
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
    """What the pages show, for a program: files as they were read, AP in 0..1, ranks from 1."""
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


def _pictured(
    samples: Sequence[Sample], features: _Embedder, trained: set[str], config: ShowConfig, out: Path
) -> dict[str, Any]:
    """Draws the pictures of features and returns the numbers that stand beside them."""
    people = people_in_turn(samples, trained, config.seed)
    counted = [samples[i] for i in sample_people(samples, people, config.counted)]
    among = {s.pid for s in counted}
    rows = sample_people(counted, [pid for pid in people if pid in among], config.images)
    shown = [counted[i] for i in rows]
    if not shown:
        raise InputError(f"no person has as few as {config.images} images; raise images, or leave the picture out")
    vectors = features(counted, "features")
    pictured = {s.pid for s in shown}
    coloured = [pid for pid in people if pid in pictured][: config.people]
    draw_features(tsne(vectors[rows], config.seed), shown, coloured, out)
    return {
        "images": len(samples),
        "identities": len(people),
        "counted": len(counted),
        "counted_identities": len(among),
        "shown": len(rows),
        "people": coloured,
        "neighbours": NEIGHBOURS,
        "shares": [asdict(group) for group in neighbour_shares(vectors, counted, trained)],
    }
