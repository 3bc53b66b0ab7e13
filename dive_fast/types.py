"""Records that every room shares: frozen, JSON-able, standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

Modality = Literal["rgb", "ir"]
Source = Literal["real", "synthetic"]
PairMode = Literal["real-rgb", "synthetic", "photo-guided"]

MODALITIES: tuple[Modality, ...] = ("rgb", "ir")
PAIR_MODES: tuple[PairMode, ...] = ("real-rgb", "synthetic", "photo-guided")
USUAL_MODE: PairMode = "real-rgb"


def generated_sides(mode: PairMode) -> tuple[Modality, ...]:
    """The sides of a pair that an engine makes; a real photo is the RGB side as it is."""
    return ("rgb", "ir") if mode == "synthetic" else ("ir",)


class DiveError(Exception):
    """The work failed (exit code 1). The message says what failed, where, and the remedy.

    `summary` is what a command that found the failure reports with --json.
    """

    exit_code = 1

    def __init__(self, message: str = "", summary: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.summary = dict(summary or {})


class InputError(DiveError):
    """The input is bad (exit code 2). The message says what is wrong, where, and the remedy."""

    exit_code = 2


R = TypeVar("R")


def shown(value: object, most: int = 80) -> str:
    """A value as it stands in a message: on one line, cut to `most` characters."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python writes no number of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= most else text[: most - 3] + "..."


def to_dict(record: Any) -> dict[str, Any]:
    """Returns a record for JSON: nested records become dicts; tuples stay, which JSON writes as lists.

    `virtual` is left out where it is False, and `infrared` where it is empty: other records, and their hashes, are those
    of earlier versions.
    """
    unset = ("virtual", False), ("infrared", "")
    return asdict(record, dict_factory=lambda items: {k: v for k, v in items if (k, v) not in unset})


def from_dict(cls: type[R], data: object, where: str) -> R:
    """Builds a flat record from untrusted JSON; unknown or missing fields raise `InputError`, which names `where`."""
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object for {cls.__name__}, got {type(data).__name__}")
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - known)
    if unknown:
        raise InputError(
            f"{where}: unknown field(s) {', '.join(unknown)[:80]} in {cls.__name__}; it has {sorted(known)}"
        )
    try:
        return cls(**data)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except TypeError as error:
        raise InputError(f"{where}: {cls.__name__} is incomplete: {error}") from error


def learned_words(text: str) -> list[str]:
    """Returns the learned words of a text, as `<class_12>`, in order."""
    return re.findall(r"<[^<>]*>", text)


@dataclass(frozen=True)
class Camera:
    """A camera and its code word in prompts.

    `code` is drawn once and stored with the adapter, since the LoRA was trained on this code. Plain words may follow it,
    by which the base knows photos of this kind, as "monochrome".
    """

    name: str
    modality: Modality
    code: str

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise InputError(
                f"camera {shown(self.name)}: modality must be one of {MODALITIES}, got {shown(self.modality)}"
            )


@dataclass(frozen=True)
class Identity:
    """An identity and its placeholder in prompts: a learned word like `<class_12>`, or a phrase with several of them.

    A `virtual` identity was drawn at random and is nobody (`dive-fast virtual`). `infrared` is the placeholder of infrared
    prompts if they have another: the same words, with tones (`models/tones.py`) before some.
    """

    pid: str
    placeholder: str
    virtual: bool = False
    infrared: str = ""

    def text(self, modality: Modality) -> str:
        """Returns the placeholder of prompts of a modality."""
        return (modality == "ir" and self.infrared) or self.placeholder

    @property
    def tones(self) -> list[str]:
        """The words that only infrared prompts have, in order."""
        own = learned_words(self.placeholder)
        return [word for word in learned_words(self.infrared) if word not in own]

    @property
    def words(self) -> list[str]:
        """The learned words of the placeholder, in order, and then the tones; each is one token with its own row."""
        return learned_words(self.placeholder) + self.tones


@dataclass(frozen=True)
class Sample:
    """One image file of one identity by one camera."""

    path: Path
    pid: str
    camera: str
    source: Source = "real"
    modality: Modality = "rgb"


@dataclass(frozen=True)
class PairSpec:
    """The order for one pair.

    `seed` depends on (run seed, pid, index) only, never on sharding, batch or machine; both generated sides start from
    the same noise. `rgb` and `ir` are camera names; `photo` is the real RGB photo, relative to the plan's `photo_root`
    (None when both sides are generated). `virtual` as in `Identity`.
    """

    pair_id: str
    pid: str
    index: int
    rgb: str
    ir: str
    seed: int
    photo: str | None = None
    virtual: bool = False


@dataclass(frozen=True)
class Profile:
    """The row counts (UNet batch rows, guidance included) and the image size in pixels that an engine accepts."""

    rows_min: int
    rows_opt: int
    rows_max: int
    height: int
    width: int


@dataclass(frozen=True)
class EngineSpec:
    """`engine.json`: what an engine folder holds and what it was made from.

    `files` maps a part (text_encoder, unet, vae_decoder, vae_encoder; with variant "kv-cache" also prompt_bank) to a path
    relative to the folder. `model_fingerprint` is that of the fused model; `gpu` is None for an engine that is bound to
    no GPU. `sha256` maps every file of the folder that changes what the engine makes (relative path) to its hash.

    `variant` is what the UNet reads of the prompts: "plain", their embeddings, or "kv-cache", keys and values computed
    once. `optimizations` names those of its graph. `row_counts` are the only row counts that it runs (calls are padded
    to the next one); empty: any up to the profile's. With `any_size` other sizes than the profile's run too.
    """

    backend: str
    precision: str
    profile: Profile
    model_fingerprint: str
    files: dict[str, str]
    versions: dict[str, str]
    gpu: str | None = None
    sha256: dict[str, str] = field(default_factory=dict)
    variant: Literal["plain", "kv-cache"] = "plain"
    optimizations: tuple[str, ...] = ()
    row_counts: tuple[int, ...] = ()
    any_size: bool = False


@dataclass(frozen=True)
class PairRecord:
    """One finished pair: its spec, its files (relative to the dataset) with hashes and bytes, and the engine.

    A rejected pair whose photo could not be read has no hashes ("").
    """

    spec: PairSpec
    files: dict[str, str]
    sha256: dict[str, str]
    sizes: dict[str, int]
    engine_fingerprint: str
    scores: dict[str, float]
    status: Literal["done", "rejected"] = "done"

    @property
    def lost(self) -> bool:
        """Whether synth could not read the pair's photo, so that there are no files."""
        return self.status == "rejected" and not any(self.sha256.values())
