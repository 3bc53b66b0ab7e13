"""The trained parts of personalization, identity rows and a LoRA in a frozen model, and the captions that train them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dive_fast.models.adapter import Adapter, merge_identities
from dive_fast.models.fuse import add_identity_tokens
from dive_fast.models.lora import add_lora, lora_state, remove_lora, set_lora_state
from dive_fast.models.phrase import Phrase, drop_parts
from dive_fast.models.prompts import TEMPLATES, check_vocabulary, render
from dive_fast.train.attention import use_cpu_attention
from dive_fast.train.config import PersonalizeConfig
from dive_fast.train.diffusion import DiffusionLoss, noisy_batch
from dive_fast.train.embedding import LearnedRows, PartlyLearned, choices_of
from dive_fast.train.parallel import my_rows
from dive_fast.train.photos import BalancedSampler, LatentPhotos
from dive_fast.train.precision import halve_frozen
from dive_fast.train.toned import LearnedTones, TonedRows
from dive_fast.types import Camera, Identity, InputError, Sample, shown

if TYPE_CHECKING:
    import torch

    from dive_fast.models.bundle import ModelBundle
    from dive_fast.train.prior import ClassPhotos


@dataclass(frozen=True)
class Start:
    """Where the rows of identities start: float32 [identities, words, D], by sorted pid, and their phrase.

    `made_by` is the hash of what made them, and stands for them in a run's id: CPUs round them differently.
    """

    phrase: str
    rows: torch.Tensor
    made_by: str


@dataclass(frozen=True)
class IdentityPrompts:
    """The identities to learn and their text in captions, with tones if infrared captions have them.

    The first of `templates` is the adapter's.
    """

    identities: tuple[Identity, ...]
    phrase: Phrase
    templates: tuple[str, ...]

    @classmethod
    def from_config(
        cls, pids: Sequence[str], config: PersonalizeConfig, init_from: Adapter | None, start: Start | None = None
    ) -> IdentityPrompts:
        """Takes phrase and template from `init_from` where there is one, else from `config`; `start` has its own phrase."""
        source = config if init_from is None else init_from
        phrase, identities = described(pids, source.phrase if start is None else start.phrase, config, init_from)
        templates = TEMPLATES if source.template is None else (source.template,)
        check_vocabulary(identities, (), templates, "personalize")
        return cls(identities, phrase, templates)

    @property
    def toned(self) -> bool:
        return bool(self.identities[0].infrared)


def described(
    pids: Sequence[str], text: str, config: PersonalizeConfig, init_from: Adapter | None
) -> tuple[Phrase, tuple[Identity, ...]]:
    """Returns the phrase `text` and identities that it describes, with the tones of `init_from`, or those to learn.

    A phrase in which tones to learn have no place raises `InputError`.
    """
    phrase, toned = Phrase(text), init_from is None and bool(config.ir_tones)
    if init_from is not None and init_from.tones is not None and Phrase(init_from.phrase).plain == phrase.plain:
        phrase, toned = Phrase(init_from.phrase), True  # with its marks
    if toned and not phrase.toned:
        raise InputError(
            f"phrase {shown(text)} marks no learned word for --ir-tones: put ~ before its words, as {{~red|green|blue}}"
        )
    identities = (phrase.identity(pid, f"person_{pid}") for pid in pids)
    return phrase, tuple(phrase.with_tones(one) if toned else one for one in identities)


class Captions:
    """Token ids of training captions."""

    def __init__(
        self, bundle: ModelBundle, cameras: Sequence[Camera], prompts: IdentityPrompts, config: PersonalizeConfig
    ) -> None:
        self._tokenizer, self._config = bundle.tokenizer, config
        self._code = {camera.name: camera.code for camera in cameras}
        self._identity = {identity.pid: identity for identity in prompts.identities}
        length, one = bundle.tokenizer.model_max_length, prompts.identities[0]
        said = [(camera.code, one.text(camera.modality)) for camera in cameras]
        code, placeholder = max(said, key=lambda words: len(self.tokenize(" ".join(words))))
        longest = [render(template, code, placeholder) for template in prompts.templates]
        fits = [len(self.tokenize(text)) <= length for text in longest]  # a truncated caption might lack the identity
        if not fits[0]:
            raise InputError(f"caption {longest[0]!r} is longer than the {length} tokens that the model reads")
        self._templates = [template for template, short in zip(prompts.templates, fits, strict=True) if short]

    def ids(self, sample: Sample, rng: np.random.Generator) -> list[int]:
        """Draws one caption of a photo: a template, the camera's code alone, or the empty text."""
        config = self._config
        kind, which = rng.random(), int(rng.integers(len(self._templates)))
        if kind < config.empty_captions:
            text = ""
        elif kind < config.empty_captions + config.bare_code:
            text = self._code[sample.camera]
        else:
            identity = drop_parts(self._identity[sample.pid].text(sample.modality), config.phrase_drop, rng)
            text = render(self._templates[which], self._code[sample.camera], identity)
        return self.tokenize(text)

    def tokenize(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, padding="max_length", truncation=False)["input_ids"]
        return ids


