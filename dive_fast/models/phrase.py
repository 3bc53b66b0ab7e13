"""Phrases: text that describes an identity, in which some words are learned for each identity."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from dive_fast.io import sha256_bytes
from dive_fast.types import Identity, InputError, learned_words, shown

if TYPE_CHECKING:
    import numpy as np

ONE_WORD = "{person}"
_SLOT = re.compile(r"\{([^{}]*)\}")
_TONED = "~"
_PARTS = " , "


@dataclass(frozen=True)
class Phrase:
    """Text in which braces mark the learned words.

    `{person}` is a free vector that starts from that word, `{red|green|blue}` a mix of these words. `ONE_WORD` is DiVE's
    one free vector for each identity. In a phrase, the frozen text encoder binds each learned word to its noun, as in any
    caption, and a mix cannot leave the span of its words. So a red coat is much the same vector for every identity, and
    what the LoRA learns of it from a few paired identities holds for the others (docs/log.md). Yuan et al., arXiv
    2306.00926, learn identities in such a span.

    `{~red|green|blue}` is a word before which infrared prompts may have a tone (`models/tones.py`).

    Text without a learned word, with empty braces, or with `<` or `>` raises `InputError`.
    """

    text: str

    def __post_init__(self) -> None:
        plain = _SLOT.sub("", self.text)
        if not self.choices or any(mark in self.text for mark in "<>") or any(mark in plain for mark in "{}"):
            raise InputError(
                f"phrase {shown(self.text)}: needs at least one learned word such as {{person}} or {{red|green|blue}},"
                " and no other brackets"
            )
        if not all(word.strip() for words in self.choices for word in words):
            raise InputError(f"phrase {shown(self.text)}: a learned word names nothing to start from")

    @cached_property
    def choices(self) -> list[list[str]]:
        """For each learned word, the word that it starts from or the words that it mixes."""
        return [slot.removeprefix(_TONED).split("|") for slot in _SLOT.findall(self.text)]

    @cached_property
    def toned(self) -> list[int]:
        """The numbers of the learned words that are marked for tones."""
        return [number for number, slot in enumerate(_SLOT.findall(self.text)) if slot.startswith(_TONED)]

    @cached_property
    def plain(self) -> str:
        """The text without marks."""
        return self.text.replace("{" + _TONED, "{")

    @cached_property
    def parts(self) -> list[int]:
        """The number of learned words in each part (between " , ") that has any."""
        counts = (len(_SLOT.findall(part)) for part in self.text.split(_PARTS))
        return [count for count in counts if count]

    def describes(self, identity: Identity) -> bool:
        """Whether the placeholder of `identity` is this phrase with its learned words."""
        return re.sub(r"<[^<>]*>", "{}", identity.placeholder) == _SLOT.sub("{}", self.text)

    def with_tones(self, identity: Identity) -> Identity:
        """Returns an identity of this phrase whose infrared placeholder has a tone before each marked word."""
        words = learned_words(identity.placeholder)
        toned = {words[number]: f"{words[number][:-1]}.tone> {words[number]}" for number in self.toned}
        text = re.sub(r"<[^<>]*>", lambda found: toned.get(found[0], found[0]), identity.placeholder)
        return replace(identity, infrared=text)

    def identity(self, pid: str, name: str) -> Identity:
        """Returns the identity whose learned words are `<name>`, or `<name.0>`, `<name.1>`, ... if there are several.

        A `name` of other characters than words have is replaced by its `learned_word`.
        """
        name = learned_word(name)
        if len(self.choices) == 1:
            return Identity(pid, _SLOT.sub(f"<{name}>", self.text))
        numbers = iter(range(len(self.choices)))
        return Identity(pid, _SLOT.sub(lambda _: f"<{name}.{next(numbers)}>", self.text))


def learned_word(name: str) -> str:
    """Returns `name` as a learned word holds it: as it is, or with a hash for the characters that no word has.

    So different names, such as Anna and anna, have different words.
    """
    plain = re.sub(r"[^a-z0-9_.\-]+", "_", name.lower()).strip("_")
    return name if plain == name else f"{plain}_{sha256_bytes(name.encode())[:8]}".strip("_")


def drop_parts(placeholder: str, drop: float, rng: np.random.Generator) -> str:
    """Drops each part of a phrase (between " , ") with probability `drop`; two of five captions keep the whole phrase.

    The first part always stays, since it names the person.
    """
    parts = placeholder.split(_PARTS)
    if drop <= 0 or len(parts) == 1 or rng.random() < 0.4:
        return placeholder
    return _PARTS.join([parts[0], *(part for part in parts[1:] if rng.random() >= drop)])
