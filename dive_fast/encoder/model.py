"""The trained parts: a mapper whose rows the captions of a frozen base read, and a LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dive_fast.encoder.config import EncoderConfig
from dive_fast.encoder.features import FeatureNet
from dive_fast.encoder.folder import Encoder
from dive_fast.encoder.mapper import Mapper
from dive_fast.encoder.references import References
from dive_fast.train.embedding import PhraseRows, choices_of
from dive_fast.train.model import IdentityPrompts, PersonalizedModel
from dive_fast.types import Identity, Sample

if TYPE_CHECKING:
    from dive_fast.models.adapter import Adapter
    from dive_fast.models.bundle import ModelBundle


class BatchRows(torch.nn.Module):
    """The rows that a batch's captions read: those that the mapper predicted last, float [T, D]."""

    def __init__(self, mapper: Mapper, people: int) -> None:
        super().__init__()
        self.mapper = mapper
        start = mapper.phrase.join(mapper.phrase.start[None], torch.zeros_like(mapper.phrase.absent)[None])
        self.current = start.repeat(people, 1, 1).flatten(0, 1)

    def forward(self) -> Tensor:
        return self.current


class EncoderModel(PersonalizedModel):
    """A frozen base with a trainable mapper and a LoRA, which is frozen too if it comes from `init_from`.

    Captions name every person by the words of the first of `prompts`; row b of a batch reads the b-th rows of `rows`.
    """

    rows: BatchRows
    references: References

    def __init__(
        self,
        bundle: ModelBundle,
        prompts: IdentityPrompts,
        config: EncoderConfig,
        init_from: Adapter | None,
        source: FeatureNet,
        start: Encoder | None,
    ) -> None:
        self.encoder_config, self._source, self._first = config, source, start
        super().__init__(bundle, prompts, config.training, init_from)
        self._old_words = len(bundle.text_encoder.get_input_embeddings().frozen)

    def new_rows(self, table: Tensor) -> BatchRows:
        if self._first is not None:
            mapper = self._first.mapper.requires_grad_(True)
        else:
            phrase = PhraseRows(choices_of(self.prompts.phrase, self.bundle.tokenizer, table))
            said = self._source.phrase == self.prompts.phrase.plain
            mapper = Mapper(self._source.dims, self.encoder_config.width, phrase, table, said)
        return BatchRows(mapper, len(self.prompts.identities))

    @property
    def mapper(self) -> Mapper:
        return self.rows.mapper

    @property
    def row_groups(self) -> list[dict[str, Any]]:
        decay, rate = self.config.weight_decay, self.encoder_config.mapper_lr
        return [{"params": list(self.mapper.parameters()), "weight_decay": decay, "lr_scale": rate}]

    @property
    def learning(self) -> bool:
        """Whether the mapper is trained now."""
        return self.mapper.last.weight.requires_grad

    def spoken(self, step: int, samples: Sequence[Sample], ids: Tensor, mine: slice) -> Tensor:
        """Predicts the rows of this process's photos from others of their people, and lets their captions read these."""
        rows, given = self.references.draw(samples, step)
        features = self.references.features[rows[mine]].to(self.device)
        predicted = self.mapper(features, given[mine].to(self.device), self._kept(step, len(rows), mine))
        self.rows.current = predicted.flatten(0, 1)
        ids = ids[mine]
        offsets = torch.arange(len(ids))[:, None] * len(self.prompts.identities[0].words)
        return torch.where(ids >= self._old_words, ids + offsets, ids)

    def _kept(self, step: int, batch: int, mine: slice) -> Tensor | None:
        """The factors of features with some left out, float [B, 1, F]; of the whole batch, for any number of processes."""
        drop = self.encoder_config.feature_drop
        if not (drop and self.learning):
            return None
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step + 2**40)
        kept = torch.rand(batch, 1, len(self.mapper.mean), generator=generator) >= drop
        return (kept[mine] / (1 - drop)).to(self.device)

    def loss(self, *arguments: Any) -> Tensor:
        loss = super().loss(*arguments)
        weight = self.encoder_config.vocabulary_weight
        return loss + weight * self.mapper.penalty(self.rows.current) if weight and self.learning else loss

    @torch.no_grad()
    def predicted(self, pids: Sequence[str]) -> Tensor:
        """Returns the rows float32 [people, words, D] of people from all their RGB photos."""
        found = []
        for pid in pids:
            features = self.references.features[self.references.people[pid]][None].to(self.device)
            given = torch.ones(features.shape[:2], dtype=torch.bool, device=self.device)
            found.append(self.mapper(features, given)[0])
        return torch.stack(found)

    def learned(self) -> tuple[tuple[Identity, ...], Tensor]:
        pids = list(self.references.people)
        identities = tuple(self.prompts.phrase.identity(pid, f"person_{pid}") for pid in pids)
        return identities, self.predicted(pids).flatten(0, 1).cpu()
