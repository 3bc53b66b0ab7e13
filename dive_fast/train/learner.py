"""What learns in a personalising run: vocabulary rows for each person and a LoRA, put into a frozen model, and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dive_fast.models.adapter import Adapter, merge_identities
from dive_fast.models.fuse import add_identity_tokens
from dive_fast.models.lora import add_lora, lora_state, remove_lora, set_lora_state
from dive_fast.models.phrase import Phrase, drop_parts
from dive_fast.models.prompts import TEMPLATES, check_vocabulary, render
from dive_fast.train.diffusion import Objective, noisy_batch
from dive_fast.train.embedding import LearnedRows, PartlyLearned, choices_of
from dive_fast.train.parallel import my_rows
from dive_fast.train.photos import BalancedDraw, LatentPhotos
from dive_fast.train.precision import halve_frozen
from dive_fast.types import Camera, Identity, InputError, Sample

if TYPE_CHECKING:
    import torch

    from dive_fast.models.bundle import ModelBundle
    from dive_fast.train.personalize import PersonalizeConfig
    from dive_fast.train.prior import ClassPhotos


def person_word(pid: str) -> str:
    """The vocabulary word of an identity: its name, not its position, so that learning more people renames nobody."""
    return f"person_{pid.lower()}"


@dataclass(frozen=True)
class People:
    """Who is to be learned and how they stand in captions: by `config`, with an adapter to learn onto like its people."""

    identities: tuple[Identity, ...]
    phrase: Phrase
    templates: tuple[str, ...]  # the first is the adapter's

    @classmethod
    def of(cls, pids: Sequence[str], config: PersonalizeConfig, onto: Adapter | None) -> People:
        phrase, template = (config.phrase, config.template) if onto is None else (onto.phrase, onto.template)
        read = Phrase(phrase)
        identities = tuple(read.identity(pid, person_word(pid)) for pid in pids)
        templates = TEMPLATES if template is None else (template,)
        check_vocabulary(identities, (), templates, "personalize")
        return cls(identities, read, templates)


class Captions:
    """Token ids of training captions."""

    def __init__(
        self, bundle: ModelBundle, cameras: Sequence[Camera], people: People, config: PersonalizeConfig
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
            person = drop_parts(self._placeholder[sample.pid], config.phrase_drop, rng)
            text = render(self._templates[which], self._code[sample.camera], person)
        return self._ids(text)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, padding="max_length", truncation=False)["input_ids"]
        return ids


class Learner:
    """The trainable parts put into a frozen model: identity rows and, unless given, LoRA."""

    def __init__(self, bundle: ModelBundle, people: People, config: PersonalizeConfig, onto: Adapter | None) -> None:
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

    def place(self, device: str) -> None:
        """Moves what every step needs to `device`, what is frozen in half precision where that is mixed in."""
        compute = self.config.compute
        for network in (self.bundle.text_encoder, self.bundle.unet):
            halve_frozen(network, compute.mixed_precision)
            network.to(device)
        if compute.checkpointing:
            self.bundle.unet.enable_gradient_checkpointing()
        self.device = self.rows.free.device

    def learns(self, rows: bool, lora: bool) -> None:
        """Chooses what learns."""
        self.rows.requires_grad_(rows)
        for parameter in self.lora:
            parameter.requires_grad_(lora)

    def loss(
        self, step: int, photos: LatentPhotos, captions: Captions, draw: BalancedDraw, objective: Objective
    ) -> torch.Tensor:
        import torch

        rows, rng = draw(step)
        ids = torch.tensor([captions.ids(photos.samples[i], rng) for i in rows])
        mirrored = torch.from_numpy(rng.integers(0, 2, len(rows)))
        latents = photos.latents[torch.from_numpy(rows), mirrored]
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        noised = noisy_batch(latents, objective.alphas, generator, objective.noisy_share)
        teaches = torch.from_numpy(photos.teaching[rows] | self.config.identities_from_ir)
        mine = my_rows(len(rows))
        text = self.embed(ids[mine], teaches[mine])
        if self.config.text_noise and self.lora and self.lora[0].requires_grad:
            shape = (len(rows), *text.shape[1:])  # of the whole batch, so that ranks draw what one process would
            jitter = torch.randn(shape, generator=generator)[mine].to(self.device)
            text = text + self.config.text_noise * text.detach().std(dim=-1, keepdim=True) * jitter
        return self._error(latents, noised, text, mine, objective)

    def class_loss(self, step: int, photos: ClassPhotos, objective: Objective) -> torch.Tensor:
        """The loss on as many class photos as a step has photos; it teaches no identity."""
        import torch

        latents, generator = photos.draw(step, self.config.batch, self.config.seed)
        noised = noisy_batch(latents, objective.alphas, generator, objective.noisy_share)
        mine = my_rows(len(latents))
        ids = photos.ids.expand(mine.stop - mine.start, -1)
        text = self.embed(ids, torch.zeros(len(ids), dtype=torch.bool))
        return self._error(latents, noised, text, mine, objective)

    def _error(
        self, latents: torch.Tensor, noised: tuple[torch.Tensor, torch.Tensor, torch.Tensor], text: torch.Tensor,
        mine: slice, objective: Objective,
    ) -> torch.Tensor:  # fmt: skip
        """The weighted error of the UNet on the rows `mine` of a noised batch, given their text embeddings."""
        noisy, noise, timesteps = noised
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
            return replace(merged, metadata={**self.onto.metadata, "onto": facts, "run": facts["run"]})
        state = lora_state(self.bundle.unet)
        remove_lora(self.bundle.unet)
        return Adapter(
            base_fingerprint=self.base_fingerprint, identities=self.people.identities, cameras=cameras, embeddings=rows,
            lora=state, rank=self.config.rank, alpha=float(self.config.rank), template=self.people.templates[0],
            phrase=self.people.phrase.text,
            metadata=facts,
        )  # fmt: skip
