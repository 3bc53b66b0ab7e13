from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dive_fast.models import add_lora, load_adapter, merge_identities, save_adapter, set_lora_state, subset
from dive_fast.types import Camera, Identity, InputError
from tests.support.adapters import assert_same, run
from tests.support.tiny import TEXT_WIDTH, tiny_adapter


@pytest.fixture
def saved(adapter, tmp_path) -> Path:
    save_adapter(adapter, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_save_and_load_are_exact(adapter, saved):
    assert sorted(file.name for file in saved.iterdir()) == [
        "adapter.json",
        "identities.safetensors",
        "lora.safetensors",
    ]
    assert_same(load_adapter(saved), adapter)
    assert load_adapter(saved).fingerprint == adapter.fingerprint
    assert [entry.name for entry in saved.parent.iterdir()] == ["adapter"]


def test_fingerprint_is_that_of_the_contents(bundle, adapter):
    assert tiny_adapter(bundle).fingerprint == adapter.fingerprint
    assert replace(adapter, facts={"steps": 9}).fingerprint == adapter.fingerprint  # notes only
    others = [
        tiny_adapter(bundle, seed=1),
        replace(adapter, alpha=1.0),
        replace(adapter, cameras=adapter.cameras[:2]),
        replace(adapter, embeddings=adapter.embeddings + 1e-3),
        subset(adapter, ["0002", "0001", "0003"]),
    ]
    assert len({adapter.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_saved_in_fp16_the_lora_is_rounded_and_the_people_are_not(adapter, tmp_path):
    save_adapter(adapter, tmp_path / "half", dtype=torch.float16)
    half = load_adapter(tmp_path / "half")
    assert torch.equal(half.embeddings, adapter.embeddings)
    assert all(torch.equal(half.lora[key], tensor.half().float()) for key, tensor in adapter.lora.items())


def test_plain_diffusers_reads_the_lora_file(bundle, adapter, base_folder, tmp_path):
    """Rank and alpha too: with alpha = 3 rank the outputs would differ if diffusers had to guess."""
    from diffusers import StableDiffusionPipeline

    adapter = replace(adapter, alpha=3.0 * adapter.rank)
    save_adapter(adapter, tmp_path / "adapter")
    pipe = StableDiffusionPipeline.from_pretrained(base_folder, safety_checker=None, local_files_only=True)
    without = run(pipe.unet)
    pipe.load_lora_weights(tmp_path / "adapter", weight_name="lora.safetensors", local_files_only=True)
    add_lora(bundle.unet, adapter.rank, adapter.alpha)
    set_lora_state(bundle.unet, adapter.lora)
    assert torch.equal(run(pipe.unet), run(bundle.unet))
    assert not torch.allclose(run(pipe.unet), without)


def test_save_replaces_an_adapter_and_nothing_else(adapter, saved, tmp_path):
    changed = replace(adapter, facts={"steps": 5})
    save_adapter(changed, saved)
    assert_same(load_adapter(saved), changed)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="was not written by dive-fast"):
        save_adapter(adapter, tmp_path / "other")


def test_new_people_join_and_the_rest_stays_bit_for_bit(adapter):
    rows = torch.arange(2.0 * TEXT_WIDTH).reshape(2, TEXT_WIDTH)
    people = (Identity("0900", "<class_3>"), Identity("0901", "<class_4>"))
    merged = merge_identities(adapter, people, rows)
    assert merged.identities == (*adapter.identities, *people)
    assert torch.equal(merged.embeddings[:3], adapter.embeddings)
    assert torch.equal(merged.embeddings[3:], rows)
    assert all(torch.equal(merged.lora[key], adapter.lora[key]) for key in adapter.lora)
    assert merged.base_fingerprint == adapter.base_fingerprint
    assert len(adapter.identities) == 3
    assert_same(subset(merged, ["0001", "0002", "0003"]), adapter)
    assert torch.equal(subset(merged, ["0901", "0002"]).embeddings, torch.stack([rows[1], adapter.embeddings[1]]))


def test_people_of_several_words_keep_their_rows_together(adapter, tmp_path):
    rows = torch.arange(5.0 * TEXT_WIDTH).reshape(5, TEXT_WIDTH)
    people = (Identity("0900", "<a.0><a.1><a.2>"), Identity("0901", "<b.0><b.1>"))
    merged = merge_identities(adapter, people, rows)
    assert torch.equal(merged.embeddings[3:], rows)
    chosen = subset(merged, ["0901", "0002", "0900"]).embeddings
    assert torch.equal(chosen, torch.cat([rows[3:], adapter.embeddings[1:2], rows[:3]]))
    save_adapter(merged, tmp_path / "several")
    assert_same(load_adapter(tmp_path / "several"), merged)
    with pytest.raises(InputError, match="placeholder '<b.0>' occurs more than once"):
        merge_identities(adapter, [Identity("0902", "<b.0><b.0>")], rows[:2])
    with pytest.raises(InputError, match="1 identities with 2 words need embeddings"):
        merge_identities(adapter, people[1:], rows)


@pytest.mark.parametrize(
    ("people", "rows", "words"),
    [
        ([Identity("0001", "<class_9>")], torch.zeros(1, TEXT_WIDTH), "pid '0001' occurs more than once"),
        ([Identity("0009", "<class_0>")], torch.zeros(1, TEXT_WIDTH), "placeholder '<class_0>' occurs more than once"),
        ([Identity("0009", "<class_9>")], torch.zeros(1, 7), "rows are 7 wide, those of the adapter 32"),
        ([Identity("0009", "<class_9>")], torch.zeros(2, TEXT_WIDTH), r"1 words need embeddings \[1, width\]"),
        ([Identity("0009", "<class_9>")], torch.full((1, TEXT_WIDTH), torch.nan), "NaN or infinity"),
        ([], torch.zeros(0, TEXT_WIDTH), "at least one"),
    ],
)
def test_people_that_cannot_join_are_refused(people, rows, words, adapter):
    with pytest.raises(InputError, match=words):
        merge_identities(adapter, people, rows)


def test_an_unknown_person_gets_the_count_and_the_nearest(bundle):
    adapter = tiny_adapter(bundle, pids=["0101", "0535", "0777"])
    with pytest.raises(InputError) as caught:
        subset(adapter, ["0101", "0534"])
    assert str(caught.value) == "adapter holds 3 identities, '0534' is not one of them, nearest '0535'"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 8}, r"has A \[4, 32\] and B \[32, 4\], needs A \[8, in\]"),
        ({"rank": 0}, "rank must be a whole number"),
        ({"alpha": -1.0}, "alpha must be a finite number"),
        ({"embeddings": torch.zeros(2, TEXT_WIDTH)}, "3 identities with 3 words need embeddings"),
        ({"embeddings": torch.full((3, TEXT_WIDTH), torch.inf)}, "NaN or infinity"),
        ({"lora": {}}, "LoRA is empty"),
        ({"lora": {"a.lora_A.weight": torch.zeros(4, 2)}}, "1 of 1 keys are not whole"),
        ({"lora": {"a.bias": torch.zeros(4)}}, "not whole"),
        ({"cameras": (Camera("cam1", "rgb", "x"), Camera("cam1", "ir", "y"))}, "camera name 'cam1' occurs"),
        ({"template": "a photo"}, "must contain"),
        ({"phrase": "a person"}, "needs at least one learned word"),
    ],
)
def test_an_adapter_that_cannot_work_is_not_made(changes, words, adapter):
    with pytest.raises(InputError, match=words):
        replace(adapter, **changes)


