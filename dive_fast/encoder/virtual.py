"""People who do not exist: rows drawn from where those of real people lie, none nearer to anyone than people are.

Parts of a phrase (hair, coat, shoes) are each of a person drawn for that part. Without parts rows are drawn from a
Gaussian, as Vec2Face samples face embeddings (arXiv 2409.02979). Another sampler replaces `Sampler`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dive_fast.encoder.config import VirtualConfig
from dive_fast.encoder.distribution import nearest
from dive_fast.encoder.folder import Encoder, check_onto
from dive_fast.models.adapter import Adapter, merge_identities
from dive_fast.models.phrase import Phrase
from dive_fast.progress import ProgressBar
from dive_fast.train.trainer import check_new
from dive_fast.types import DiveError, InputError

Sampler = Callable[[int, torch.Generator], Tensor]
"""Draws rows float32 [count, words * D]."""
_BLOCK = 256  # rows drawn at once: a number of people begins with the people of a smaller number
_TRIES = 50  # draws for each person after which there is no room


@dataclass(frozen=True)
class Drawn:
    """Rows float32 [people, words * D] of nobody, and the numbers that a report needs.

    `limit` is the least distance allowed; `to_real` [people] are the distances to the nearest real person, `between` [N]
    those of real people to theirs. `uncompared` are people of the adapter whose rows are of another phrase.
    """

    rows: Tensor
    limit: float
    to_real: Tensor
    between: Tensor
    refused: int
    uncompared: int

    def facts(self) -> dict[str, Any]:
        """Returns the numbers for JSON; distances as quantiles of 5, 50 and 95 %."""
        return {
            "least_distance": round(self.limit, 6),
            "nearest_real_person": _quantiles(self.to_real),
            "nearest_real_person_of_real_people": _quantiles(self.between),
            "refused": self.refused,
            "not_compared": self.uncompared,
        }


def _quantiles(distances: Tensor) -> list[float]:
    wanted = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    return [round(value, 6) for value in torch.quantile(distances.double(), wanted).tolist()]


def draw_people(encoder: Encoder, onto: Adapter, config: VirtualConfig, sampler: Sampler | None = None) -> Drawn:
    """Draws `config.people` rows of nobody by `sampler`, by default `own_sampler`.

    Real are the people that the encoder was trained on, and those of `onto`. Raises `DiveError` when there is no room.
    """
    spread = encoder.distribution
    sampler = sampler or own_sampler(encoder)
    known, uncompared = _people(encoder, onto)
    real, between = torch.cat([spread.tokens, known[False]]), spread.between()
    limit = float(torch.quantile(between.double(), config.percentile / 100))
    generator = torch.Generator().manual_seed(config.seed)
    taken, refused, before = known[True], 0, len(known[True])
    with ProgressBar(total=config.people, desc="draw", unit="person", leave=False) as bar:
        while len(taken) - before < config.people:
            if refused > _TRIES * config.people + _BLOCK:
                raise DiveError(
                    f"only {len(taken) - before:,} of {config.people:,} virtual people found in {refused:,} draws that lie"
                    f" {limit:.3g} from everyone; lower --people or --percentile, or train the encoder on more people"
                )
            new = _apart(sampler(_BLOCK, generator), real, taken, limit)
            refused += _BLOCK - len(new)
            taken = torch.cat([taken, new])
            bar.update(min(len(taken) - before, config.people) - bar.n)
    rows = taken[before : before + config.people]
    return Drawn(rows, limit, nearest(rows, real), between, refused, uncompared)


def own_sampler(encoder: Encoder) -> Sampler:
    """Recombines the parts of the encoder's people; a phrase of one part is drawn from their Gaussian.

    A Gaussian of many words lies between people: such a word is no colour, and images of one person differ in it.
    """
    lengths = [words * encoder.row_width for words in Phrase(encoder.phrase).parts]
    spread = encoder.distribution
    return spread.draw if len(lengths) == 1 else partial(spread.recombine, lengths)


def _people(encoder: Encoder, onto: Adapter) -> tuple[dict[bool, Tensor], int]:
    """The rows [P, words * D] of the adapter's virtual (True) and real (False) people, and how many are of other phrases."""
    length, at, uncompared = encoder.words * encoder.row_width, 0, 0
    found: dict[bool, list[Tensor]] = {True: [], False: []}
    for identity in onto.identities:
        own = onto.embeddings[at : at + len(identity.words) - len(identity.tones)]
        rows, at = own.flatten(), at + len(identity.words)
        if len(rows) == length:
            found[identity.virtual].append(rows)
        else:
            uncompared += not identity.virtual
    return {kind: torch.stack(rows) if rows else torch.zeros(0, length) for kind, rows in found.items()}, uncompared


def _apart(drawn: Tensor, real: Tensor, taken: Tensor, limit: float) -> Tensor:
    """Returns the drawn rows that lie at least `limit` from all real and taken ones and from each other, in order."""
    free = drawn[(nearest(drawn, real) >= limit) & (nearest(drawn, taken) >= limit)]
    kept: list[int] = []
    distances = torch.cdist(free.double(), free.double())
    for row in range(len(free)):
        if all(distances[row, other] >= limit for other in kept):
            kept.append(row)
    return free[kept]


def add_virtual(
    encoder: Encoder, onto: Adapter, name: Path | str, config: VirtualConfig, sampler: Sampler | None = None
) -> tuple[Adapter, Drawn]:
    """Returns the adapter `onto` with virtual people, marked as such; its LoRA and people stay bit for bit.

    An encoder of another base or width, and names that the adapter already has, raise `InputError`; `name` names it there.
    """
    check_onto(encoder, onto, name)
    pids = [f"{config.prefix}{number:06d}" for number in range(1, config.people + 1)]
    if not config.prefix.isalnum() or not config.prefix.isascii():
        raise InputError(f"--prefix {config.prefix[:80]!r}: names start with letters or digits, at least one")
    check_new(onto, pids)
    drawn = draw_people(encoder, onto, config, sampler)
    phrase = Phrase(encoder.phrase)
    identities = [replace(phrase.identity(pid, f"virtual_{pid}"), virtual=True) for pid in pids]
    merged = merge_identities(onto, identities, drawn.rows.unflatten(1, (encoder.words, -1)).flatten(0, 1))
    note = {"encoder": encoder.fingerprint, "people": config.people, "seed": config.seed, **drawn.facts()}
    return replace(merged, metadata={**onto.metadata, "virtual": note}), drawn
