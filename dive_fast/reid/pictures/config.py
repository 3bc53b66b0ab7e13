"""Settings of the retrieval pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dive_fast.reid.checks import check_fields
from dive_fast.types import InputError

Order = Literal["random", "worst", "best"]
ORDERS: tuple[Order, ...] = get_args(Order)
MOST_PEOPLE = 10  # identities in different colours


@dataclass(frozen=True)
class ShowConfig:
    """What the pages show of a retrieval."""

    queries: int = 6
    """Queries shown for each camera and order."""
    orders: tuple[Order, ...] = ORDERS
    """Which queries: random, worst (lowest AP first), best."""
    top: int = 10
    """Gallery images shown for each query."""
    shown_trial: int = 1
    """Which of the protocol's trials is shown, from 1."""
    per_page: int = 48
    """Queries on a page."""
    counted: int = 10_000
    """Images whose neighbours are counted, at most."""
    images: int = 1500
    """Images in the picture of features, at most; 0: no picture and no counts."""
    people: int = 8
    """Identities in colours in the picture of features."""
    seed: int = 0
    """Seed of random choices and of t-SNE."""
    flip: bool = True
    """Average each embedding with its mirror image's."""

    def __post_init__(self) -> None:
        count = (1, None)
        bounds = {"queries": count, "top": count, "shown_trial": count, "per_page": count, "counted": count}
        check_fields(self, **bounds, images=(0, None), people=(0, MOST_PEOPLE))
        if not self.orders or len(set(self.orders)) < len(self.orders):
            raise InputError(
                f"orders must be different ones of {', '.join(ORDERS)}, got {', '.join(self.orders) or 'none'}"
            )