def edit_json(folder: Path, **changes: object) -> None:
    path = folder / "adapter.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(change(tensors), path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no json": (lambda f: (f / "adapter.json").unlink(), "has no adapter.json"),
    "cut json": (lambda f: cut(f / "adapter.json"), "is not valid JSON"),
    "other format": (lambda f: edit_json(f, format="dive-fast adapter 9"), "this version reads 'dive-fast adapter 2'"),
    "list": (lambda f: (f / "adapter.json").write_text("[]"), "format is 'list'"),
    "no rows": (lambda f: (f / "identities.safetensors").unlink(), "identities.safetensors does not exist"),
    "cut rows": (lambda f: cut(f / "identities.safetensors"), "identities.safetensors is not a whole safetensors"),
    "no lora": (lambda f: (f / "lora.safetensors").unlink(), "lora.safetensors does not exist"),
    "cut lora": (lambda f: cut(f / "lora.safetensors"), "lora.safetensors is not a whole safetensors file"),
    "pickle": (lambda f: torch.save({}, f / "lora.safetensors"), "lora.safetensors is not a whole safetensors file"),
    "unprefixed": (
        lambda f: edit_tensors(f / "lora.safetensors", lambda s: {k.removeprefix("unet."): t for k, t in s.items()}),
        "64 of 64 keys lack the prefix 'unet.'",
    ),
    "other tensor": (
        lambda f: edit_tensors(f / "identities.safetensors", lambda s: {"rows": s["embeddings"]}),
        r"must hold one tensor 'embeddings', found \['rows'\]",
    ),
    "whole numbers": (
        lambda f: edit_tensors(f / "identities.safetensors", lambda s: {"embeddings": s["embeddings"].long()}),
        "is torch.int64, expected floating point",
    ),
    "one row short": (
        lambda f: edit_tensors(f / "identities.safetensors", lambda s: {"embeddings": s["embeddings"][:2]}),
        "3 identities with 3 words need embeddings",
    ),
    "flat rows": (
        lambda f: edit_tensors(f / "identities.safetensors", lambda s: {"embeddings": s["embeddings"][:, 0].clone()}),
        r"got \[3\]",
    ),
    "other rank": (lambda f: edit_json(f, rank=3), r"needs A \[3, in\]"),
    "no rank": (lambda f: edit_json(f, rank=None), "rank must be a whole number >= 1, got None"),
    "text alpha": (lambda f: edit_json(f, alpha="4"), "alpha must be a finite number"),
    "facts no object": (lambda f: edit_json(f, facts=[1]), "facts must be dict"),
    "template no text": (lambda f: edit_json(f, template=None), "template must be str"),
    "phrase no text": (lambda f: edit_json(f, phrase=["{person}"]), "phrase must be str"),
    "identities no list": (lambda f: edit_json(f, identities={"0001": "<class_0>"}), "expected a list of Identity"),
    "camera without code": (
        lambda f: edit_json(f, cameras=[{"name": "cam1", "modality": "rgb"}]),
        "Camera is incomplete",
    ),
}


@pytest.mark.parametrize(("break_it", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_adapter_is_named(break_it, words, saved):
    break_it(saved)
    with pytest.raises(InputError, match=words) as caught:
        load_adapter(saved)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_adapter_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere has no adapter.json"):
        load_adapter(tmp_path / "nowhere")
