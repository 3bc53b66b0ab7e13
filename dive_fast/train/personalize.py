"""Textual inversion of identities + modality LoRA on a frozen base: DiVE's recipe (arXiv 2503.12472), repeatable.

Vocabulary rows for each person, LoRA on every attention projection of the UNet, a fixed code word per camera. Only the
rows and the LoRA learn; the rows have no weight decay, which would pull every identity towards nobody. DiVE learns one
row a person; here a person may be a phrase of several (`Phrase`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.data.prepare import check_space
from dive_fast.distributed import first_rank_first, leading
from dive_fast.io import clear_disk_errors, lock_folder, sha256_bytes
from dive_fast.models.adapter import Adapter, load_adapter, save_adapter
from dive_fast.models.phrase import ONE_WORD
from dive_fast.train.course import STAGES, Course, stages_of
from dive_fast.train.curves import Curve
from dive_fast.train.diffusion import Weighting
from dive_fast.train.loop import run_stage
from dive_fast.train.photos import Photos, samples_of
from dive_fast.train.precision import Compute
from dive_fast.train.prior import Prior, made_id
from dive_fast.train.samples import Samples
from dive_fast.types import InputError, Sample

if TYPE_CHECKING:
    from dive_fast.models.bundle import ModelBundle


@dataclass(frozen=True)
class PersonalizeConfig:
    """How long and how fast identities and LoRA learn; the defaults suit the pocket model (DiVE on SD 1.5: both 5e-5).

    Learning onto an adapter, its phrase and template take the place of `phrase` and `template`.
    """

    identity_steps: int = 4000  # first, of identities alone on the base; they then stay. 0: all at once, as DiVE
    steps: int = 1500
    batch: int = 32
    rank: int = 8
    phrase: str = ONE_WORD  # how a person is put into words, see `Phrase`; DiVE: one word
    words_from: str | None = None  # tagger folder that reads where mixed words start; None: all words of a mix alike
    template: str | None = None  # the one caption of all photos; None: twenty sentences, as DiVE
    phrase_drop: float = 0.0  # share of a phrase's parts that a caption leaves out, so that each part learns its own
    text_noise: float = 0.0  # on text embeddings while the LoRA learns, in their deviations. See `Learner.loss`
    lora_lr: float = 2e-3
    token_lr: float = 3e-3  # of free vectors
    mix_lr: float = 0.07  # of the weights of words that mix
    warmup: int = 50
    ir_share: float = 0.5  # of each batch, when there are infrared photos
    noisy_share: float = 0.75  # of timesteps, from the noisier half, where garments are decided (DiVE: 0.5)
    identity_noisy_share: float = 0.4  # where identities learn alone; there the clean half tells words apart better
    identities_from_ir: bool = False  # DiVE: True. See `Learner.embed`
    bare_code: float = 0.1  # share of captions that are the camera's code alone (DiVE: 0.5)
    empty_captions: float = 0.05  # keeps the unconditional half of guidance true to the new cameras
    weight_cap: float = 8.0  # of the loss weight 1 / sqrt(SNR), of epsilon's error
    weight_decay: float = 0.01  # of the LoRA; identity rows never decay
    average: float = 0.995  # decay of the moving average of what is learned, which the adapter gets; 0: none is kept
    weighting: Weighting = "debiased"  # of timesteps in the loss, see `Objective`; DiVE: plain
    snr_gamma: float = 5.0  # of weighting min-snr
    seed: int = 0
    save_every: int = 100
    tensorboard: bool = False  # also log for TensorBoard
    compute: Compute = field(default_factory=Compute)
    prior: Prior = field(default_factory=Prior)
    samples: Samples = field(default_factory=Samples)


def personalize(
    bundle: ModelBundle,
    photos: Photos,
    out: Path,
    config: PersonalizeConfig,
    onto: Adapter | None = None,
    progress: bool = True,
    device: str = "cpu",
    class_photos: Sequence[Path] = (),
) -> Adapter:
    """Learns the people (and, without `onto`, the cameras) of `photos`; `bundle` is changed in place and used up.

    People first, from RGB photos and the base as it is, which knows what its words look like; then the LoRA, with the people
    fixed. Learned together, as DiVE does and `identity_steps` 0 asks for, each takes up what the other lacks.

    With `onto`, a trained adapter of this base, its LoRA and its identities stay bit for bit and only the rows of new
    people learn. The adapter folder `out` appears whole at the end; beside it `out`.training holds the loss log and the
    state from which an unfinished run resumes. In a process group the ranks share each batch. Bad data raises
    `InputError` before any training, a full disk `DiveError`.

    `photos` are files, encoded here, or the latents of a prepared set. `class_photos` are files for `config.prior`, which
    without them has the base make some.
    """
    run, work = run_id(bundle, samples_of(photos), config, onto, class_photos), training_folder(out)
    finished = finished_adapter(out, run)
    if finished is not None:
        _clear(work)
        return finished
    stages = stages_of(config, work, run, progress)
    for begun in stages:
        begun.saved()  # of other settings: said before the photos are encoded
    course = Course(bundle, photos, config, onto, device, progress)
    check_disk(course, out)
    with _claimed(out):
        latents = course.encoded(course.photos, progress and leading())
        prior = course.class_photos(class_photos, work, progress and leading())
        for lesson in course.lessons(stages, latents, prior):
            course.learner.learns(lesson.rows, lesson.lora)
            run_stage(lesson.stage, course.learner.groups, lesson.loss_at, lesson.clip, course.watch(lesson.stage))
        facts = {**asdict(config), "photos": len(latents.samples), "run": run}
        adapter = course.learner.adapter(course.cameras, facts)
        with first_rank_first():
            if finished_adapter(out, run) is None:
                save_adapter(adapter, out)
                _clear(work)
    return adapter


def training_folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.training")


def finished_adapter(out: Path, run: str) -> Adapter | None:
    """What a run left in `out`, None if it is not finished; what another run left there raises `InputError`."""
    if not (out / "adapter.json").exists():
        return None
    adapter = load_adapter(out)
    if adapter.metadata.get("run") != run:
        raise InputError(f"{out} holds an adapter of other data or settings; choose another --out or delete it")
    return adapter


def check_disk(course: Course, out: Path) -> None:
    """Raises `DiveError` when the disk of `out` has too little space for what a run is still to write."""
    there = sum(file.stat().st_size for file in training_folder(out).glob("*") if file.is_file())
    check_space(out, max(0, course.disk_needed() - there))


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """Keeps other runs away from `out` while the block runs, and clears away what a killed one left half written.

    Raises `InputError` when another run is at work there.
    """
    if not leading():
        yield
        return
    work = training_folder(out)
    with clear_disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
        stream = (work / "lock").open("ab")
    with stream:
        lock_folder(stream, out)
        for temporary in work.glob(".*.????????.tmp"):  # as io.atomic_path names them
            temporary.unlink()
        for folder in out.parent.glob(f".{out.name}.????????.tmp"):  # as models.files names an adapter's
            shutil.rmtree(folder)
        yield


def _clear(work: Path) -> None:
    """Removes what a finished run needs no more."""
    for pattern in ("*.state", "class-*.safetensors"):
        for file in work.glob(pattern):
            file.unlink(missing_ok=True)


def loss_curves(out: Path) -> list[Curve]:
    """The training losses of the adapter folder `out`."""
    logs = {name: training_folder(out) / f"{name}-loss.jsonl" for name in STAGES}
    return [Curve(path, "loss", f"{name}: loss") for name, path in logs.items() if path.exists()]


def run_id(
    bundle: ModelBundle, samples: Sequence[Sample], config: PersonalizeConfig, onto: Adapter | None,
    class_photos: Sequence[Path],
) -> str:  # fmt: skip
    """Names what a run learns from, so that a state is never resumed with other data or settings.

    What changes the numbers by rounding at most, and what is only looked at, may differ.
    """
    names = [f"{s.pid}/{s.camera}/{s.path.name}" for s in samples] + [f"class/{path.name}" for path in class_photos]
    learns = replace(
        config, save_every=0, tensorboard=False, samples=Samples(), compute=Compute(config.compute.mixed_precision)
    )
    parts = [bundle.fingerprint, onto.fingerprint if onto else "", repr(learns), *names]
    if config.prior.prior_weight and not class_photos:
        samples_by = config.samples.sample_steps, config.samples.sample_guidance
        parts.append(made_id(bundle, config.prior, *samples_by, config.seed))
    return sha256_bytes("\n".join(parts).encode())
