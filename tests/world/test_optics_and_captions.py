"""The world's promises to its users: infrared is no function of grey, captions stay in their vocabulary."""

import numpy as np

from dive_fast.world.base.data import base_identities
from dive_fast.world.cameras import MARKET_CAMERAS, SYSU_CAMERAS, random_monochrome_camera, random_rgb_camera
from dive_fast.world.captions import TONES, caption, caption_words, phrase_caption
from dive_fast.world.optics import NIR, random_spectrum, weave_maps
from dive_fast.world.pedestrians import DYES, MATERIALS, sample_pedestrian, sample_shot, world_pedestrian
from tests.support.refusals import refused

LUMA = np.array([0.299, 0.587, 0.114])  # Rec. 601


def random_garments(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Luma and NIR, each [count], of the tops of random persons."""
    rng = np.random.default_rng(0)
    tops = [(p.top_material, p.top_dye) for p in (sample_pedestrian(rng) for _ in range(count))]
    return np.array([LUMA @ DYES[d].rgb for _, d in tops]), np.array([NIR.garment(m, d) for m, d in tops])


def test_luma_predicts_infrared_badly():
    grey, infrared = random_garments(2000)
    assert abs(np.corrcoef(grey, infrared)[0, 1]) < 0.15
    # nor does any smooth curve: a cubic explains little of the variance
    residual = infrared - np.polyval(np.polyfit(grey, infrared, 3), grey)
    assert 1 - residual.var() / infrared.var() < 0.25


def test_infrared_uses_its_whole_range():
    values = [NIR.garment(m, d) for m in MATERIALS for d in DYES]
    assert min(values) < 0.10 and max(values) > 0.90
    assert NIR.garment("cotton", "black") > 2 * NIR.garment("nylon", "white")


def test_infrared_keeps_both_dyes_of_most_patterns_apart():
    dyes = tuple(DYES)
    gaps = [abs(NIR.garment("cotton", a) - NIR.garment("cotton", b)) for a in dyes for b in dyes if a != b]
    assert np.mean(np.array(gaps) > 0.05) > 0.7


def test_weaves_differ_between_materials():
    relative, additive = weave_maps(256, 128)
    flat = (relative + additive).reshape(len(relative), -1)[2:]  # without bare skin and cotton, which are smooth
    assert np.all(flat.std(axis=1) > 0.05)
    assert np.abs(np.corrcoef(flat) - np.eye(len(flat))).max() < 0.2


def test_captions_stay_in_the_closed_vocabulary_and_short():
    rng = np.random.default_rng(1)
    known = set(caption_words())
    used: set[str] = set()
    parts = ("skin", "hair", "hat", "top", "second", "bottom", "shoes", "bag")
    for _ in range(1500):
        person, shot, camera = sample_pedestrian(rng), sample_shot(rng), random_rgb_camera(rng)
        tones = dict(zip(parts, rng.random(len(parts)), strict=True))
        plain, toned = (caption(person, camera.words, shot, tones=t).split() for t in (None, tones))
        assert len(plain) <= 40 and len(toned) <= 48
        assert [word for word in toned if word not in TONES] == plain
        used.update(toned, phrase_caption(person).split())
    for camera in (*SYSU_CAMERAS.values(), *MARKET_CAMERAS.values(), random_monochrome_camera(rng)):
        used.update(camera.words.split())
    assert used | {"monochrome"} == known
    assert caption_words() == sorted(known)


def test_a_tone_names_an_eighth_of_the_reflectances_and_precedes_its_colour():
    person = world_pedestrian(0, 1)
    tones = dict.fromkeys(("skin", "hair", "hat", "second", "bottom", "shoes", "bag"), 0.0) | {"top": 0.51}
    words = phrase_caption(person, tones).split()
    assert words[words.index(f"{person.top_dye}") - 1] == TONES[4]
    assert words[words.index("shoes") - 2] == TONES[0]
    assert [word for word in words if word not in TONES] == phrase_caption(person).split()


def test_random_spectra_differ_and_stay_within_the_range_of_reflectances():
    spectra = [random_spectrum(np.random.default_rng(i)) for i in range(200)]
    values = np.array([[s.garment(m, d) for m in MATERIALS for d in DYES] for s in spectra])
    assert values.min() >= 0.06 and values.max() <= 0.95
    assert np.abs(values.mean(axis=0) - 0.5).max() < 0.1  # no dye is bright on average
    assert values.std(axis=0).min() > 0.15


def test_dropping_phrases_shortens_captions():
    rng = np.random.default_rng(2)
    person, shot = sample_pedestrian(rng), sample_shot(rng)
    full = caption(person, "bright warm indoor", shot)
    assert caption(person, "bright warm indoor", shot, drop=1.0, rng=rng) == "a photo of a person"
    partial = [caption(person, "bright warm indoor", shot, drop=0.4, rng=rng) for _ in range(20)]
    assert len(set(partial)) > 10
    assert all(set(p.split()) <= set(full.split()) and len(p) <= len(full) for p in partial)
    refused("rng", caption, person, "bright warm indoor", shot, error=ValueError, drop=0.4)


def test_base_and_world_identities_never_meet():
    base = set(base_identities(0, 300))
    world = {world_pedestrian(0, i) for i in range(300)}
    assert len(base) == len(world) == 300
    assert not base & world
    assert world_pedestrian(0, 7) == world_pedestrian(0, 7) != world_pedestrian(1, 7)
