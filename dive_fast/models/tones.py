"""Tones: words of brightness before some learned words in infrared prompts, computed from an identity's own words.

How bright a dye is in infrared is a function of the dye and the cloth. A LoRA learns that function from few identities at
the places where it saw it, and the second colour of a coat loses it. A base model binds words to places; so the function
becomes a word: one number from dark to bright, linear in the identity's words before a sigmoid, picks among words whose
brightness the base knows (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from dive_fast.models.phrase import Phrase
from dive_fast.types import Identity, InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_WIDTH = 0.5  # of the bell that picks words, in steps from one word to the next


@dataclass(frozen=True)
class Tones:
    """What computes the tones of a phrase: float32 tensors, D the width of a word's row, K the phrase's marked words.

    `levels` [L, D] are the rows of the words of brightness, from dark to bright; `own` [D] weighs the word behind a tone,
    `beside` [D] the mean of the other learned words in its part of the phrase, `bias` [K] is each tone's own.
    """

    levels: Tensor
    own: Tensor
    beside: Tensor
    bias: Tensor

    def numbers(self, phrase: Phrase, rows: Tensor) -> Tensor:
        """Returns the levels, 0 (darkest) to L - 1, [identities, K] of identities with `rows` [identities, words, D]."""
        import torch

        part = torch.tensor([number for number, count in enumerate(phrase.parts) for _ in range(count)])
        others = (part[phrase.toned, None] == part).to(rows)
        others[torch.arange(len(phrase.toned)), phrase.toned] = 0
        others /= others.sum(dim=1, keepdim=True).clamp(min=1)
        beside = torch.einsum("kw,iwd->ikd", others, rows)
        return (len(self.levels) - 1) * torch.sigmoid(
            rows[:, phrase.toned] @ self.own + beside @ self.beside + self.bias
        )

    def rows(self, phrase: Phrase, rows: Tensor) -> Tensor:
        """Returns the rows of the tones, [identities, K, D]."""
        import torch

        levels = torch.arange(len(self.levels), device=rows.device)
        away = (levels - self.numbers(phrase, rows)[..., None]) / _WIDTH
        return torch.softmax(-away.square() / 2, dim=-1) @ self.levels

    def extend(
        self, phrase: Phrase, identities: Sequence[Identity], rows: Tensor
    ) -> tuple[tuple[Identity, ...], Tensor]:
        """Returns the identities, and their rows [T, D], with the tones of those that have the phrase and lack them."""
        import torch

        found, parts, at = [], [], 0
        for identity in identities:
            mine, at = rows[at : at + len(identity.words)], at + len(identity.words)
            if not identity.infrared and phrase.describes(identity):
                identity = phrase.with_tones(identity)
                mine = torch.cat([mine, self.rows(phrase, mine[None].float())[0].to(mine.dtype)])
            found.append(identity)
            parts.append(mine)
        return tuple(found), torch.cat(parts)

    def to(self, device: torch.device | str) -> Tones:
        """Returns the tones on a device, without gradients."""
        return Tones(**{field.name: getattr(self, field.name).detach().to(device) for field in fields(self)})

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors by the names that they have in files."""
        return {f"{_PREFIX}{field.name}": getattr(self, field.name) for field in fields(self)}


_PREFIX = "tones."


def read_tones(tensors: Mapping[str, Tensor]) -> Tones | None:
    """Returns the tones among named tensors, None if there are none; other shapes or names raise `InputError`."""
    held = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
    if not held:
        return None
    names = [field.name for field in fields(Tones)]
    if sorted(held) != sorted(names):
        raise InputError(f"tones need {sorted(names)}, found {sorted(held)}")
    return Tones(**held)


def check_tones(tones: Tones, phrase: Phrase, width: int, where: str) -> None:
    """Raises `InputError` unless the tensors fit a phrase and rows of `width`, and are finite numbers."""
    shapes = {name: list(tensor.shape) for name, tensor in asdict(tones).items()}
    count = shapes["levels"][0] if shapes["levels"] else 0
    needed: dict[str, Any] = {"levels": [count, width], "own": [width], "beside": [width], "bias": [len(phrase.toned)]}
    if shapes != needed or count < 2 or not phrase.toned:
        raise InputError(f"{where}: tones of shapes {shapes} do not fit its phrase and width, which need {needed}")
    if not all(bool(tensor.isfinite().all()) for tensor in tones.tensors().values()):
        raise InputError(f"{where}: tones hold NaN or infinity; train again with a lower learning rate")
