"""Tones: what they compute, by hand; which prompts have them; and files that hold them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dive_fast.encoder.virtual import _people
from dive_fast.models import PromptEncoder, fuse, load_adapter, load_bundle, merge_identities, save_adapter, save_bundle
from dive_fast.models.interop.exporter import export_adapter
from dive_fast.models.interop.importer import import_adapter
from dive_fast.models.phrase import Phrase
from dive_fast.types import Identity
from tests.support.models import assert_same_adapter, assert_same_tensors, diffusers_pipeline, json_edit, tensor_edit
from tests.support.refusals import refused
from tests.support.tiny import TEXT_WIDTH, TONED_PHRASE, tiny_tones, with_toned_people

PHRASE = Phrase(TONED_PHRASE)
TEXT = "<p.0> , <p.1.tone> <p.1> <p.2.tone> <p.2> <p.3> , <p.4.tone> <p.4>"


def rows(people: int) -> torch.Tensor:
    return torch.randn(people, 5, TEXT_WIDTH, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def toned(adapter):
    return with_toned_people(adapter)


def test_marks_are_no_part_of_a_word_and_stand_before_tiny_tones():
    assert PHRASE.choices[1] == ["red", "blue"] and PHRASE.toned == [1, 2, 4] and Phrase(PHRASE.plain).toned == []
    one = PHRASE.identity("x", "p")
    assert one == Phrase(PHRASE.plain).identity("x", "p") and one.text("ir") == one.text("rgb") == one.placeholder
    found = PHRASE.with_tones(one)
    assert found.text("ir") == TEXT and found.text("rgb") == one.placeholder
    assert found.words == [*one.words, "<p.1.tone>", "<p.2.tone>", "<p.4.tone>"] and found.tones == found.words[5:]
    assert PHRASE.describes(one) and not PHRASE.describes(Identity("x", "<p>"))


def test_levels_and_rows_by_hand():
    """In float64, word by word: a sigmoid of the word itself and of the mean of the others in its part, then a bell."""
    learned, given = tiny_tones(), rows(3)
    levels, own, beside, bias = (tensor.double().numpy() for tensor in learned.tensors().values())
    for number, row in zip(learned.numbers(PHRASE, given), given.double().numpy(), strict=True):
        parts = [(row[1], (row[2] + row[3]) / 2), (row[2], (row[1] + row[3]) / 2), (row[4], np.zeros(TEXT_WIDTH))]
        expected = [
            4 / (1 + math.exp(-(word @ own + others @ beside + b)))
            for (word, others), b in zip(parts, bias, strict=True)
        ]
        np.testing.assert_allclose(number.numpy(), expected, rtol=1e-5)
        bells = np.exp(-((np.arange(5) - np.array(expected)[:, None]) ** 2) / (2 * 0.5**2))
        found = learned.rows(PHRASE, torch.from_numpy(row).float()[None])[0]
        np.testing.assert_allclose(found.numpy(), bells / bells.sum(1, keepdims=True) @ levels, rtol=1e-4, atol=1e-5)


def test_people_of_the_phrase_get_tones_and_others_stay(toned, adapter):
    before, p, q = toned.identities[:-2], *toned.identities[-2:]
    assert before == adapter.identities and not any(one.infrared for one in before) and p.infrared == TEXT
    mine = toned.embeddings[-16:].unflatten(0, (2, 8))
    torch.testing.assert_close(mine[:, 5:], tiny_tones().rows(PHRASE, mine[:, :5]))
    without_q = replace(toned, identities=toned.identities[:-1], embeddings=toned.embeddings[:-8])
    again = merge_identities(without_q, [q], mine[1])
    assert_same_adapter(again, toned)  # who has tones keeps them


def test_virtual_people_are_compared_by_words_without_tones(toned):
    class Encoder:
        words, row_width = 5, TEXT_WIDTH

    found, others = _people(Encoder(), toned)
    assert (
        torch.equal(found[False], toned.embeddings[-16:].unflatten(0, (2, 8))[:, :5].flatten(1))
        and others == len(toned.identities) - 2
    )


def test_infrared_prompts_alone_have_tones_and_plain_diffusers_reads_them(toned, tiny_base, tmp_path):
    save_bundle(fuse(tiny_base, toned), tmp_path / "fused")
    fused = load_bundle(tmp_path / "fused")
    table = fused.prompts
    camera = {one.modality: one.name for one in table.cameras}
    said = {modality: table.prompt("p", name) for modality, name in camera.items()}
    assert TEXT in said["ir"] and ".tone>" not in said["rgb"] and table.identity("p").placeholder in said["rgb"]
    pipe = diffusers_pipeline(fused)
    for modality, name in camera.items():
        ours, _ = PromptEncoder(fused.tokenizer, table).encode(lambda ids: fused.text_encoder(ids)[0], [("p", name)])
        theirs, _ = pipe.encode_prompt(said[modality], "cpu", 1, False)
        torch.testing.assert_close(ours, theirs)
    before = {modality: pipe.encode_prompt(text, "cpu", 1, False)[0] for modality, text in said.items()}
    with torch.no_grad():
        fused.text_encoder.get_input_embeddings().weight[fused.tokenizer.convert_tokens_to_ids("<p.2.tone>")] += 1
    after = {modality: pipe.encode_prompt(text, "cpu", 1, False)[0] for modality, text in said.items()}
    assert torch.equal(before["rgb"], after["rgb"]) and not torch.allclose(before["ir"], after["ir"])


def test_files_keep_tones(toned, bundle, tmp_path):
    save_adapter(toned, tmp_path / "adapter")
    read = load_adapter(tmp_path / "adapter")
    assert_same_adapter(read, toned)
    assert read.fingerprint == toned.fingerprint
    assert_same_tensors(read.tones.tensors(), tiny_tones().tensors())
    assert replace(toned, tones=tiny_tones(7)).fingerprint != toned.fingerprint
    for layout in ("diffusers", "kohya"):
        export_adapter(toned, tmp_path / layout, layout)
        imported = import_adapter(bundle, [tmp_path / layout]).adapter
        assert imported.fingerprint == toned.fingerprint


ROWS = "identities.safetensors"
BROKEN = {
    "a tensor is missing": (tensor_edit(ROWS, lambda held: {k: v for k, v in held.items() if k != "tones.own"}), "own"),
    "another width": (tensor_edit(ROWS, lambda held: {**held, "tones.own": torch.zeros(3)}), "own"),
    "NaN": (tensor_edit(ROWS, lambda held: {**held, "tones.bias": torch.full((3,), math.nan)}), "NaN"),
    "no marks": (json_edit("adapter.json", phrase=PHRASE.plain), "bias"),
}


@pytest.mark.parametrize(("break_it", "part"), BROKEN.values(), ids=BROKEN.keys())
def test_damaged_tones_are_refused(break_it, part, toned, tmp_path: Path):
    save_adapter(toned, tmp_path / "adapter")
    break_it(tmp_path / "adapter")
    refused(part, load_adapter, tmp_path / "adapter")


def test_an_infrared_placeholder_has_every_word_once(toned):
    p = toned.identities[-2]
    for text in (TEXT.replace("<p.3> ", ""), TEXT.replace("<p.3>", "<p.3> <p.3>"), "nobody"):
        others = (*toned.identities[:-2], replace(p, infrared=text), toned.identities[-1])
        refused("'p'", replace, toned, identities=others)
