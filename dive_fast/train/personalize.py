"""Textual inversion of identities + modality LoRA on a frozen base: DiVE's recipe (arXiv 2503.12472), repeatable.

Vocabulary rows for each person, LoRA on every attention projection of the UNet, a fixed code word per camera. Only the
rows and the LoRA learn; the rows have no weight decay, which would pull every identity towards nobody. DiVE learns one
row a person; here a person may be a phrase of several (`Phrase`).
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
from dive_fast.models.phrase import ONE_WORD, Phrase, some_parts
from dive_fast.models.prompts import TEMPLATES, check_vocabulary, render
from dive_fast.train.curves import Curve
from dive_fast.train.diffusion import Objective, noisy_batch
from dive_fast.train.embedding import LearnedRows, PartlyLearned, choices_of
from dive_fast.train.loop import Stage, run_stage
from dive_fast.train.parallel import first_rank_first, my_rows
from dive_fast.train.photos import BalancedDraw, LatentPhotos, encode_photos, teaching
from dive_fast.train.tagger import load_tagger, read_people
from dive_fast.types import Camera, Identity, InputError, Sample

if TYPE_CHECKING:
    import torch

    from dive_fast.models.bundle import ModelBundle

# The codes of the published checkpoints, so that ours and theirs name cameras alike.
PUBLISHED_CODES = {
    "cam1": "W5Eq", "cam2": "2Agp", "cam3": "8miP", "cam4": "HXY6", "cam5": "ITaw", "cam6": "dx1V", "cam7": "hFOc",
}  # fmt: skip


_STAGES = ("identities", "personalize")


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
    text_noise: float = 0.0  # on text embeddings while the LoRA learns, in units of their deviation. See `_Learner.loss`
    lora_lr: float = 2e-3
    token_lr: float = 3e-3  # of free vectors
    mix_lr: float = 0.07  # of the weights of words that mix
    warmup: int = 50
    ir_share: float = 0.5  # of each batch, when there are infrared photos
    noisy_share: float = 0.75  # of timesteps, from the noisier half, where garments are decided (DiVE: 0.5)
    identity_noisy_share: float = 0.4  # where identities learn alone; there the clean half tells words apart better
    identities_from_ir: bool = False  # DiVE: True. See `_Learner.embed`
    bare_code: float = 0.1  # share of captions that are the camera's code alone (DiVE: 0.5)
    empty_captions: float = 0.05  # keeps the unconditional half of guidance true to the new cameras
    weight_cap: float = 8.0  # of the loss weight 1 / sqrt(SNR), of epsilon's error
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


def person_word(pid: str) -> str:
    """The vocabulary word of an identity: its name, not its position, so that learning more people renames nobody."""
    return f"person_{pid.lower()}"


def personalize(
    bundle: ModelBundle,
    samples: Sequence[Sample],
    out: Path,
    config: PersonalizeConfig,
    onto: Adapter | None = None,
    progress: bool = True,
    device: str = "cpu",
) -> Adapter:
    """Learns the people (and, without `onto`, the cameras) of `samples`; `bundle` is changed in place and used up.

    People first, from RGB photos and the base as it is, which knows what its words look like; then the LoRA, with the people
    fixed. Learned together, as DiVE does and `identity_steps` 0 asks for, each takes up what the other lacks.

    With `onto`, a trained adapter of this base, its LoRA and its identities stay bit for bit and only the rows of new
    people learn. The adapter folder `out` appears whole at the end; beside it `out`.training holds the loss log and the
    state from which an unfinished run resumes. In a process group the ranks share each batch. Bad data raises
    `InputError` before any training.
    """
    from dive_fast.models.adapter import load_adapter

    people = _People.of(sorted({s.pid for s in samples}), config, onto)
    identities = people.identities
    run = _run_id(bundle, samples, config, onto)
    finished = out / "adapter.json"
    if finished.exists():
        adapter = load_adapter(out)
        if adapter.facts.get("run") != run:
            raise InputError(f"{out} holds an adapter of other data or settings; choose another --out or delete it")
        return adapter
    cameras = _check(bundle, samples, identities, onto)
    alone, stage = (
        Stage(
            name, _training(out), steps, 1.0, config.warmup,
            config.save_every, average=config.average, identity=run, progress=progress,
        )
        for name, steps in zip(_STAGES, (config.identity_steps, config.steps), strict=True)
    )  # fmt: skip
    for begun in (alone, stage):
        begun.saved()  # of other settings: said before the photos are encoded
    if onto is not None and not config.identities_from_ir:  # the LoRA is fixed: the rest would teach nothing
        samples = [sample for sample, kept in zip(samples, teaching(samples), strict=True) if kept]
    for part in (bundle.text_encoder, bundle.unet, bundle.vae):
        part.to(device)
    learner = _Learner(bundle, people, config, onto)
    if config.words_from is not None:
        learner.rows.start_at(read_people(load_tagger(config.words_from), samples, people.phrase, progress))
    captions = _Captions(bundle, cameras, people, config)  # the tokenizer knows the people now
    photos = encode_photos(bundle, samples, progress=progress)
    draw = BalancedDraw(photos.samples, config.batch, config.ir_share, config.seed)
    of_all = Objective.from_config(bundle.scheduler_config, config.weight_cap, config.noisy_share)
    of_rows = replace(of_all, noisy_share=config.identity_noisy_share, of_epsilon=True)
    if onto is None and config.identity_steps:
        visible = photos.only(photos.teaching)
        draw_visible = BalancedDraw(visible.samples, config.batch, config.ir_share, config.seed)
        learner.learns(rows=True, lora=False)
        run_stage(
            alone, learner.groups, lambda step: (learner.loss(step, visible, captions, draw_visible, of_rows), {}), []
        )
        learner.learns(rows=False, lora=True)
    objective = of_all if onto is None else of_rows
    run_stage(
        stage, learner.groups, lambda step: (learner.loss(step, photos, captions, draw, objective), {}), learner.lora
    )
    adapter = learner.adapter(cameras, {**asdict(config), "photos": len(samples), "run": run})
    with first_rank_first():
        if not finished.exists():
            save_adapter(adapter, out)
            for finished_stage in (alone, stage):
                finished_stage.state_path.unlink(missing_ok=True)
    return adapter


def _training(out: Path) -> Path:
    return out.with_name(f"{out.name}.training")


def loss_curves(out: Path) -> list[Curve]:
    """The training losses of the adapter folder `out`."""
    logs = {name: _training(out) / f"{name}-loss.jsonl" for name in _STAGES}
    return [Curve(path, "loss", f"{name}: loss") for name, path in logs.items() if path.exists()]


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


@dataclass(frozen=True)
class _People:
    """Who is to be learned and how they stand in captions: by `config`, with an adapter to learn onto like its people."""

    identities: tuple[Identity, ...]
    phrase: Phrase
    templates: tuple[str, ...]  # the first is the adapter's

    @classmethod
    def of(cls, pids: Sequence[str], config: PersonalizeConfig, onto: Adapter | None) -> _People:
        phrase, template = (config.phrase, config.template) if onto is None else (onto.phrase, onto.template)
        read = Phrase(phrase)
        identities = tuple(read.identity(pid, person_word(pid)) for pid in pids)
        templates = TEMPLATES if template is None else (template,)
        check_vocabulary(identities, (), templates, "personalize")
        return cls(identities, read, templates)


class _Captions:
    """Token ids of training captions."""

    def __init__(
        self, bundle: ModelBundle, cameras: Sequence[Camera], people: _People, config: PersonalizeConfig
    ) -> None:
        self._tokenizer, self._config = bundle.tokenizer, config
        self._length = bundle.tokenizer.model_max_length
        self._code = {camera.name: camera.code for camera in cameras}
        self._placeholder = {identity.pid: identity.placeholder for identity in people.identities}
        longest = max((camera.code for camera in cameras), key=lambda code: len(self._ids(code)))
        self._templates = [  # a sentence cut short might lack the person
            template for template in people.templates
            if len(self._ids(render(template, longest, people.identities[0].placeholder))) <= self._length
        ]  # fmt: skip
        if people.templates[0] not in self._templates:
            text = render(people.templates[0], longest, people.identities[0].placeholder)
            raise InputError(f"caption {text!r} is longer than the {self._length} tokens that the model reads")

    def ids(self, sample: Sample, rng: np.random.Generator) -> list[int]:
        """One caption of a photo: a template, the bare camera code, or nothing."""
        config = self._config
        kind, which = rng.random(), int(rng.integers(len(self._templates)))
        if kind < config.empty_captions:
            text = ""
        elif kind < config.empty_captions + config.bare_code:
            text = self._code[sample.camera]
        else:
            person = some_parts(self._placeholder[sample.pid], config.phrase_drop, rng)
            text = render(self._templates[which], self._code[sample.camera], person)
        return self._ids(text)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, padding="max_length", truncation=False)["input_ids"]
        return ids


class _Learner:
    """The trainable parts put into a frozen model: identity rows and, unless given, LoRA."""

    def __init__(self, bundle: ModelBundle, people: _People, config: PersonalizeConfig, onto: Adapter | None) -> None:
        import torch

        self.bundle, self.people, self.config, self.onto = bundle, people, config, onto
        self.base_fingerprint = bundle.fingerprint
        torch.manual_seed(config.seed)
        table = bundle.text_encoder.get_input_embeddings().weight.detach()
        self.device = table.device
        self.rows = LearnedRows(choices_of(people.phrase, bundle.tokenizer, table), len(people.identities))
        self.rows.to(self.device)
        add_identity_tokens(bundle, people.identities, self.rows().detach())
        bundle.text_encoder.set_input_embeddings(PartlyLearned(table, self.rows))
        if onto is None:
            self.lora = add_lora(bundle.unet, config.rank, float(config.rank))
        else:
            self.lora = []
            add_lora(bundle.unet, onto.rank, onto.alpha)
            set_lora_state(bundle.unet, onto.lora)
            bundle.unet.requires_grad_(False)
        rates = [
            ([self.rows.free], 0.0, config.token_lr),
            ([self.rows.logits], 0.0, config.mix_lr),
            (self.lora, config.weight_decay, config.lora_lr),
        ]
        self._groups: list[dict[str, Any]] = [
            {"params": params, "weight_decay": decay, "lr_scale": rate}
            for params, decay, rate in rates
            if any(parameter.numel() for parameter in params)
        ]

    @property
    def groups(self) -> list[dict[str, Any]]:
        """What learns now, as optimizer groups."""
        return [group for group in self._groups if group["params"][0].requires_grad]

    def learns(self, rows: bool, lora: bool) -> None:
        """Chooses what learns."""
        self.rows.requires_grad_(rows)
        for parameter in self.lora:
            parameter.requires_grad_(lora)

    def loss(
        self, step: int, photos: LatentPhotos, captions: _Captions, draw: BalancedDraw, objective: Objective
    ) -> torch.Tensor:
        import torch

        rows, rng = draw(step)
        ids = torch.tensor([captions.ids(photos.samples[i], rng) for i in rows])
        mirrored = torch.from_numpy(rng.integers(0, 2, len(rows)))
        latents = photos.latents[torch.from_numpy(rows), mirrored]
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        noisy, noise, timesteps = noisy_batch(latents, objective.alphas, generator, objective.noisy_share)
        teaches = torch.from_numpy(photos.teaching[rows] | self.config.identities_from_ir)
        mine = my_rows(len(rows))
        text = self.embed(ids[mine], teaches[mine])
        if self.config.text_noise and self.lora and self.lora[0].requires_grad:
            shape = (len(rows), *text.shape[1:])  # of the whole batch, so that ranks draw what one process would
            jitter = torch.randn(shape, generator=generator)[mine].to(self.device)
            text = text + self.config.text_noise * text.detach().std(dim=-1, keepdim=True) * jitter
        output = self.bundle.unet(noisy[mine].to(self.device), timesteps[mine].to(self.device), text).sample
        target = objective.target(latents, noise, timesteps)[mine].to(self.device)
        weights = objective.weights(timesteps)[mine].to(self.device)
        return ((output - target).square().mean(dim=(1, 2, 3)) * weights).mean()

    def embed(self, ids: torch.Tensor, teaches: torch.Tensor) -> torch.Tensor:
        """Text embeddings [B, L, D] of token ids [B, L]; where `teaches` bool [B] is false, identity rows get no gradient.
        Both come on the CPU, where choosing rows waits for no GPU.

        Infrared photos teach the LoRA but no identity that RGB photos can teach. Otherwise the rows of paired people keep
        what only their infrared shows, the LoRA reads it there, and finds nothing in people known from RGB alone.
        """
        import torch

        parts, rows = [], []
        for learns, which in ((False, ~teaches), (True, teaches)):
            if bool(which.any()):
                with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
                    parts.append(self.bundle.text_encoder(ids[which].to(self.device)).last_hidden_state)
                rows.append(which.nonzero()[:, 0])
        return torch.cat(parts)[torch.cat(rows).argsort().to(self.device)]

    def adapter(self, cameras: tuple[Camera, ...], facts: dict[str, Any]) -> Adapter:
        rows = self.rows().detach().cpu()
        if self.onto is not None:
            merged = merge_identities(self.onto, self.people.identities, rows)
            return replace(merged, facts={**self.onto.facts, "onto": facts, "run": facts["run"]})
        state = lora_state(self.bundle.unet)
        remove_lora(self.bundle.unet)
        return Adapter(
            base_fingerprint=self.base_fingerprint, identities=self.people.identities, cameras=cameras, embeddings=rows,
            lora=state, rank=self.config.rank, alpha=float(self.config.rank), template=self.people.templates[0],
            phrase=self.people.phrase.text,
            facts=facts,
        )  # fmt: skip
