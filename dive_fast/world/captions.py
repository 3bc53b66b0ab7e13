"""Captions of pedestrians in a small closed vocabulary. Importing this loads neither torch nor numpy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from dive_fast.world.pedestrians import (
    BAGS,
    BOTTOMS,
    DYES,
    HAIR_STYLES,
    HAIRS,
    HATS,
    MATERIALS,
    SKINS,
    TOPS,
    VIEWS,
    Pedestrian,
    Shot,
)

if TYPE_CHECKING:
    import numpy as np

CAPTION_TEMPLATE = "a {cam} photo of a {token}"
SCENE_WORDS = ("indoor", "outdoor", "bright", "dim", "warm", "cool")
MONOCHROME = "monochrome"
# How bright a surface is in a monochrome photo, in equal parts of the reflectances from 0 to 1.
TONES = ("inky", "deep", "dusky", "muted", "soft", "light", "chalky", "glowing")

Brightness = Mapping[str, float]
"""Reflectances, 0..1, of skin, hair, hat, top, second, bottom, shoes and bag, whose tones a caption names."""


def _toned(tones: Brightness | None, part: str, word: str) -> str:
    """The word of a surface's colour, with its tone before it."""
    if tones is None:
        return word
    return f"{TONES[min(int(tones[part] * len(TONES)), len(TONES) - 1)]} {word}"


def _body_words(person: Pedestrian, tones: Brightness | None) -> list[str]:
    height = "tall" if person.height > 0.947 else "medium" if person.height > 0.893 else "small"
    build = "broad" if person.build > 1.087 else "regular" if person.build > 0.953 else "slim"
    return [height, build, _toned(tones, "skin", person.skin)]


def _top_phrase(person: Pedestrian, view: str, tones: Brightness | None) -> str:
    """The caption of the top; a logo is named only where it is visible."""
    pattern = "plain" if person.pattern == "logo" and view != "front" else person.pattern
    first, second = _toned(tones, "top", person.top_dye), _toned(tones, "second", person.second_dye)
    noun = f"{person.top_material} {person.top}"
    return {
        "plain": f"{first} {noun}",
        "horizontal": f"{first} and {second} striped {noun}",
        "vertical": f"{first} and {second} pinstriped {noun}",
        "logo": f"{first} {noun} with {second} logo",
        "half": f"{first} over {second} {noun}",
    }[pattern]


def _attribute_phrases(person: Pedestrian, shot: Shot, tones: Brightness | None) -> list[str]:
    hair_words = f"{person.hair_style} {_toned(tones, 'hair', person.hair)} hair"
    hair = "bald head" if person.hair_style == "bald" else hair_words
    phrases = [f"{shot.view.split('-')[0]} view", hair]
    if person.hat != "none":
        phrases.append(f"{_toned(tones, 'hat', person.hat_dye)} {person.hat}")
    phrases += [
        _top_phrase(person, shot.view, tones),
        f"{_toned(tones, 'bottom', person.bottom_dye)} {person.bottom_material} {person.bottom}",
        f"{_toned(tones, 'shoes', person.shoe_dye)} shoes",
    ]
    if person.bag != "none":
        phrases.append(f"{_toned(tones, 'bag', person.bag_dye)} {person.bag}")
    return phrases


def caption(
    person: Pedestrian,
    camera_words: str,
    shot: Shot,
    drop: float = 0.0,
    rng: np.random.Generator | None = None,
    tones: Brightness | None = None,
) -> str:
    """Describes a photo in at most 40 words (commas counted) of `caption_words()`, and at most 8 more for `tones`.

    Each attribute is left out with probability `drop`, drawn from `rng`.
    """
    if drop > 0 and rng is None:
        raise ValueError("caption(drop > 0) needs an rng to draw from")

    def kept(phrases: list[str]) -> list[str]:
        return [p for p in phrases if rng is None or drop <= 0 or rng.random() >= drop]

    head = " ".join(["a photo of a", *kept(_body_words(person, tones)), "person"])
    return " , ".join([head, *kept([*_attribute_phrases(person, shot, tones), camera_words])])


def caption_phrase() -> str:
    """Returns the text of `caption` as a `Phrase`, with a learned word for each attribute, and marks where tones stand."""

    def one_of(*groups: Iterable[str], mark: str = "") -> str:
        return "{" + mark + "|".join(dict.fromkeys(word for group in groups for word in group)) + "}"

    dye, material = one_of(DYES, mark="~"), one_of(MATERIALS)
    # No caption has all parts; a missing one repeats another: no hat is "brown hair", no bag "blue shoes", a plain top
    # "red and red striped".
    parts = [
        f"{one_of(('tall', 'medium', 'small'))} {one_of(('broad', 'regular', 'slim'))} {one_of(SKINS, mark='~')} person",
        f"{one_of(HAIR_STYLES)} {one_of(HAIRS, mark='~')} {one_of(('hair', 'head'))}",
        f"{one_of(DYES, HAIRS, mark='~')} {one_of(HATS[1:], ('hair',))}",
        f"{dye} {one_of(('and', 'over'))} {dye} {one_of(('striped', 'pinstriped'), MATERIALS)} {material} {one_of(TOPS)}"
        f" with {dye} logo",
        f"{dye} {material} {one_of(BOTTOMS)}",
        f"{dye} shoes",
        f"{dye} {one_of(BAGS[1:], ('shoes',))}",
    ]
    return " , ".join(parts)


def phrase_words(person: Pedestrian, tones: Brightness | None = None) -> list[str]:
    """Returns the true word for each learned word of `caption_phrase`, in order, or two words where a tone is named."""
    striped = {"horizontal": "striped", "vertical": "pinstriped"}
    hair, shoes = _toned(tones, "hair", person.hair), _toned(tones, "shoes", person.shoe_dye)
    first, second = _toned(tones, "top", person.top_dye), _toned(tones, "second", person.second_dye)
    return [
        *_body_words(person, tones),
        *(person.hair_style, hair, "head" if person.hair_style == "bald" else "hair"),
        *((_toned(tones, "hat", person.hat_dye), person.hat) if person.hat != "none" else (hair, "hair")),
        *(first, "over" if person.pattern == "half" else "and"),
        second if person.pattern in (*striped, "half") else first,
        *(striped.get(person.pattern, person.top_material), person.top_material, person.top),
        second if person.pattern == "logo" else first,
        *(_toned(tones, "bottom", person.bottom_dye), person.bottom_material, person.bottom, shoes),
        *((_toned(tones, "bag", person.bag_dye), person.bag) if person.bag != "none" else (shoes, "shoes")),
    ]


def phrase_caption(person: Pedestrian, tones: Brightness | None = None) -> str:
    """Returns `caption_phrase` with a person's true words: a caption of what no pose changes."""
    words = iter(phrase_words(person, tones))
    return "a photo of a " + re.sub(r"\{[^}]*\}", lambda _: next(words), caption_phrase())


def caption_words() -> list[str]:
    """Returns the closed vocabulary of `caption`, sorted."""
    glue = "a photo of person , view hair head and over with striped pinstriped logo shoes"
    words = {*glue.split(), "tall", "medium", "small", "broad", "regular", "slim", "side"}
    words.update(DYES, MATERIALS, SKINS, HAIRS, HAIR_STYLES, HATS[1:], TOPS, BOTTOMS, BAGS[1:], SCENE_WORDS)
    words.update(view for view in VIEWS if "-" not in view)
    words.update((MONOCHROME, *TONES))
    return sorted(words)
