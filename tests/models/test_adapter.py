from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dive_fast.models import add_lora, load_adapter, merge_identities, save_adapter, set_lora_state, subset
from dive_fast.types import Camera, Identity, InputError
from tests.support.models import assert_same_adapter, json_edit, run_unet, tensor_edit, truncate
from tests.support.refusals import refused
from tests.support.tiny import TEXT_WIDTH, tiny_adapter

JSON, ROWS, LORA = "adapter.json", "identities.safetensors", "lora.safetensors"


@pytest.fixture
def saved(adapter, tmp_path) -> Path:
    save_adapter(adapter, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_save_and_load_are_exact(adapter, saved):
    assert {file.name for file in saved.iterdir()} == {JSON, ROWS, LORA}
    assert_same_adapter(load_adapter(saved), adapter)
    assert load_adapter(saved).fingerprint == adapter.fingerprint
    assert [entry.name for entry in saved.parent.iterdir()] == ["adapter"]


def test_fingerprint_is_that_of_the_contents(bundle, adapter):
    assert tiny_adapter(bundle).fingerprint == adapter.fingerprint
    assert replace(adapter, metadata={"steps": 9}).fingerprint == adapter.fingerprint
    others = [
        tiny_adapter(bundle, seed=1),
        replace(adapter, alpha=1.0),
        replace(adapter, cameras=adapter.cameras[:2]),
        replace(adapter, embeddings=adapter.embeddings + 1e-3),
        subset(adapter, ["0002", "0001", "0003"]),
    ]
    assert len({adapter.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_saved_in_fp16_everything_is_rounded(adapter, tmp_path):
    save_adapter(adapter, tmp_path / "half", dtype=torch.float16)
    half = load_adapter(tmp_path / "half")
    assert torch.equal(half.embeddings, adapter.embeddings.half().float())
    assert all(torch.equal(half.lora[key], tensor.half().float()) for key, tensor in adapter.lora.items())


def test_plain_diffusers_reads_the_lora_file(bundle, adapter, tiny_base, tmp_path):
    """Rank and alpha too: with alpha = 3 rank the outputs would differ if diffusers had to guess."""
    from diffusers import StableDiffusionPipeline

    adapter = replace(adapter, alpha=3.0 * adapter.rank)
    save_adapter(adapter, tmp_path / "adapter")
    pipe = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None, local_files_only=True)
    without = run_unet(pipe.unet)
    pipe.load_lora_weights(tmp_path / "adapter", weight_name="lora.safetensors", local_files_only=True)
    add_lora(bundle.unet, adapter.rank, adapter.alpha)
    set_lora_state(bundle.unet, adapter.lora)
    assert torch.equal(run_unet(pipe.unet), run_unet(bundle.unet))
    assert not torch.allclose(run_unet(pipe.unet), without)


def test_save_replaces_an_adapter_if_asked_and_nothing_else(adapter, saved, tmp_path):
    changed = replace(adapter, metadata={"steps": 5})
    save_adapter(adapter, saved)  # an equal one
    refused("--overwrite", save_adapter, changed, saved)
    assert_same_adapter(load_adapter(saved), adapter)
    save_adapter(changed, saved, overwrite=True)
    assert_same_adapter(load_adapter(saved), changed)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    refused("other", save_adapter, adapter, tmp_path / "other")


def test_new_identities_join_and_the_rest_stays_bit_for_bit(adapter):
    rows = torch.arange(2.0 * TEXT_WIDTH).reshape(2, TEXT_WIDTH)
    new = (Identity("0900", "<class_3>"), Identity("0901", "<class_4>"))
    merged = merge_identities(adapter, new, rows)
    assert merged.identities == (*adapter.identities, *new)
    assert torch.equal(merged.embeddings[:3], adapter.embeddings)
    assert torch.equal(merged.embeddings[3:], rows)
    assert_same_adapter(subset(merged, ["0001", "0002", "0003"]), adapter)
    assert torch.equal(subset(merged, ["0901", "0002"]).embeddings, torch.stack([rows[1], adapter.embeddings[1]]))


def test_identities_of_several_words_keep_their_rows_together(adapter, tmp_path):
    rows = torch.arange(5.0 * TEXT_WIDTH).reshape(5, TEXT_WIDTH)
    new = (Identity("0900", "<a.0><a.1><a.2>"), Identity("0901", "<b.0><b.1>"))
    merged = merge_identities(adapter, new, rows)
    assert torch.equal(merged.embeddings[3:], rows)
    chosen = subset(merged, ["0901", "0002", "0900"]).embeddings
    assert torch.equal(chosen, torch.cat([rows[3:], adapter.embeddings[1:2], rows[:3]]))
    save_adapter(merged, tmp_path / "several")
    assert_same_adapter(load_adapter(tmp_path / "several"), merged)


@pytest.mark.parametrize(
    ("new", "rows", "part"),
    [
        ([Identity("0001", "<class_9>")], torch.ones(1, TEXT_WIDTH), "'0001'"),
        ([Identity("0009", "<class_0>")], torch.ones(1, TEXT_WIDTH), "'<class_0>'"),
        ([Identity("0009", "<class_9>")], torch.ones(1, 7), "7 wide.* 32"),
        ([Identity("0009", "<class_9>")], torch.ones(2, TEXT_WIDTH), r"1 words.* \[2, 32\]"),
        ([Identity("0009", "<class_9>")], torch.full((1, TEXT_WIDTH), torch.nan), "NaN"),
        ([Identity("0009", "<b.0><b.0>")], torch.ones(2, TEXT_WIDTH), "'<b.0>'"),
        ([Identity("0009", "<b.0><b.1>")], torch.ones(5, TEXT_WIDTH), "2 words"),
        ([], torch.zeros(0, TEXT_WIDTH), "0 words"),
    ],
)
def test_identities_that_cannot_join_are_refused(new, rows, part, adapter):
    refused(part, merge_identities, adapter, new, rows)


def test_an_unknown_identity_gets_the_count_and_the_nearest(bundle):
    adapter = tiny_adapter(bundle, pids=["0101", "0535", "0777"])
    refused("3 identities, '0534'.* nearest '0535'", subset, adapter, ["0101", "0534"])


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"rank": 8}, r"A \[4, 32\] and B \[32, 4\], needs A \[8, in\]"),
        ({"rank": 0}, "rank.* 0"),
        ({"alpha": -1.0}, "alpha.* -1.0"),
        ({"embeddings": torch.zeros(2, TEXT_WIDTH)}, r"3 words.* \[2, 32\]"),
        ({"embeddings": torch.full((3, TEXT_WIDTH), torch.inf)}, "infinity"),
        ({"embeddings": torch.full((3, TEXT_WIDTH), 1e30)}, "1.0e\\+30.* float16"),
        ({"embeddings": torch.ones(3, TEXT_WIDTH) * torch.tensor([[1], [0], [1]])}, "<class_1> is all zeros"),
        (
            {"lora": {"a.lora_A.weight": torch.full((4, 2), 1e30), "a.lora_B.weight": torch.zeros(2, 4)}},
            "a holds 1.0e\\+30",
        ),
        (
            {"lora": {"a.lora_A.weight": torch.full((4, 2), 4e3), "a.lora_B.weight": torch.ones(2, 4) * 1e3}},
            "by 1.6e\\+07",
        ),
        ({"embeddings": torch.zeros(3, 0)}, r"\[3, 0\]"),
        ({"lora": {"a.lora_A.weight": torch.ones(4, 2), "a.lora_B.weight": torch.ones(0, 4)}}, r"\[0, 4\]"),
        ({"lora": {}}, "empty"),
        ({"lora": {"a.lora_A.weight": torch.zeros(4, 2)}}, "'a'"),
        ({"lora": {"a.bias": torch.zeros(4)}}, "'a.bias'"),
        ({"cameras": (Camera("cam1", "rgb", "x"), Camera("cam1", "ir", "y"))}, "'cam1'"),
        ({"template": "a photo"}, "'a photo'"),
        ({"phrase": "a person"}, "'a person'"),
    ],
)
def test_an_adapter_that_cannot_work_is_not_made(changes, part, adapter):
    refused(part, replace, adapter, **changes)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no json": (lambda f: (f / JSON).unlink(), JSON),
    "cut json": (lambda f: truncate(f / JSON), JSON),
    "other format": (json_edit(JSON, format="dive-fast adapter 9"), "adapter 9.*adapter 2"),
    "list": (lambda f: (f / JSON).write_text("[]"), "list"),
    "no rows": (lambda f: (f / ROWS).unlink(), ROWS),
    "cut rows": (lambda f: truncate(f / ROWS), ROWS),
    "no lora": (lambda f: (f / LORA).unlink(), LORA),
    "cut lora": (lambda f: truncate(f / LORA), LORA),
    "pickle": (lambda f: torch.save({}, f / LORA), LORA),
    "unprefixed": (
        tensor_edit(LORA, lambda s: {k.removeprefix("unet."): t for k, t in s.items()}),
        "lora.safetensors: 64 of 64 .*'unet.'",
    ),
    "other tensor": (tensor_edit(ROWS, lambda s: {"rows": s["embeddings"]}), r"'embeddings', found \['rows'\]"),
    "whole numbers": (tensor_edit(ROWS, lambda s: {"embeddings": s["embeddings"].long()}), "torch.int64"),
    "flat rows": (tensor_edit(ROWS, lambda s: {"embeddings": s["embeddings"][:, 0].clone()}), r"\[3\]"),
    "no rank": (json_edit(JSON, rank=None), "rank.* None"),
    "text alpha": (json_edit(JSON, alpha="4"), "alpha.* '4'"),
    "facts no object": (json_edit(JSON, facts=[1]), "facts"),
    "template no text": (json_edit(JSON, template=None), "template"),
    "phrase no text": (json_edit(JSON, phrase=["{person}"]), "phrase"),
    "identities no list": (json_edit(JSON, identities={"0001": "<class_0>"}), "identities"),
    "camera without code": (json_edit(JSON, cameras=[{"name": "cam1", "modality": "rgb"}]), "cameras.*'code'"),
}


@pytest.mark.parametrize(("break_it", "part"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_adapter_is_named(break_it, part, saved):
    break_it(saved)
    with pytest.raises(InputError, match=f"^[^\n]*{part}[^\n]*$") as caught:
        load_adapter(saved)
    assert str(saved) in str(caught.value)


def test_a_missing_adapter_is_named(tmp_path):
    refused("nowhere has no adapter.json", load_adapter, tmp_path / "nowhere")


def test_the_shipped_adapter_has_its_fingerprint():
    assert load_adapter("pocket").fingerprint == "dbe3b70bc0ae4a4d70f804efb25a58b590649b031f32c6b89bfb2567958b04dd"
