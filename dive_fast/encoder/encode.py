"""Adds people to an adapter from their photos alone: one pass of an encoder, and steps of textual inversion if wanted."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dive_fast.data.images import image_problem
from dive_fast.data.names import abbreviate
from dive_fast.data.pool import in_order
from dive_fast.encoder.cache import kept_file, version
from dive_fast.encoder.folder import Encoder, check_onto, load_encoder
from dive_fast.encoder.references import people_of
from dive_fast.io import canonical_json, sha256_bytes
from dive_fast.models.adapter import Adapter, load_adapter, merge_identities, save_adapter
from dive_fast.models.files import kept_tensors
from dive_fast.models.fuse import check_base
from dive_fast.models.phrase import Phrase
from dive_fast.progress import ProgressBar
from dive_fast.train.model import Start
from dive_fast.train.personalize import adapter_run, personalize
from dive_fast.train.trainer import check_new
from dive_fast.types import InputError, Sample, shown
from dive_fast.words import count

if TYPE_CHECKING:
    from dive_fast.models.bundle import ModelBundle
    from dive_fast.train.config import PersonalizeConfig

_PEOPLE = 256  # whose rows one file holds: a rerun reads at most so many people's photos again
_SPLIT = 4  # photos from which on a person's are looked at for a second person
_LOOKED_AT = 64  # of a person's photos, at most
_ROUNDING = 1e-3  # of the rows' deviation, far less than one word lies from another


@dataclass(frozen=True)
class Encoded:
    """What an encoder makes of photos.

    `rows` float32 [people, words, D] are of `pids`; `without` are people without a usable RGB photo, `unreadable` the photos
    that could not be decoded, `mixed` people whose photos look like those of two.
    """

    pids: tuple[str, ...]
    rows: Tensor
    photos: int
    unreadable: int
    without: tuple[str, ...]
    mixed: tuple[str, ...]

    @property
    def notes(self) -> list[str]:
        """One sentence for everything that a user should look at."""
        notes = []
        if self.without:
            notes.append(f"{count(len(self.without), 'person')} without a usable RGB photo: {abbreviate(self.without)}")
        if self.unreadable:
            notes.append(f"{count(self.unreadable, 'RGB photo')} left out, as damaged; dive-fast prepare names them")
        if self.mixed:
            notes.append(
                f"{count(len(self.mixed), 'person')} whose photos look like two people: {abbreviate(self.mixed)}"
            )
        return notes


def encode_photos_of(
    encoder: Encoder, samples: Sequence[Sample], work: Path | None = None, progress: bool = True
) -> Encoded:
    """Predicts the rows of everyone in `samples` from all their RGB photos; reads infrared photos of nobody.

    With `work`, the rows of each few hundred people are kept there, and a rerun goes on behind them.
    """
    people = people_of(samples)
    pids, parts = list(people), []
    with ProgressBar(total=sum(map(len, people.values())), desc="encode", unit="photo", disable=not progress) as bar:
        for first in range(0, len(pids), _PEOPLE):
            some = [[samples[row] for row in people[pid]] for pid in pids[first : first + _PEOPLE]]
            parts.append(_kept_block(encoder, some, work))
            bar.update(sum(map(len, some)))
    if not parts:
        raise InputError("there is no RGB photo, and the encoder reads no others; check the sets")
    rows, used, mixed = (torch.cat([part[name] for part in parts]) for name in ("rows", "used", "mixed"))
    seen = [bool(count) for count in used]
    return Encoded(
        pids=tuple(pid for pid, kept in zip(pids, seen, strict=True) if kept),
        rows=rows[used > 0],
        photos=int(used.sum()),
        unreadable=sum(map(len, people.values())) - int(used.sum()),
        without=tuple(sorted({s.pid for s in samples} - {p for p, kept in zip(pids, seen, strict=True) if kept})),
        mixed=tuple(pid for pid, two in zip(pids, mixed, strict=True) if two),
    )


def _kept_block(encoder: Encoder, people: Sequence[Sequence[Sample]], work: Path | None) -> dict[str, Tensor]:
    """Returns `_block`, from a file in `work` if one has it."""
    if work is None:
        return _block(encoder, people)
    path = kept_file(work, "rows", encoder.fingerprint, [sample for person in people for sample in person])
    return kept_tensors(path, lambda: _block(encoder, people))


def _block(encoder: Encoder, people: Sequence[Sequence[Sample]]) -> dict[str, Tensor]:
    """Rows [people, words, D] (zero for people of whom no photo can be read), numbers of photos used, and who is mixed."""
    flat = [sample for person in people for sample in person]
    features, good = _features(encoder, flat)
    rows = torch.zeros(len(people), encoder.words, encoder.row_width)
    used, mixed = torch.zeros(len(people)), torch.zeros(len(people))
    at = photo = 0
    for number, person in enumerate(people):
        usable = sum(good[photo : photo + len(person)])
        mine, at, photo = features[at : at + usable], at + usable, photo + len(person)
        if usable:
            rows[number], used[number] = encoder.rows(mine), usable
            mixed[number] = looks_like_two(encoder, mine)
    return {"rows": rows, "used": used, "mixed": mixed}


def _features(encoder: Encoder, samples: Sequence[Sample]) -> tuple[Tensor, list[bool]]:
    """Features [M, F] of the photos that can be read, and which those are."""
    try:
        return encoder.source.features(samples), [True] * len(samples)
    except InputError:  # of a damaged photo, which is rare: only then is each looked at alone
        good = [problem is None for _, problem in in_order(lambda sample: image_problem(sample.path), samples)]
    readable = list(compress(samples, good))
    return (encoder.source.features(readable) if readable else torch.zeros(0, 1)), good


def looks_like_two(encoder: Encoder, features: Tensor) -> bool:
    """Returns whether photos [P, F] fall into two groups whose rows are as far apart as those of different people.

    The groups lie on both sides of the mean along the direction in which the single photos' rows differ most; each must
    have two photos.
    """
    if len(features) < _SPLIT:
        return False
    single = encoder.rows_of_each(features[:_LOOKED_AT]).flatten(1).double()
    centred = single - single.mean(dim=0)
    side = centred @ torch.linalg.svd(centred, full_matrices=False)[2][0] > 0
    if min(int(side.sum()), int((~side).sum())) < 2:
        return False
    kept = features[: len(side)]
    return float((encoder.rows(kept[side]) - encoder.rows(kept[~side])).norm()) > encoder.distribution.apart


def encode_onto(
    encoder: Encoder | Path | str,
    onto: Adapter | Path | str,
    samples: Sequence[Sample],
    out: Path | str,
    refine: PersonalizeConfig | None = None,
    bundle: ModelBundle | None = None,
    progress: bool = True,
    device: str = "cpu",
) -> tuple[Adapter, Encoded]:
    """Adds everyone in `samples` to the adapter `onto`, whose LoRA and people stay bit for bit.

    Writes the new adapter to `out`; returns it, and what was encoded. Encoder and adapter may be given by the folder or
    name that `load_encoder` and `load_adapter` take. With `refine`, `refine.steps` of textual inversion on the base
    `bundle` follow. `out`.training holds what a rerun resumes from. An encoder of another base or width, and people whom
    the adapter already has, raise `InputError` before any photo is read.
    """

    name, out = "given" if isinstance(onto, Adapter) else str(onto), Path(out)
    encoder, onto = load_encoder(encoder, device=device), load_adapter(onto)
    check_onto(encoder, onto, name)
    check_new(onto, sorted({sample.pid for sample in samples}))
    if encoder.template != onto.template:
        warnings.warn(
            f"the encoder was trained with captions {shown(encoder.template)}, the adapter has {shown(onto.template)}:"
            " people may be less like themselves",
            stacklevel=2,
        )
    run = adapter_run(out, _run_id(encoder, onto, samples))
    finished = refine is None and run.finished()  # refuses another run's adapter before photos are read
    with run.working(0):
        encoded = encode_photos_of(encoder, samples, run.work, progress)
        if refine is None or bundle is None:
            adapter = _plain(encoder, onto, encoded, run.id)
            if finished and _alike(before := load_adapter(out), adapter):
                adapter = before
            else:
                save_adapter(adapter, out)
    if refine is not None and bundle is not None:
        usable = set(encoded.pids)
        seen = [sample for sample in samples if sample.modality == "rgb" and sample.pid in usable]
        start = _start(encoder, seen, encoded)
        adapter = personalize(bundle, seen, out, refine, onto, progress, device, start=start)
    run.clear()
    return adapter, encoded


def start_of(encoder: Encoder, bundle: ModelBundle, samples: Sequence[Sample], progress: bool = True) -> Start:
    """Returns the rows that everyone in `samples` starts from in `personalize`; raises `InputError` if one has none."""
    check_base(encoder.base_fingerprint, bundle, "the encoder")
    encoded = encode_photos_of(encoder, samples, progress=progress)
    if encoded.without:
        raise InputError(
            f"{len(encoded.without):,} people have no usable RGB photo, from which an encoder starts:"
            f" {abbreviate(encoded.without)}; leave them out (--exclude)"
        )
    return _start(encoder, samples, encoded)


def _start(encoder: Encoder, samples: Sequence[Sample], encoded: Encoded) -> Start:
    sizes = [version(sample.path)[:1] for sample in samples]  # a photo that was replaced has another
    made_by = sha256_bytes(canonical_json([encoder.fingerprint, sizes]).encode())
    return Start(encoder.phrase, encoded.rows, made_by)


def _plain(encoder: Encoder, onto: Adapter, encoded: Encoded, run: str) -> Adapter:
    """The adapter with the people's rows as the encoder predicts them."""
    if not encoded.pids:
        raise InputError("no RGB photo of anyone can be read; dive-fast prepare names what is wrong with each")
    phrase = Phrase(encoder.phrase)
    identities = [phrase.identity(pid, f"person_{pid}") for pid in encoded.pids]
    merged = merge_identities(onto, identities, encoded.rows.flatten(0, 1))
    note: dict[str, Any] = {"encoder": encoder.fingerprint, "people": len(encoded.pids), "photos": encoded.photos}
    return replace(merged, metadata={**onto.metadata, "encoded": note, "run": run})


def _alike(one: Adapter, other: Adapter) -> bool:
    """Whether adapters of one run differ by rounding at most: other numbers of threads and CPUs add in another order."""
    if one.identities != other.identities:
        return False
    return torch.allclose(one.embeddings, other.embeddings, rtol=0, atol=_ROUNDING * float(one.embeddings.std()))


def _run_id(encoder: Encoder, onto: Adapter, samples: Sequence[Sample]) -> str:
    names = [f"{s.pid}/{s.camera}/{s.path.name}" for s in samples]
    return sha256_bytes("\n".join([encoder.fingerprint, onto.fingerprint, *names]).encode())
