"""Settings of the retrieval pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from dive_fast.settings import NonNegativeInt, PositiveInt, Settings, Within
from dive_fast.types import InputError

Order = Literal["random", "worst", "best"]
ORDERS: tuple[Order, ...] = get_args(Order)
MOST_PEOPLE = 10  # identities in different colours


@dataclass(frozen=True)
class ShowConfig(Settings):
    """What the pages show of a retrieval."""

    queries: PositiveInt = 6
    """Queries shown for each camera and order."""
    orders: tuple[Order, ...] = ORDERS
    """Which queries: random, worst (lowest AP first), best."""
    top: PositiveInt = 10
    """Gallery images shown for each query."""
    shown_trial: PositiveInt = 1
    """Which of the protocol's trials is shown, from 1."""
    per_page: PositiveInt = 48
    """Queries on a page."""
    counted: PositiveInt = 10_000
    """Images whose neighbours are counted, at most."""
    images: NonNegativeInt = 1500
    """Images in the picture of features, at most; 0: no picture and no counts."""
    people: Annotated[int, Within(0, MOST_PEOPLE)] = 8
    """Identities in colours in the picture of features."""
    seed: NonNegativeInt = 0
    """Seed of random choices and of t-SNE."""
    flip: bool = True
    """Average each embedding with its mirror image's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.orders or len(set(self.orders)) < len(self.orders):
            raise InputError(f"orders must be different ones of {', '.join(ORDERS)}, got {self.orders}")
