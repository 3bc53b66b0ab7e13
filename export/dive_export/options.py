"""What to export: the UNet's form, its precision, the exact savings and the sizes. The only place where each is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dive_fast.types import InputError
from dive_fast.unet.optimizations import SAVINGS

Form = Literal["plain", "bank"]
PRECISIONS = ("fp32", "fp16", "bf16")

# Made only when asked for: whether it pays depends on what runs the graph, and no GPU has told yet.
# kv_gather: no copy of keys and values for each row, every cross-attention is one node `dive::cross_attention`
# (`kernel_node`, bank form only).
ON_REQUEST = ("kv_gather",)
BANK_ONLY = ("shared_prefix", "kv_gather")


@dataclass(frozen=True)
class GraphOptions:
    """How the four networks are written down.

    `form`: what the UNet reads of the prompts, "plain" (embeddings) or "bank" (keys and values computed once).
    `precision`: type of weights and of floating inputs and outputs. `removed`: the exact savings to make, by default
    all of `SAVINGS` that the form allows. `any_size`: height and width stay free, in multiples of what the UNet's levels
    need. `kernels` makes the saving `kv_gather` beside `removed`: nodes for which TensorRT can take our kernel.
    Raises `InputError` for anything unknown, and for what form "bank" alone has with form "plain".
    """

    form: Form = "plain"
    precision: str = "fp32"
    removed: tuple[str, ...] | None = None
    any_size: bool = False
    kernels: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("form", self.form, get_args(Form)),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in known:
                raise InputError(f"export: {name} {value!r} is unknown; choose one of {', '.join(known)}")
        unknown = [name for name in self.removed or () if name not in (*SAVINGS, *ON_REQUEST)]
        if unknown:
            names = ", ".join((*SAVINGS, *ON_REQUEST))
            raise InputError(f"export: removed names {unknown}, which is no saving; choose from {names}")
        misfits = [name for name in self._asked if name in BANK_ONLY and self.form != "bank"]
        if misfits:
            raise InputError(f"export: {', '.join(misfits)} needs form 'bank', got form {self.form!r}; leave it out")

    @property
    def _asked(self) -> tuple[str, ...]:
        """What was named, in whatever order."""
        return (self.removed or ()) + (ON_REQUEST if self.kernels else ())

    @property
    def savings(self) -> tuple[str, ...]:
        """The savings made, in the order of `SAVINGS` and `ON_REQUEST`."""
        by_default = () if self.removed is not None else SAVINGS
        made = [name for name in by_default if self.form == "bank" or name not in BANK_ONLY] + list(self._asked)
        return tuple(name for name in (*SAVINGS, *ON_REQUEST) if name in made)
