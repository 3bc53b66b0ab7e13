"""Who is in the world: identities, their photos' poses, and captions in a small closed vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dive_fast.world.optics import DYES, HAIRS, MATERIALS, SKINS

HAIR_STYLES = ("short", "long", "bald", "bun")
HATS = ("none", "cap", "beanie")
TOPS = ("tshirt", "shirt", "jacket", "coat")
PATTERNS = ("plain", "horizontal", "vertical", "logo", "half")
BOTTOMS = ("trousers", "shorts", "skirt")
BAGS = ("none", "backpack", "satchel", "handbag")
VIEWS = ("front", "back", "side-left", "side-right")
SCENE_WORDS = ("indoor", "outdoor", "bright", "dim", "warm", "cool")
CAPTION_TEMPLATE = "a {cam} photo of a {token}"
# What hats, shoes and bags are made of never varies, so their infrared depends on the dye alone.
ACCESSORY_MATERIAL = {
    "cap": "cotton",
    "beanie": "wool",
    "shoes": "leather",
    "backpack": "nylon",
    "satchel": "leather",
    "handbag": "leather",
}


@dataclass(frozen=True)
class Person:
    """An identity: everything about a pedestrian that no camera or pose changes."""

    height: float  # relative to the tallest person, 0.84..1
    build: float  # relative body width, 0.82..1.22
    skin: str
    hair_style: str
    hair: str
    hat: str
    hat_dye: str
    top: str
    top_dye: str
    second_dye: str
    pattern: str
    top_material: str
    bottom: str
    bottom_dye: str
    bottom_material: str
    shoe_dye: str
    bag: str
    bag_dye: str


@dataclass(frozen=True)
class Shot:
    """One moment of one photo, shared by all cameras that see it: pose, placement, light, noise seed."""

    phase: float  # of the walk, radians
    view: str
    scale: float
    dx: float  # image pixels
    dy: float  # image pixels
    gain: float  # of the light, around 1
    blur: float  # 0 (sharp) .. 0.2 (soft)
    seed: int
    mirrored: bool


def _pick(rng: np.random.Generator, options: tuple[str, ...], weights: tuple[float, ...] | None = None) -> str:
    p = None if weights is None else np.array(weights) / sum(weights)
    return options[int(rng.choice(len(options), p=p))]


def sample_person(rng: np.random.Generator) -> Person:
    """Draw an identity; attributes are independent, so no garment predicts another."""
    dyes, materials = tuple(DYES), tuple(MATERIALS)
    top_dye = _pick(rng, dyes)
    return Person(
        height=float(rng.uniform(0.84, 1.0)),
        build=float(rng.uniform(0.82, 1.22)),
        skin=_pick(rng, tuple(SKINS)),
        hair_style=_pick(rng, HAIR_STYLES, (0.4, 0.34, 0.1, 0.16)),
        hair=_pick(rng, tuple(HAIRS)),
        hat=_pick(rng, HATS, (0.6, 0.2, 0.2)),
        hat_dye=_pick(rng, dyes),
        top=_pick(rng, TOPS),
        top_dye=top_dye,
        second_dye=_pick(rng, tuple(d for d in dyes if d != top_dye)),
        pattern=_pick(rng, PATTERNS, (0.36, 0.18, 0.14, 0.16, 0.16)),
        top_material=_pick(rng, materials),
        bottom=_pick(rng, BOTTOMS, (0.56, 0.22, 0.22)),
        bottom_dye=_pick(rng, dyes),
        bottom_material=_pick(rng, materials),
        shoe_dye=_pick(rng, dyes),
        bag=_pick(rng, BAGS, (0.34, 0.26, 0.2, 0.2)),
        bag_dye=_pick(rng, dyes),
    )


def sample_shot(rng: np.random.Generator) -> Shot:
    """Draw the pose and light of one photo."""
    return Shot(
        phase=float(rng.uniform(0, 2 * np.pi)),
        view=_pick(rng, VIEWS, (0.35, 0.3, 0.175, 0.175)),
        scale=float(rng.uniform(0.95, 1.05)),
        dx=float(rng.uniform(-3.5, 3.5)),
        dy=float(rng.uniform(-2.5, 2.5)),
        gain=float(rng.uniform(0.86, 1.12)),
        blur=float(rng.uniform(0.0, 0.14)),
        seed=int(rng.integers(2**31)),
        mirrored=bool(rng.random() < 0.5),
    )


def keyed_rng(*key: str | int) -> np.random.Generator:
    """A generator that depends on its key alone, so that neither order nor amount of other work changes a draw."""
    digest = hashlib.sha256("/".join(str(part) for part in key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def world_person(seed: int, pid: int) -> Person:
    """The identity `pid` of the world with this seed."""
    return sample_person(keyed_rng("world person", seed, pid))


def base_person(seed: int, index: int) -> Person:
    """An identity for training the base model; no world has it."""
    return sample_person(keyed_rng("base person", seed, index))


def world_shot(seed: int, pid: int, camera: str, index: int) -> Shot:
    """The shot behind photo number `index` that `camera` takes of `pid`."""
    return sample_shot(keyed_rng("world shot", seed, pid, camera, index))


def _body_words(person: Person) -> list[str]:
    height = "tall" if person.height > 0.947 else "medium" if person.height > 0.893 else "small"
    build = "broad" if person.build > 1.087 else "regular" if person.build > 0.953 else "slim"
    return [height, build, person.skin]


def _top_phrase(person: Person, view: str) -> str:
    """The top in words; a logo is only named where it is seen."""
    pattern = "plain" if person.pattern == "logo" and view != "front" else person.pattern
    first, second, noun = person.top_dye, person.second_dye, f"{person.top_material} {person.top}"
    return {
        "plain": f"{first} {noun}",
        "horizontal": f"{first} and {second} striped {noun}",
        "vertical": f"{first} and {second} pinstriped {noun}",
        "logo": f"{first} {noun} with {second} logo",
        "half": f"{first} over {second} {noun}",
    }[pattern]


def _attribute_phrases(person: Person, shot: Shot) -> list[str]:
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
    person: Person, camera_words: str, shot: Shot, drop: float = 0.0, rng: np.random.Generator | None = None
) -> str:
    """Describe a photo in at most 40 words (commas counted) of `caption_words()`.

    With `drop` > 0 each attribute phrase is left out with that probability, drawn from `rng`, so that a model
    trained on the captions learns partial ones too.
    """
    if drop > 0 and rng is None:
        raise ValueError("caption(drop > 0) needs an rng to draw from")

    def kept(phrases: list[str]) -> list[str]:
        return [p for p in phrases if rng is None or drop <= 0 or rng.random() >= drop]

    head = " ".join(["a photo of a", *kept(_body_words(person)), "person"])
    return " , ".join([head, *kept([*_attribute_phrases(person, shot), camera_words])])


def caption_phrase() -> str:
    """The body of `caption` with a word to learn wherever persons differ, as `models.phrase.Phrase` reads it."""

    def one_of(*groups: Iterable[str]) -> str:
        return "{" + "|".join(dict.fromkeys(word for group in groups for word in group)) + "}"

    dye, material = one_of(DYES), one_of(MATERIALS)
    # Nobody's caption has all of these parts. Whoever lacks one says another thing twice: no hat is "brown hair" again, no
    # bag "blue shoes", a plain top "red and red striped".
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


def phrase_words(person: Person) -> list[str]:
    """The true word of each learned word of `caption_phrase`, in order; who lacks a thing says another twice."""
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
    """The closed vocabulary of `caption`, sorted."""
    glue = "a photo of person , view hair head and over with striped pinstriped logo shoes"
    words = {*glue.split(), "tall", "medium", "small", "broad", "regular", "slim", "side"}
    for group in (DYES, MATERIALS, SKINS, HAIRS, HAIR_STYLES, HATS[1:], TOPS, BOTTOMS, BAGS[1:], SCENE_WORDS):
        words.update(group)
    words.update(view for view in VIEWS if "-" not in view)
    return sorted(words)
