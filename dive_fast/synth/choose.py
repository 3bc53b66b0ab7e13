"""From a model and a set of photos to a plan: whom it can generate, by which cameras, beside which photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

from dive_fast.data.images import image_problem
from dive_fast.data.names import abbreviate, prefix_hint
from dive_fast.data.pool import in_order
from dive_fast.data.sets import SetSpec, parse_set, read_set
from dive_fast.models.prompts import PromptTable
from dive_fast.models.sampling_file import read_sampling
from dive_fast.models.student import check_sampling
from dive_fast.progress import ProgressBar, log
from dive_fast.sampling.config import SD15, Sampling
from dive_fast.synth.config import PlanConfig
from dive_fast.synth.plan import Override, make_plan
from dive_fast.synth.planfile import SynthesisPlan
from dive_fast.types import InputError, Modality, Sample
from dive_fast.words import count

if TYPE_CHECKING:
    from dive_fast.engines import Engine


@dataclass(frozen=True)
class PlannedModel:
    """What a plan takes from a model: prompts, fingerprint, the size (height, width) of its images in pixels, and its
    folder, if it has one, which may record how it is sampled."""

    prompts: PromptTable
    fingerprint: str
    size: tuple[int, int]
    folder: Path | None

    @cached_property
    def sampling(self) -> Sampling | None:
        return None if self.folder is None else read_sampling(self.folder)

    @property
    def usual_sampling(self) -> Sampling:
        """How it is sampled where nothing else is asked for: as Stable Diffusion 1.5, if it does not say."""
        return self.sampling or SD15

    def cameras(self, modality: Modality) -> tuple[str, ...]:
        """The names of its cameras of one modality."""
        return tuple(camera.name for camera in self.prompts.cameras if camera.modality == modality)


@dataclass(frozen=True)
class Chosen:
    """The identities of a plan, their readable RGB photos (None: it needs none), and why other photos are left out."""

    pids: tuple[str, ...]
    photos: tuple[Sample, ...] | None = None
    unreadable: tuple[str, ...] = ()


def plan_pairs(
    engine: Engine,
    photos: SetSpec | str | None = None,
    config: PlanConfig = PlanConfig(),  # noqa: B008 - frozen
    overrides: Mapping[str, Override] | None = None,
) -> SynthesisPlan:
    """Returns the plan of the pairs that `engine` can generate of the people in `photos`, as `dive-fast plan` makes it.

    `photos` is a set, as "folder:PHOTOS" or "market:PATH,prefix=1"; mode "synthetic" takes none. People whom the engine
    does not know and photos that cannot be read are left out with a note. `overrides` as in `make_plan`. Raises
    `InputError` where nobody is left, for unknown identities or cameras, for photos that do not go with the mode, and for
    another sampling than a student's own.
    """
    spec = parse_set(photos) if isinstance(photos, str) else photos
    profile = engine.spec.profile
    size = profile.height, profile.width
    model = PlannedModel(engine.prompts.table, engine.spec.model_fingerprint, size, engine.folder)
    return plan_chosen(model, choose(model, spec, config), spec, config, overrides)


def choose(model: PlannedModel, photos: SetSpec | None, config: PlanConfig) -> Chosen:
    """Returns the identities of a plan and their photos; logs whom and what it leaves out, raises as `plan_pairs`."""
    if model.folder is not None:
        check_sampling(model.folder, config.sampling or model.usual_sampling)
    if (photos is None) != (config.mode == "synthetic"):
        takes = "takes no" if photos else "requires"
        raise InputError(f"--mode {config.mode} {takes} --photos")
    if photos is None:
        return Chosen(tuple(_pids(config.pids, model.prompts, None)))
    samples = read_set(photos)
    named = _pids(config.pids, model.prompts, samples)
    readable, unreadable = _readable(samples, set(named))
    pictured = {sample.pid for sample in readable}
    named = named if config.pids else [pid for pid in named if pid in pictured]
    return Chosen(tuple(named), tuple(readable), tuple(unreadable))


def plan_chosen(
    model: PlannedModel,
    chosen: Chosen,
    photos: SetSpec | None,
    config: PlanConfig,
    overrides: Mapping[str, Override] | None = None,
) -> SynthesisPlan:
    """Returns the plan of what `choose` returned for the same arguments."""
    height, width = config.size or model.size
    generated = config.mode == "synthetic"  # else the RGB side is a photo, which has its own camera
    return make_plan(
        mode=config.mode,
        pids=chosen.pids,
        cameras=model.prompts.cameras,
        ir=config.ir or model.cameras("ir"),
        rgb=config.rgb or (model.cameras("rgb") if generated else ()),
        pairs_per_identity=config.pairs,
        seed=config.seed,
        sampling=config.sampling or model.usual_sampling,
        precision=None if config.precision == "any" else config.precision,
        height=height,
        width=width,
        model_fingerprint=model.fingerprint,
        photos=chosen.photos,
        photo_root=None if photos is None else photos.root,
        strength=config.strength,
        shard_size=config.shard_size,
        image_format=config.image_format,
        overrides=overrides,
        virtual={identity.pid for identity in model.prompts.identities if identity.virtual},
    )


def _pids(requested: Sequence[str], table: PromptTable, photos: Sequence[Sample] | None) -> list[str]:
    """Returns the identities to generate: the requested ones, which the model must know, or all that are possible."""
    known = [identity.pid for identity in table.identities]
    if requested:
        # Composed, as readers of photos spell them.
        composed = [pid if pid in known else normalize("NFC", pid) for pid in requested]
        return [table.identity(pid).pid for pid in composed]
    if photos is None:
        return known
    pictured = {sample.pid for sample in photos}
    usable = [pid for pid in known if pid in pictured]
    if not usable:
        raise InputError(
            f"none of the {len(pictured):,} identities in --photos is one of the model's {len(known):,}"
            f"{prefix_hint(pictured, known)}"
        )
    if len(usable) < len(pictured):
        log(
            f"note: left out, as the model does not know them: {count(len(pictured) - len(usable), 'identity')} with photos"
        )
    return usable


def _readable(samples: Sequence[Sample], pids: set[str]) -> tuple[list[Sample], list[str]]:
    """Decodes the RGB photos of the identities and returns those that can be used, and the reasons against the others."""
    wanted = [sample for sample in samples if sample.pid in pids and sample.modality == "rgb"]
    with ProgressBar(
        in_order(lambda sample: image_problem(sample.path), wanted),
        total=len(wanted),
        desc="check photos",
        unit="image",
    ) as found:
        checked = list(found)
    unreadable = [text for _, text in checked if text is not None]
    if unreadable:
        log(f"note: {len(unreadable):,} of {count(len(wanted), 'photo')} left out: {abbreviate(unreadable)}")
    return [sample for sample, text in checked if text is None], unreadable