class PersonalizedModel:
    """A frozen model with trainable identity rows, tones and a LoRA; tones and LoRA of `init_from` are frozen too."""

    def __init__(
        self,
        bundle: ModelBundle,
        prompts: IdentityPrompts,
        config: PersonalizeConfig,
        init_from: Adapter | None,
        start: Start | None = None,
    ) -> None:
        import torch

        self.bundle, self.prompts, self.config, self.init_from, self.start = bundle, prompts, config, init_from, start
        self.base_fingerprint = bundle.fingerprint
        torch.manual_seed(config.seed)
        table = bundle.text_encoder.get_input_embeddings().weight.detach()
        self.device = table.device
        self.rows = self.new_rows(table).to(self.device)
        self.tones: LearnedTones | None = None
        spoken = self.with_tones(table) if prompts.toned else self.rows
        add_identity_tokens(bundle, prompts.identities, spoken().detach())
        self.words = PartlyLearned(table, spoken)
        bundle.text_encoder.set_input_embeddings(self.words)
        self.lora: list[torch.nn.Parameter] = []
        if init_from is None:
            self.lora = add_lora(bundle.unet, config.rank, float(config.rank))
        else:
            add_lora(bundle.unet, init_from.rank, init_from.alpha)
            set_lora_state(bundle.unet, init_from.lora)
            bundle.unet.requires_grad_(False)

    def new_rows(self, table: torch.Tensor) -> Any:
        """Returns the module that gives the identities' rows [T, D], beside the vocabulary `table` [V, D]."""
        if self.start is not None:
            return LearnedRows.from_rows(self.start.rows)
        choices = choices_of(self.prompts.phrase, self.bundle.tokenizer, table)
        return LearnedRows(choices, len(self.prompts.identities))

    def with_tones(self, table: torch.Tensor) -> TonedRows:
        """Returns the module that gives the rows of words and tones; `table` [V, D] is the vocabulary."""
        phrase = self.prompts.phrase
        if self.init_from is not None and self.init_from.tones is not None:
            return TonedRows(self.rows, self.init_from.tones.to(self.device), phrase)
        levels = choices_of(Phrase("{" + self.config.ir_tones + "}"), self.bundle.tokenizer, table)[0]
        if len(levels) < 2:
            raise InputError(f"--ir-tones {shown(self.config.ir_tones)} is one word; give several, as black|gray|white")
        self.tones = LearnedTones(levels, phrase, table).to(self.device)
        return TonedRows(self.rows, self.tones, phrase)

    @property
    def row_groups(self) -> list[dict[str, Any]]:
        """The parameters of the rows as optimizer groups."""
        return [
            {"params": [self.rows.free], "weight_decay": 0.0, "lr_scale": self.config.token_lr},
            {"params": [self.rows.logits], "weight_decay": 0.0, "lr_scale": self.config.mix_lr},
        ]

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The trainable parameters as optimizer groups."""
        config = self.config
        lora = {"params": self.lora, "weight_decay": config.weight_decay, "lr_scale": config.lora_lr}
        tones = [] if self.tones is None else list(self.tones.parameters())
        groups = [*self.row_groups, {"params": tones, "weight_decay": 0.0, "lr_scale": config.tone_lr}, lora]
        return [group for group in groups if any(p.numel() and p.requires_grad for p in group["params"])]

    def to(self, device: str) -> None:
        """Moves text encoder and UNet to `device`, frozen weights in half precision with mixed precision."""
        compute = self.config.compute
        for network in (self.bundle.text_encoder, self.bundle.unet):
            halve_frozen(network, compute.mixed_precision)
            network.to(device)
        use_cpu_attention(self.bundle.unet, device)
        if compute.checkpointing:
            self.bundle.unet.enable_gradient_checkpointing()
        self.device = next(self.rows.parameters()).device

    def set_trainable(self, rows: bool, lora: bool) -> None:
        self.rows.requires_grad_(rows)
        for parameter in (*self.lora, *(self.tones.parameters() if self.tones is not None else ())):
            parameter.requires_grad_(lora)

    def loss(
        self, step: int, photos: LatentPhotos, captions: Captions, batches: BalancedSampler, diffusion: DiffusionLoss
    ) -> torch.Tensor:
        """The loss of this process's rows of a step's batch of photos."""
        import torch

        rows, rng = batches(step)
        ids = torch.tensor([captions.ids(photos.samples[i], rng) for i in rows])
        mirrored = torch.from_numpy(rng.integers(0, 2, len(rows)))
        latents = photos.latents[torch.from_numpy(rows), mirrored]
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        noised = noisy_batch(latents, diffusion.alphas, generator, diffusion.noisy_fraction)
        teaches = torch.from_numpy(photos.teaching[rows] | self.config.identities_from_ir)
        mine = my_rows(len(rows))
        text = self.embed(self.spoken(step, [photos.samples[i] for i in rows], ids, mine), teaches[mine])
        if self.config.text_noise and self.lora and self.lora[0].requires_grad:
            shape = (len(rows), *text.shape[1:])  # of the whole batch: all rank counts draw equal noise
            jitter = torch.randn(shape, generator=generator)[mine].to(self.device)
            text = text + self.config.text_noise * text.detach().std(dim=-1, keepdim=True) * jitter
        return self._weighted_error(latents, noised, text, mine, diffusion)

    def spoken(self, step: int, samples: Sequence[Sample], ids: torch.Tensor, mine: slice) -> torch.Tensor:
        """Returns the token ids of the rows `mine` of a batch: of its `samples` and their captions' `ids` [B, L]."""
        return ids[mine]

    def class_loss(self, step: int, photos: ClassPhotos, diffusion: DiffusionLoss) -> torch.Tensor:
        """The loss of a step's class photos, as many as photos; it trains no identity."""
        import torch

        latents, generator = photos.draw(step, self.config.batch, self.config.seed)
        noised = noisy_batch(latents, diffusion.alphas, generator, diffusion.noisy_fraction)
        mine = my_rows(len(latents))
        ids = photos.ids.expand(mine.stop - mine.start, -1)
        text = self.embed(ids, torch.zeros(len(ids), dtype=torch.bool))
        return self._weighted_error(latents, noised, text, mine, diffusion)

    def _weighted_error(
        self,
        latents: torch.Tensor,
        noised: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        text: torch.Tensor,
        mine: slice,
        diffusion: DiffusionLoss,
    ) -> torch.Tensor:
        """The weighted error of the UNet on the rows `mine` of a noised batch, given their text embeddings."""
        noisy, noise, timesteps = noised
        output = self.bundle.unet(noisy[mine].to(self.device), timesteps[mine].to(self.device), text).sample
        target = diffusion.target(latents, noise, timesteps)[mine].to(self.device)
        weights = diffusion.weights(timesteps)[mine].to(self.device)
        return ((output - target).square().mean(dim=(1, 2, 3)) * weights).mean()

    def embed(self, ids: torch.Tensor, teaches: torch.Tensor) -> torch.Tensor:
        """Returns text embeddings [B, L, D] of ids [B, L]; where `teaches` bool [B] is false, identities get no gradient.

        Both inputs are on the CPU, where selecting rows does not wait for a GPU. Infrared photos train the LoRA, but no
        identity that has RGB photos: its rows would store what only its infrared shows, the LoRA would read it there, and
        would find nothing in identities known from RGB alone.
        """
        import torch

        toned = self.words.rows if isinstance(self.words.rows, TonedRows) else None
        parts, rows = [], []
        for learns, which in ((False, ~teaches), (True, teaches)):
            if bool(which.any()):
                held = nullcontext() if learns or toned is None else toned.held()
                with torch.set_grad_enabled((learns or self.tones is not None) and torch.is_grad_enabled()), held:
                    parts.append(self.bundle.text_encoder(ids[which].to(self.device)).last_hidden_state)
                rows.append(which.nonzero()[:, 0])
        return torch.cat(parts)[torch.cat(rows).argsort().to(self.device)]

    def learned(self) -> tuple[tuple[Identity, ...], torch.Tensor]:
        """Returns the identities and the rows [T, D] of their words, without tones, on the CPU."""
        return tuple(replace(one, infrared="") for one in self.prompts.identities), self.rows().detach().cpu()

    def adapter(self, cameras: tuple[Camera, ...], metadata: dict[str, Any]) -> Adapter:
        """Takes the LoRA out of the UNet and returns everything trained, with all that `init_from` has."""
        identities, rows = self.learned()
        if self.init_from is not None:
            merged = merge_identities(self.init_from, identities, rows)
            before = self.init_from.metadata
            seen = sorted({*before.get("infrared_identities", ()), *metadata["infrared_identities"]})
            known = {} if "infrared_identities" not in before else {"infrared_identities": seen}
            return replace(merged, metadata={**before, **known, "onto": metadata, "run": metadata["run"]})
        tones = None if self.tones is None else self.tones().to("cpu")
        if tones is not None:
            identities, rows = tones.extend(self.prompts.phrase, identities, rows)
        state = lora_state(self.bundle.unet)
        remove_lora(self.bundle.unet)
        return Adapter(
            base_fingerprint=self.base_fingerprint,
            identities=identities,
            cameras=cameras,
            embeddings=rows,
            lora=state,
            rank=self.config.rank,
            alpha=self.config.lora_scale * self.config.rank,
            template=self.prompts.templates[0],
            phrase=self.prompts.phrase.text,
            metadata=metadata,
            tones=tones,
        )
