"""Textual inversion of identities + modality LoRA on a frozen base: DiVE's recipe (arXiv 2503.12472), repeatable.

One vocabulary row per person, LoRA on every attention projection of the UNet, a fixed code word per camera. Only the
rows and the LoRA learn; the rows have no weight decay, which would pull every identity towards nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dive_fast.io import sha256_bytes
from dive_fast.models.adapter import Adapter, merge_identities, save_adapter
from dive_fast.models.fuse import add_identity_tokens
from dive_fast.models.lora import add_lora, lora_state, remove_lora, set_lora_state
from dive_fast.models.prompts import TEMPLATES, render
from dive_fast.train.curves import Curve
from dive_fast.train.diffusion import Objective, noisy_batch
from dive_fast.train.embedding import PartlyLearned
from dive_fast.train.loop import Stage, run_stage
from dive_fast.train.parallel import first_rank_first, my_rows
from dive_fast.train.photos import BalancedDraw, LatentPhotos, encode_photos, teaching
from dive_fast.types import Camera, Identity, InputError, Sample

if TYPE_CHECKING:
    import torch

    from dive_fast.models.bundle import ModelBundle

# The codes of the published checkpoints, so that ours and theirs name cameras alike.
PUBLISHED_CODES = {
    "cam1": "W5Eq", "cam2": "2Agp", "cam3": "8miP", "cam4": "HXY6", "cam5": "ITaw", "cam6": "dx1V", "cam7": "hFOc",
}  # fmt: skip


_STAGE = "personalize"


@dataclass(frozen=True)
class PersonalizeConfig:
    """How long and how fast identities and LoRA learn; the defaults suit the pocket model (DiVE on SD 1.5: both 5e-5)."""

    steps: int = 3000
    batch: int = 16
    rank: int = 32
    lora_lr: float = 4e-3
    token_lr: float = 5e-3
    warmup: int = 50
    ir_share: float = 0.35  # of each batch, when there are infrared photos
    identities_from_ir: bool = False  # DiVE: True. See `_Learner.embed`
    bare_code: float = 0.1  # share of captions that are the camera's code alone (DiVE: 0.5)
    empty_captions: float = 0.05  # keeps the unconditional half of guidance true to the new cameras
    weight_cap: float = 8.0  # of the loss weight 1 / sqrt(SNR), where the base predicts epsilon
    weight_decay: float = 0.01  # of the LoRA; identity rows never decay
    average: float = 0.995
    seed: int = 0
    save_every: int = 100


def camera_code(name: str) -> str:
    """The fixed code word of a camera: the published one, else four characters derived from its name."""
    if name in PUBLISHED_CODES:
        return PUBLISHED_CODES[name]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    digest = hashlib.sha256(f"dive_fast camera {name}".encode()).digest()
    return "".join(letters[b % len(letters)] for b in digest[:4])


def cameras_of(samples: Sequence[Sample]) -> tuple[Camera, ...]:
    """The cameras of a training set with their codes, sorted by name."""
    modality = {s.camera: s.modality for s in samples}
    return tuple(Camera(name, modality[name], camera_code(name)) for name in sorted(modality))


def placeholder(pid: str) -> str:
    """The vocabulary word of an identity: its name, not its position, so that learning more people renames nobody."""
    return f"<person_{pid.lower()}>"


def personalize(
    bundle: ModelBundle,
    samples: Sequence[Sample],
    out: Path,
    config: PersonalizeConfig,
    onto: Adapter | None = None,
    progress: bool = True,
) -> Adapter:
    """Learns the people (and, without `onto`, the cameras) of `samples`; `bundle` is changed in place and used up.

    With `onto`, a trained adapter of this base, its LoRA and its identities stay bit for bit and only the rows of new
    people learn. The adapter folder `out` appears whole at the end; beside it `out`.training holds the loss log and the
    state from which an unfinished run resumes. In a process group the ranks share each batch. Bad data raises
    `InputError` before any training.
    """
    from dive_fast.models.adapter import load_adapter

    identities = tuple(Identity(pid, placeholder(pid)) for pid in sorted({s.pid for s in samples}))
    run = _run_id(bundle, samples, config, onto)
    finished = out / "adapter.json"
    if finished.exists():
        adapter = load_adapter(out)
        if adapter.facts.get("run") != run:
            raise InputError(f"{out} holds an adapter of other data or settings; choose another --out or delete it")
        return adapter
    cameras = _check(bundle, samples, identities, onto)
    stage = Stage(
        _STAGE, _training(out), config.steps, config.token_lr, config.warmup,
        config.save_every, average=config.average, identity=run, progress=progress,
    )  # fmt: skip
    stage.saved()  # of other settings: said before the photos are encoded
    if onto is not None and not config.identities_from_ir:  # the LoRA is fixed: the rest would teach nothing
        samples = [sample for sample, kept in zip(samples, teaching(samples), strict=True) if kept]
    photos = encode_photos(bundle, samples, progress=progress)
    learner = _Learner(bundle, identities, config, onto)
    captions = _Captions(bundle, cameras, identities)
    draw = BalancedDraw(photos.samples, config.batch, config.ir_share, config.seed)
    objective = Objective.from_config(bundle.scheduler_config, config.weight_cap)
    run_stage(
        stage, learner.groups, lambda step: (learner.loss(step, photos, captions, draw, objective), {}), learner.lora
    )
    adapter = learner.adapter(cameras, {**asdict(config), "photos": len(samples), "run": run})
    with first_rank_first():
        if not finished.exists():
            save_adapter(adapter, out)
            stage.state_path.unlink(missing_ok=True)
    return adapter


def _training(out: Path) -> Path:
    return out.with_name(f"{out.name}.training")


def loss_curve(out: Path) -> Curve:
    """The training loss of the adapter folder `out`."""
    return Curve(_training(out) / f"{_STAGE}-loss.jsonl", "loss", "personalise: loss")


def _run_id(bundle: ModelBundle, samples: Sequence[Sample], config: PersonalizeConfig, onto: Adapter | None) -> str:
    """Names what a run learns from, so that a state is never resumed with other data or settings."""
    names = [f"{s.pid}/{s.camera}/{s.path.name}" for s in samples]
    parts = [bundle.fingerprint, onto.fingerprint if onto else "", repr(replace(config, save_every=0)), *names]
    return sha256_bytes("\n".join(parts).encode())


def _check(
    bundle: ModelBundle, samples: Sequence[Sample], identities: tuple[Identity, ...], onto: Adapter | None
) -> tuple[Camera, ...]:
    cameras = cameras_of(samples)
    if onto is None:
        return cameras
    if onto.base_fingerprint != bundle.fingerprint:
        raise InputError(
            f"the adapter to learn onto was trained on base {onto.base_fingerprint[:12]}…, this base is"
            f" {bundle.fingerprint[:12]}…; give the base model it was trained on"
        )
    known = {camera.name: camera for camera in onto.cameras}
    unknown = [camera.name for camera in cameras if camera.name not in known]
    if unknown:
        raise InputError(f"the adapter knows cameras {sorted(known)}, not {unknown}; its LoRA cannot learn new ones")
    taken = sorted({i.pid for i in onto.identities} & {i.pid for i in identities})
    if taken:
        raise InputError(f"the adapter already knows {len(taken)} of these people, first {taken[0]!r}; leave them out")
    return onto.cameras


class _Captions:
    """Token ids of training captions, each distinct one tokenized once."""

    def __init__(self, bundle: ModelBundle, cameras: Sequence[Camera], identities: Sequence[Identity]) -> None:
        self._tokenizer = bundle.tokenizer
        self._code = {camera.name: camera.code for camera in cameras}
        self._word = {identity.pid: identity.placeholder for identity in identities}
        self._ids: dict[str, list[int]] = {}

    def ids(self, sample: Sample, config: PersonalizeConfig, rng: np.random.Generator) -> list[int]:
        """One caption of a photo: a template, the bare camera code, or nothing."""
        kind, which = rng.random(), int(rng.integers(len(TEMPLATES)))
        if kind < config.empty_captions:
            text = ""
        elif kind < config.empty_captions + config.bare_code:
            text = self._code[sample.camera]
        else:
            text = render(TEMPLATES[which], self._code[sample.camera], self._word[sample.pid])
        if text not in self._ids:
            self._ids[text] = self._tokenizer(text, padding="max_length", truncation=True)["input_ids"]
        return self._ids[text]


class _Learner:
    """The trainable parts put into a frozen model: identity rows and, unless given, LoRA."""

    def __init__(
        self, bundle: ModelBundle, identities: tuple[Identity, ...], config: PersonalizeConfig, onto: Adapter | None
    ) -> None:
        import torch

        self.bundle, self.identities, self.config, self.onto = bundle, identities, config, onto
        self.base_fingerprint = bundle.fingerprint
        torch.manual_seed(config.seed)
        table = bundle.text_encoder.get_input_embeddings().weight.detach()
        add_identity_tokens(bundle, identities, self._start_rows(table))
        grown = bundle.text_encoder.get_input_embeddings().weight.detach()
        self.words = PartlyLearned(grown[: len(table)], grown[len(table) :])
        bundle.text_encoder.set_input_embeddings(self.words)
        if onto is None:
            self.lora = add_lora(bundle.unet, config.rank, float(config.rank))
        else:
            self.lora = []
            add_lora(bundle.unet, onto.rank, onto.alpha)
            set_lora_state(bundle.unet, onto.lora)
            bundle.unet.requires_grad_(False)
        self.groups: list[dict[str, Any]] = [{"params": [self.words.rows], "weight_decay": 0.0}]
        if self.lora:
            scale = config.lora_lr / config.token_lr
            self.groups.append({"params": self.lora, "weight_decay": config.weight_decay, "lr_scale": scale})

    def _start_rows(self, table: torch.Tensor) -> torch.Tensor:
        """Every identity starts from the word "person", as DiVE's do."""
        ids = self.bundle.tokenizer("person", add_special_tokens=False)["input_ids"]
        return table[ids].mean(dim=0).repeat(len(self.identities), 1)

    def loss(
        self, step: int, photos: LatentPhotos, captions: _Captions, draw: BalancedDraw, objective: Objective
    ) -> torch.Tensor:
        import torch

        rows, rng = draw(step)
        ids = torch.tensor([captions.ids(photos.samples[i], self.config, rng) for i in rows])
        mirrored = torch.from_numpy(rng.integers(0, 2, len(rows)))
        latents = photos.latents[torch.from_numpy(rows), mirrored]
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        noisy, noise, timesteps = noisy_batch(latents, objective.alphas, generator)
        teaches = torch.from_numpy(photos.teaching[rows] | self.config.identities_from_ir)
        mine = my_rows(len(rows))
        text = self.embed(ids[mine], teaches[mine])
        output = self.bundle.unet(noisy[mine], timesteps[mine], text).sample
        error = objective.errors(output, latents[mine], noise[mine], timesteps[mine])
        return (error * objective.weights(timesteps[mine])).mean()

    def embed(self, ids: torch.Tensor, teaches: torch.Tensor) -> torch.Tensor:
        """Text embeddings [B, L, D] of token ids [B, L]; where `teaches` bool [B] is false, identity rows get no gradient.

        Infrared photos teach the LoRA but no identity that RGB photos can teach. Otherwise the rows of paired people keep
        what only their infrared shows, the LoRA reads it there, and finds nothing in people known from RGB alone.
        """
        import torch

        encode = self.bundle.text_encoder
        if bool(teaches.all()):
            return encode(ids).last_hidden_state
        with torch.no_grad():
            fixed = encode(ids[~teaches]).last_hidden_state
        text = fixed.new_empty((len(ids), *fixed.shape[1:]))
        text[~teaches] = fixed
        if bool(teaches.any()):
            text[teaches] = encode(ids[teaches]).last_hidden_state
        return text

    def adapter(self, cameras: tuple[Camera, ...], facts: dict[str, Any]) -> Adapter:
        rows = self.words.rows.detach().clone()
        if self.onto is not None:
            merged = merge_identities(self.onto, self.identities, rows)
            return replace(merged, facts={**self.onto.facts, "onto": facts, "run": facts["run"]})
        state = lora_state(self.bundle.unet)
        remove_lora(self.bundle.unet)
        return Adapter(
            base_fingerprint=self.base_fingerprint, identities=self.identities, cameras=cameras, embeddings=rows,
            lora=state, rank=self.config.rank, alpha=float(self.config.rank), facts=facts,
        )  # fmt: skip
