"""What to export: the UNet's form, its precision, the exact savings and the sizes. The only place where each is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dive_fast.types import InputError

Form = Literal["plain", "bank"]
PRECISIONS = ("fp32", "fp16", "bf16")

# time_table: the time embedding's layers and every resnet's projection of it are one table, gathered by timestep.
# shared_prefix: what comes before the first cross-attention is computed once an image, not once a row (bank form only).
# unit_scale: no division by 1.0 behind every resnet and attention.
# fused_qkv: one matrix multiplication for queries, keys and values of a self-attention.
SAVINGS = ("time_table", "shared_prefix", "unit_scale", "fused_qkv")
BANK_ONLY = ("shared_prefix",)


@dataclass(frozen=True)
class GraphOptions:
    """How the four networks are written down.

    `form`: what the UNet reads of the prompts, "plain" (embeddings) or "bank" (keys and values computed once).
    `precision`: type of weights and of floating inputs and outputs. `removed`: the exact savings to make, by default
    all that the form allows. `any_size`: height and width stay free, in multiples of what the UNet's levels need.
    Raises `InputError` for anything unknown, and for `shared_prefix` with form "plain".
    """

    form: Form = "plain"
    precision: str = "fp32"
    removed: tuple[str, ...] | None = None
    any_size: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("form", self.form, get_args(Form)),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in known:
                raise InputError(f"export: {name} {value!r} is unknown; choose one of {', '.join(known)}")
        unknown = [name for name in self.removed or () if name not in SAVINGS]
        if unknown:
            raise InputError(f"export: removed names {unknown}, which is no saving; choose from {', '.join(SAVINGS)}")
        misfits = [name for name in self.removed or () if name in BANK_ONLY and self.form != "bank"]
        if misfits:
            raise InputError(f"export: {', '.join(misfits)} needs form 'bank', got form {self.form!r}; leave it out")

    @property
    def savings(self) -> tuple[str, ...]:
        """The savings made, in the order of `SAVINGS`."""
        fitting = tuple(name for name in SAVINGS if self.form == "bank" or name not in BANK_ONLY)
        return fitting if self.removed is None else tuple(name for name in SAVINGS if name in self.removed)
