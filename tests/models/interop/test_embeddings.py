"""Textual inversion of other tools as identities, and DiVE's whole folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dive_fast.io import sha256_file
from dive_fast.models import DEFAULT_TEMPLATE, PromptEncoder, fuse, load_adapter, save_adapter
from dive_fast.models.interop import import_adapter, parse_camera
from dive_fast.models.interop.embeddings import named, read_embeddings
from dive_fast.models.interop.states import read_state
from dive_fast.types import Camera, Identity, InputError
from tests.support.lora_layouts import CAMERAS, write_dataset_info, write_dive, write_lora
from tests.support.models import assert_same_tensors
from tests.support.refusals import refused
from tests.support.tiny import TEXT_WIDTH, tiny_adapter

CODES = {"cam1": "W5Eq", "cam3": "8miP", "cam7": "hFOc"}
ROWS = torch.arange(3.0 * TEXT_WIDTH).reshape(3, TEXT_WIDTH)


def saved(path: Path, value: dict[str, object]) -> Path:
    if path.suffix == ".safetensors":
        save_file(value, path)
    else:
        torch.save(value, path)
    return path


def dive(vectors: dict[str, torch.Tensor], names: dict[str, object]) -> dict[str, object]:
    return {"learned_embeds_dict": vectors, "name2placeholder": names}


A1111 = {"string_to_token": {"*": 265}, "string_to_param": {"*": ROWS}, "name": "Some Body", "sd_checkpoint": None}
LAYOUTS = {
    "diffusers": ("e.bin", {"<cat-toy>": ROWS[0]}, {"cat-toy": "<cat-toy>"}),
    "diffusers, safetensors": ("e.safetensors", {"<cat-toy>": ROWS[0].clone()}, {"cat-toy": "<cat-toy>"}),
    "diffusers, several vectors": ("e.bin", {"<cat>": ROWS}, {"cat": "<cat.0> <cat.1> <cat.2>"}),
    "diffusers, tokens": ("e.bin", {"<a>": ROWS[0], "b": ROWS[1:]}, {"a": "<a>", "b": "<b.0> <b.1>"}),
    "A1111": ("e.pt", A1111, {"Some Body": "<some_body_eee0d390.0> <some_body_eee0d390.1> <some_body_eee0d390.2>"}),
    "A1111, nameless": ("ann.pt", {**A1111, "name": "*"}, {"ann": "<ann.0> <ann.1> <ann.2>"}),
    "the first code": ("e.pt", {"string_to_param": torch.nn.ParameterDict({"brian": ROWS[:1]})}, {"brian": "<brian>"}),
    "the first code, nameless": (
        "ann.pt",
        {"string_to_param": torch.nn.ParameterDict({"*": ROWS[:1]})},
        {"ann": "<ann>"},
    ),
    "no letter": ("小明.bin", {"<***>": ROWS[0]}, {"小明": "<df3ea25a>"}),
    "emb_params": ("Ann.safetensors", {"emb_params": ROWS[:1].clone()}, {"Ann": "<ann_17239b6e>"}),
    "DiVE": (
        "learned_embeds-steps-last.bin",
        dive({"<class_0>": ROWS[0], "<class_1>": ROWS[1]}, {"533": "<class_1>", "7": "<class_0>"}),
        {"0533": "<class_1>", "0007": "<class_0>"},
    ),
}


@pytest.mark.parametrize(("name", "value", "identities"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout_names_its_identities(name, value, identities, tmp_path):
    learned = named(read_embeddings(read_state(saved(tmp_path / name, value)), TEXT_WIDTH), {})
    assert [one.identity() for one in learned] == [Identity(*item) for item in identities.items()]
    rows = torch.cat([one.rows for one in learned])
    assert torch.equal(rows, ROWS[[1, 0]] if "steps" in name else ROWS[: len(rows)])


BROKEN = {
    "another width": ("e.bin", {"<a>": torch.zeros(768)}, "'<a>' is 768 wide.* 32"),
    "SDXL": ("e.safetensors", {"clip_l": torch.zeros(1, 768), "clip_g": torch.zeros(1, 1280)}, "Stable Diffusion XL"),
    "a model": ("e.bin", {"conv.weight": torch.zeros(4, 2), "conv.bias": ROWS[0]}, "2 entries, first 'conv.bias'"),
    "nothing": ("e.bin", {}, "0 entries"),
    "whole numbers": ("e.bin", {"<a>": torch.zeros(32, dtype=torch.int64)}, "'<a>' is torch.int64"),
    "no vector": ("e.bin", {"<a>": torch.zeros(0, 32)}, r"'<a>' is torch.float32 \[0, 32\]"),
    "text": ("e.bin", {"<a>": "a"}, "1 entries, first '<a>'"),
    "A1111, two": ("e.pt", {"string_to_param": {"*": ROWS, "+": ROWS}}, "string_to_param"),
    "DiVE, a name too many": ("e.bin", dive({"<a>": ROWS[0]}, {"1": "<a>", "2": "<b>"}), "first '<b>'"),
    "DiVE, a vector too many": ("e.bin", dive({"<a>": ROWS[0], "<b>": ROWS[1]}, {"1": "<a>"}), "first '<b>'"),
    "DiVE, no names": ("e.bin", {"learned_embeds_dict": {"<a>": ROWS[0]}}, "name2placeholder"),
    "DiVE, no vectors": ("e.bin", {"learned_embeds_dict": ROWS}, "learned_embeds_dict"),
    "DiVE, nobody": ("e.bin", dive({}, {}), "learned_embeds_dict"),
    "DiVE, a name of no token": ("e.bin", dive({"<a>": ROWS[0]}, {"1": ["<a>"]}), "name2placeholder"),
}


@pytest.mark.parametrize(("name", "value", "part"), BROKEN.values(), ids=BROKEN.keys())
def test_embeddings_that_cannot_be_used_are_named(name, value, part, tmp_path):
    path = saved(tmp_path / name, value)
    with pytest.raises(InputError, match=part):
        [one.identity() for one in read_embeddings(read_state(path), TEXT_WIDTH)]


@pytest.fixture
def published(bundle, tmp_path) -> Path:
    return write_dive(tmp_path / "lora_ti", tiny_adapter(bundle, pids=["0001", "0534", "1544"]), CODES)


def test_the_published_folder_becomes_an_adapter(bundle, published, tmp_path):
    original = tiny_adapter(bundle, pids=["0001", "0534", "1544"])
    imported = import_adapter(bundle, [published])
    made = imported.adapter
    assert made.identities == original.identities
    assert torch.equal(made.embeddings, original.embeddings)
    assert not made.embeddings.requires_grad
    assert_same_tensors(made.lora, original.lora)
    assert made.cameras == (Camera("cam1", "rgb", "W5Eq"), Camera("cam3", "ir", "8miP"), Camera("cam7", "rgb", "hFOc"))
    assert made.template == DEFAULT_TEMPLATE
    assert (imported.landed, imported.linears, imported.dropped) == (32, 32, ())
    files = {file["name"]: file["sha256"] for file in made.metadata["imported"]["files"]}
    assert files == {file.name: sha256_file(file) for file in published.iterdir()}
    save_adapter(made, tmp_path / "adapter")
    assert load_adapter(tmp_path / "adapter").fingerprint == made.fingerprint
    fused = fuse(bundle, made)
    encoder = PromptEncoder(fused.tokenizer, fused.prompts)
    assert encoder.table.prompt("0534", "cam3") == "a 8miP photo of a <class_1> person"
    assert encoder.token_ids([("0534", "cam3"), None]).shape == (2, fused.tokenizer.model_max_length)


def test_a_camera_that_the_user_names_overrides_the_file(bundle, published):
    made = import_adapter(bundle, [published], [parse_camera("cam3=ir:abcd"), parse_camera("cam9=ir:q")]).adapter
    expected = {"cam1": ("rgb", "W5Eq"), "cam3": ("ir", "abcd"), "cam7": ("rgb", "hFOc"), "cam9": ("ir", "q")}
    assert {camera.name: (camera.modality, camera.code) for camera in made.cameras} == expected


@pytest.mark.parametrize(
    "text",
    ["x", None, "Custom metadata:\n{'a'", 'Custom metadata:\n{"dataset": "sysu"}', "Custom metadata:\n[1]"],
    ids=["other text", "no description", "not JSON", "no codes", "a list"],
)
def test_a_broken_dataset_info_is_named(text, bundle, published):
    (published / "dataset_info.json").write_text(json.dumps({} if text is None else {"description": text}))
    refused(r"dataset_info\.json", import_adapter, bundle, [published])


@pytest.mark.parametrize("code", ["\ud800", "two  words", "<x>", "x" * 100_000 + "{"], ids=lambda code: repr(code)[:10])
def test_a_code_that_no_prompt_can_hold_is_refused_in_few_words(code, bundle, published):
    write_dataset_info(
        published / "dataset_info.json", {"dataset": "sysu", "camera_to_description": {**CODES, "cam4": code}}
    )
    with pytest.raises(InputError) as caught:
        import_adapter(bundle, [published])
    assert len(str(caught.value).encode()) < 400


def test_codes_the_other_way_round_and_text_around_the_metadata_are_read(bundle, published):
    metadata = {"dataset": "sysu", "description_to_camera": {"W5Eq": "cam1", "8miP": "cam3"}}
    path = write_dataset_info(published / "dataset_info.json", metadata)
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "description": "Made by me. " + data["description"] + "\nthe end"}))
    assert [camera.code for camera in import_adapter(bundle, [published]).adapter.cameras] == ["W5Eq", "8miP"]


def test_cameras_of_another_set_need_a_modality(bundle, published):
    write_dataset_info(published / "dataset_info.json", {"dataset": "llcm", "camera_to_description": CODES})
    refused(r"'llcm'.* cam1, cam3, cam7.*--camera cam1=ir:W5Eq", import_adapter, bundle, [published])
    named = [parse_camera(f"{name}=rgb:{code}") for name, code in CODES.items()]
    assert len(import_adapter(bundle, [published], named).adapter.cameras) == 3
    (published / "dataset_info.json").unlink()
    refused(r"dataset_info\.json.*--camera", import_adapter, bundle, [published])


@pytest.mark.parametrize("text", ["cam3", "cam3=ir", "=ir:x", "cam3=ir:", "cam3=uv:x"])
def test_an_incomplete_camera_is_refused(text):
    refused(text if ":x" not in text else text.removesuffix(":x")[-2:], parse_camera, text)


def test_identities_join_an_adapter(bundle, adapter, tmp_path):
    path = saved(tmp_path / "e.pt", A1111)
    made = import_adapter(bundle, [path], init_from=adapter).adapter
    assert [identity.pid for identity in made.identities] == ["0001", "0002", "0003", "Some Body"]
    assert torch.equal(made.embeddings, torch.cat([adapter.embeddings, ROWS]))
    assert_same_tensors(made.lora, adapter.lora)
    assert made.metadata["seed"] == adapter.metadata["seed"]
    assert [file["name"] for file in made.metadata["joined"][0]["files"]] == ["e.pt"]
    fused = fuse(bundle, made)
    ids = PromptEncoder(fused.tokenizer, fused.prompts).token_ids([("Some Body", "cam1")])[0].tolist()
    first = ids.index(fused.tokenizer.convert_tokens_to_ids("<some_body_eee0d390.0>"))
    assert fused.tokenizer.convert_ids_to_tokens(ids[first : first + 3]) == [
        f"<some_body_eee0d390.{i}>" for i in range(3)
    ]
    refused("cameras and template", import_adapter, bundle, [path], CAMERAS, init_from=adapter)
    lora = write_lora(tmp_path / "lora.bin", adapter, "diffusers")
    refused(r"lora\.bin", import_adapter, bundle, [path, lora], init_from=adapter)


PERSON = {"<person>": ROWS[0]}
CLASHES = {
    "one token, named by file": ({"alice.bin": PERSON, "bob.bin": PERSON}, ["alice", "bob"]),
    "by folder": ({"alice/learned_embeds.bin": PERSON, "bob/learned_embeds.bin": PERSON}, ["alice", "bob"]),
    "stars": ({"alice/star.bin": {"*": ROWS[0]}, "bob/star.bin": {"*": ROWS[0]}}, ["alice", "bob"]),
    "one of three": ({"a/x.bin": PERSON, "b/y.bin": {"<anna>": ROWS[0]}, "c/anna.bin": PERSON}, ["x", "anna", "c"]),
    "different": ({"a/x.bin": {"<anna>": ROWS[0]}, "b/y.bin": PERSON}, ["anna", "person"]),
    "letters of either case": ({"Anna.bin": PERSON, "anna.bin": PERSON}, ["Anna", "anna"]),
}


@pytest.mark.parametrize(("files", "names"), CLASHES.values(), ids=CLASHES)
def test_identities_that_share_a_token_have_their_files_or_folders_names(files, names, bundle, adapter, tmp_path):
    paths = []
    for number, (name, value) in enumerate(files.items()):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        paths.append(saved(tmp_path / name, {token: row + number for token, row in value.items()}))
    made = import_adapter(bundle, paths, init_from=adapter).adapter
    assert [identity.pid for identity in made.identities[3:]] == names
    assert torch.equal(made.embeddings[3:], torch.stack([ROWS[0] + number for number in range(len(paths))]))
    assert len({identity.placeholder for identity in made.identities}) == 3 + len(paths)


def test_the_user_names_files(bundle, adapter, tmp_path):
    one, two = saved(tmp_path / "1.bin", PERSON), saved(tmp_path / "2.bin", PERSON)
    several = saved(tmp_path / "s.bin", {"<a>": ROWS[0], "<b>": ROWS[1]})
    made = import_adapter(bundle, [one], init_from=adapter, persons={two: "anna", one: "0001 b"}).adapter
    assert [identity.pid for identity in made.identities[3:]] == ["0001 b", "anna"]
    refused(
        "'0001' occurs more than once; .*--person",
        import_adapter,
        bundle,
        [one],
        init_from=adapter,
        persons={one: "0001"},
    )
    refused("several identities", import_adapter, bundle, [several], init_from=adapter, persons={several: "x"})
    nobody = tmp_path / "nobody"
    nobody.mkdir()
    (nobody / "dataset_info.json").write_text("{}")
    refused(
        "--person names .*json",
        named,
        read_embeddings(read_state(one), TEXT_WIDTH),
        {nobody / "dataset_info.json": "x"},
    )


def test_more_vectors_than_the_text_encoder_reads_are_refused(bundle, adapter, tmp_path):
    path = saved(tmp_path / "alice.pt", {**A1111, "string_to_param": {"*": torch.ones(40, TEXT_WIDTH)}})
    refused("tokens and the model reads 32", import_adapter, bundle, [path], init_from=adapter)
    lora = write_lora(tmp_path / "lora.bin", adapter, "diffusers")
    refused("tokens and the model reads 32", import_adapter, bundle, [path, lora], CAMERAS)


def test_missing_and_repeated_sources_are_named(bundle, adapter, published, tmp_path):
    embeddings = saved(tmp_path / "e.pt", A1111)
    lora = write_lora(tmp_path / "lora.bin", adapter, "diffusers")
    model = saved(tmp_path / "unet.bin", {"conv_in.weight": torch.zeros(2, 2), "conv_in.bias": torch.zeros(3)})
    for sources, part in [
        ([embeddings], r"no LoRA in .*e\.pt.*--init-from"),
        ([lora], r"no embeddings in .*lora\.bin"),
        ([model], r"unet\.bin"),
        ([published, lora], r"pytorch_lora_weights\.safetensors and .*lora\.bin"),
        ([published, published / "dataset_info.json"], r"dataset_info\.json and"),
        ([lora, embeddings, embeddings], "'Some Body' occurs more than once"),
    ]:
        refused(part, import_adapter, bundle, sources, CAMERAS)


def test_folders_are_searched_by_known_names(bundle, adapter, published, tmp_path):
    last = published / "learned_embeds-steps-last.bin"
    shutil.copy(last, published / "learned_embeds-steps-1000.bin")
    assert len(import_adapter(bundle, [published]).adapter.identities) == 3  # the last one
    last.rename(published / "learned_embeds-steps-2000.bin")
    refused(r"2 files .*learned_embeds-steps-1000\.bin", import_adapter, bundle, [published])
    (published / "learned_embeds-steps-1000.bin").unlink()
    assert len(import_adapter(bundle, [published]).adapter.identities) == 3
    (tmp_path / "empty").mkdir()
    refused(r"pytorch_lora_weights.*nothing", import_adapter, bundle, [tmp_path / "empty"])
    save_adapter(adapter, tmp_path / "ours")
    refused("ours.*fuse --adapter", import_adapter, bundle, [tmp_path / "ours"])
