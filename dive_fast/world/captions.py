"""Captions of pedestrians in a small closed vocabulary. Importing this loads neither torch nor numpy."""

from __future__ import annotations

from collections.abc import Iterable
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


def _body_words(person: Pedestrian) -> list[str]:
    height = "tall" if person.height > 0.947 else "medium" if person.height > 0.893 else "small"
    build = "broad" if person.build > 1.087 else "regular" if person.build > 0.953 else "slim"
    return [height, build, person.skin]


def _top_phrase(person: Pedestrian, view: str) -> str:
    """The caption of the top; a logo is named only where it is visible."""
    pattern = "plain" if person.pattern == "logo" and view != "front" else person.pattern
    first, second, noun = person.top_dye, person.second_dye, f"{person.top_material} {person.top}"
    return {
        "plain": f"{first} {noun}",
        "horizontal": f"{first} and {second} striped {noun}",
        "vertical": f"{first} and {second} pinstriped {noun}",
        "logo": f"{first} {noun} with {second} logo",
        "half": f"{first} over {second} {noun}",
    }[pattern]


def _attribute_phrases(person: Pedestrian, shot: Shot) -> list[str]:
    hair = "bald head" if person.hair_style == "bald" else f"{person.hair_style} {person.hair} hair"
    phrases = [f"{shot.view.split('-')[0]} view", hair]
    if person.hat != "none":
        phrases.append(f"{person.hat_dye} {person.hat}")
    phrases += [
        _top_phrase(person, shot.view),
        f"{person.bottom_dye} {person.bottom_material} {person.bottom}",
        f"{person.shoe_dye} shoes",
    ]
    if person.bag != "none":
        phrases.append(f"{person.bag_dye} {person.bag}")
    return phrases


def caption(
    person: Pedestrian, camera_words: str, shot: Shot, drop: float = 0.0, rng: np.random.Generator | None = None
) -> str:
    """Describes a photo in at most 40 words (commas counted) of `caption_words()`.

    Each attribute is left out with probability `drop`, drawn from `rng`.
    """
    if drop > 0 and rng is None:
        raise ValueError("caption(drop > 0) needs an rng to draw from")

    def kept(phrases: list[str]) -> list[str]:
        return [p for p in phrases if rng is None or drop <= 0 or rng.random() >= drop]

    head = " ".join(["a photo of a", *kept(_body_words(person)), "person"])
    return " , ".join([head, *kept([*_attribute_phrases(person, shot), camera_words])])


def caption_phrase() -> str:
    """Returns the text of `caption` as a `Phrase`, with a learned word for each attribute."""

    def one_of(*groups: Iterable[str]) -> str:
        return "{" + "|".join(dict.fromkeys(word for group in groups for word in group)) + "}"

    dye, material = one_of(DYES), one_of(MATERIALS)
    # No caption has all parts; a missing one repeats another: no hat is "brown hair", no bag "blue shoes", a plain top
    # "red and red striped".
    parts = [
        f"{one_of(('tall', 'medium', 'small'))} {one_of(('broad', 'regular', 'slim'))} {one_of(SKINS)} person",
        f"{one_of(HAIR_STYLES)} {one_of(HAIRS)} {one_of(('hair', 'head'))}",
        f"{one_of(DYES, HAIRS)} {one_of(HATS[1:], ('hair',))}",
        f"{dye} {one_of(('and', 'over'))} {dye} {one_of(('striped', 'pinstriped'), MATERIALS)} {material} {one_of(TOPS)}"
        f" with {dye} logo",
        f"{dye} {material} {one_of(BOTTOMS)}",
        f"{dye} shoes",
        f"{dye} {one_of(BAGS[1:], ('shoes',))}",
    ]
    return " , ".join(parts)


def phrase_words(person: Pedestrian) -> list[str]:
    """Returns the true word for each learned word of `caption_phrase`, in order."""
    striped = {"horizontal": "striped", "vertical": "pinstriped"}
    two_dyes = person.pattern in (*striped, "half")
    return [
        *_body_words(person),
        *(person.hair_style, person.hair, "head" if person.hair_style == "bald" else "hair"),
        *((person.hat_dye, person.hat) if person.hat != "none" else (person.hair, "hair")),
        *(person.top_dye, "over" if person.pattern == "half" else "and"),
        person.second_dye if two_dyes else person.top_dye,
        *(striped.get(person.pattern, person.top_material), person.top_material, person.top),
        person.second_dye if person.pattern == "logo" else person.top_dye,
        *(person.bottom_dye, person.bottom_material, person.bottom, person.shoe_dye),
        *((person.bag_dye, person.bag) if person.bag != "none" else (person.shoe_dye, "shoes")),
    ]


def caption_words() -> list[str]:
    """Returns the closed vocabulary of `caption`, sorted."""
    glue = "a photo of person , view hair head and over with striped pinstriped logo shoes"
    words = {*glue.split(), "tall", "medium", "small", "broad", "regular", "slim", "side"}
    words.update(DYES, MATERIALS, SKINS, HAIRS, HAIR_STYLES, HATS[1:], TOPS, BOTTOMS, BAGS[1:], SCENE_WORDS)
    words.update(view for view in VIEWS if "-" not in view)
    return sorted(words)
