import hashlib
import json
import string
from dataclasses import replace

import pytest
import torch

from dive_fast.models import DEFAULT_TEMPLATE, TEMPLATES, PromptEncoder, PromptTable, fuse, render, save_bundle
from dive_fast.models.phrase import Phrase
from dive_fast.models.prompts import check_vocabulary
from dive_fast.types import Camera, Identity, to_dict
from tests.support.models import diffusers_pipeline
from tests.support.refusals import refused
from tests.support.tiny import MAX_TOKENS, TEXT_WIDTH, tiny_adapter

IDENTITIES = (Identity("0001", "<class_1>"), Identity("0535", "<class_12>"))
CAMERAS = (Camera("cam1", "rgb", "W5Eq"), Camera("cam3", "ir", "8miP"))


def table(**changes: object) -> PromptTable:
    fields = {"identities": IDENTITIES, "cameras": CAMERAS, "template": DEFAULT_TEMPLATE}
    fields |= {"base_fingerprint": "b" * 64, "adapter_fingerprint": "a" * 64, **changes}
    return PromptTable(**fields)


@pytest.fixture
def fused(bundle, adapter):
    return fuse(bundle, adapter)


@pytest.fixture
def encoder(fused):
    return PromptEncoder(fused.tokenizer, fused.prompts)


def test_templates_are_many_distinct_and_hold_each_field_once():
    assert DEFAULT_TEMPLATE == "a {cam} photo of a {token} person"
    assert len(TEMPLATES) == len(set(TEMPLATES)) >= 20
    for template in TEMPLATES:
        fields = sorted(name for _, name, _, _ in string.Formatter().parse(template) if name is not None)
        assert fields == ["cam", "token"]
        table(template=template)


def test_prompt_by_hand():
    assert table().prompt("0535", "cam3") == "a 8miP photo of a <class_12> person"
    assert render("{token} by {cam}", "W5Eq", "<class_1>") == "<class_1> by W5Eq"


def test_unknown_names_get_the_count_and_the_nearest():
    refused("2 identities, '0534'.* nearest '0535'", table().prompt, "0534", "cam3")
    refused("2 cameras, 'cam2'.* nearest 'cam", table().prompt, "0535", "cam2")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"identities": (*IDENTITIES, Identity("0001", "<class_3>"))}, "pid '0001'"),
        ({"identities": (*IDENTITIES, Identity("0003", "<class_1>"))}, "placeholder '<class_1>'"),
        ({"identities": (Identity("0003", "class_1"),)}, "'class_1'"),
        ({"identities": (Identity("0003", "<Class_1>"),)}, "'<Class_1>'"),
        ({"identities": (Identity("0003", ""),)}, "''"),
        ({"cameras": (*CAMERAS, Camera("cam3", "rgb", "zzzz"))}, "name 'cam3'"),
        ({"cameras": (*CAMERAS, Camera("cam4", "rgb", "w5eQ"))}, "code 'w5eq'"),
        ({"cameras": (Camera("cam4", "rgb", "two  words"),)}, "'two  words'"),
        ({"cameras": (Camera("cam4", "rgb", ""),)}, "''"),
        ({"template": "a {cam} person"}, "'a {cam} person'"),
        ({"template": "{cam} {cam} {token}"}, "template"),
        ({"template": "{cam} {token} {0}"}, "template"),
        ({"template": "{cam} {token} {"}, "template"),
        ({"template": "{cam!r} {token}"}, "template"),
    ],
)
def test_a_table_that_cannot_work_is_refused(changes, part):
    refused(part.replace("{", r"\{"), table, **changes)


def test_table_goes_through_json_unchanged(tmp_path):
    table().write(tmp_path / "prompts.json")
    assert PromptTable.read(tmp_path / "prompts.json") == table()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"identities": None}, "identities"),
        ({"identities": [["0001", "<class_1>"]]}, "identities"),
        ({"identities": [{"pid": 1, "placeholder": "<class_1>"}]}, "identities"),
        ({"identities": [{"pid": "0001"}]}, "identities.*'placeholder'"),
        ({"cameras": [{"name": "c", "modality": "uv", "code": "x"}]}, "'uv'"),
        ({"template": 3}, "template"),
        ({"extra": 1}, "extra"),
    ],
)
def test_broken_json_is_named(changes, part, tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({**to_dict(table()), **changes}))
    refused(part if part == "'uv'" else f"prompts.json.*{part}", PromptTable.read, path)


def test_embeddings_equal_diffusers_encode_prompt(fused, encoder):
    keys = [("0001", "cam1"), ("0003", "cam3")]
    ours, index = encoder.encode(lambda token_ids: fused.text_encoder(token_ids)[0], [*keys, None])
    prompts = [encoder.table.prompt(*key) for key in keys]
    theirs, negative = diffusers_pipeline(fused).encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=True)
    torch.testing.assert_close(ours[:2], theirs, rtol=0, atol=0)
    torch.testing.assert_close(ours[2:], negative[:1], rtol=0, atol=0)
    assert index.tolist() == [0, 1, 2]


def test_token_ids_hold_the_placeholder_as_one_token(fused, encoder):
    ids = encoder.token_ids([("0002", "cam3"), None])
    assert ids.shape == (2, MAX_TOKENS)
    assert ids.dtype == torch.int64
    tokens = fused.tokenizer.convert_ids_to_tokens(ids[0].tolist())
    words = ["<|startoftext|>", "a</w>", "w</w>", "2</w>", "v", "x</w>", "photo</w>", "of</w>", "a</w>", "<class_1>"]
    assert tokens[:12] == [*words, "person</w>", "<|endoftext|>"]
    empty = fused.tokenizer.convert_ids_to_tokens(ids[1].tolist())
    assert empty == ["<|startoftext|>"] + ["<|endoftext|>"] * (MAX_TOKENS - 1)
    assert encoder.token_ids([]).shape == (0, MAX_TOKENS)


def test_each_distinct_prompt_is_encoded_once(fused, encoder):
    seen = []

    def encode_text(token_ids: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(token_ids.shape))
        return fused.text_encoder(token_ids)[0]

    keys = [("0002", "cam3"), None, ("0001", "cam1"), ("0002", "cam3"), None]
    embeddings, index = encoder.encode(encode_text, keys)
    assert seen == [(3, MAX_TOKENS)]
    assert embeddings.shape == (3, MAX_TOKENS, TEXT_WIDTH)
    assert index.dtype == torch.int64
    assert index.tolist() == [0, 1, 2, 0, 1]
    alone, _ = encoder.encode(encode_text, [("0001", "cam1")])
    torch.testing.assert_close(embeddings[2], alone[0])


def test_an_identity_of_several_words_gets_a_token_for_each(bundle):
    adapter = tiny_adapter(bundle)
    several = (replace(adapter.identities[0], placeholder="<a.0><a.1>"), *adapter.identities[1:])
    rows = torch.cat([adapter.embeddings[:1] + 1, adapter.embeddings])
    fused = fuse(bundle, replace(adapter, identities=several, embeddings=rows))
    encoder = PromptEncoder(fused.tokenizer, fused.prompts)
    first = len(bundle.tokenizer)
    ids, other = encoder.token_ids([("0001", "cam1"), ("0002", "cam1")]).tolist()
    assert [i for i in ids if i >= first] == [first, first + 1]
    assert [i for i in other if i >= first] == [first + 2]
    table = fused.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[first : first + 4], rows)


def test_a_placeholder_that_would_be_spelled_out_is_refused(bundle, fused):
    refused("'<class_0>'", PromptEncoder(bundle.tokenizer, fused.prompts).token_ids, [("0001", "cam1")])


def test_a_prompt_that_would_be_cut_is_refused(bundle):
    adapter = replace(tiny_adapter(bundle), template="{token}" + " surveillance" * 3 + " {cam}")
    refused(r"4\d tokens.* 32", fuse, bundle, adapter)


def test_the_tokenizer_may_be_a_folder_read_when_needed(fused, encoder, tmp_path):
    save_bundle(fused, tmp_path / "fused")
    read = PromptEncoder(tmp_path / "fused" / "tokenizer", PromptTable.read(tmp_path / "fused" / "prompts.json"))
    assert read.table.prompt("0001", "cam1") == "a q7dk photo of a <class_0> person"
    assert torch.equal(read.token_ids([("0001", "cam1")]), encoder.token_ids([("0001", "cam1")]))
    refused("nowhere", PromptEncoder(tmp_path / "nowhere", fused.prompts).token_ids, [None])


def test_every_name_has_a_learned_word_of_its_own():
    """SHA-256 of the name, by hand, where the word cannot hold it."""
    names = ["anna", "Anna", "小明", "José", "jose", "a@b", "a b", "class_12"]
    words = [Phrase("{person}").identity("x", name).placeholder for name in names]
    assert [words[0], words[-1]] == ["<anna>", "<class_12>"]
    assert words[2] == f"<{hashlib.sha256('小明'.encode()).hexdigest()[:8]}>"
    assert len(set(words)) == len(names)
    check_vocabulary([Identity(str(i), word) for i, word in enumerate(words)], [], [], "names")


def test_a_virtual_identity_stays_marked_and_a_real_one_is_written_as_before(tmp_path):
    mixed = table(identities=(IDENTITIES[0], replace(IDENTITIES[1], virtual=True)))
    mixed.write(tmp_path / "prompts.json")
    assert PromptTable.read(tmp_path / "prompts.json") == mixed
    written = json.loads((tmp_path / "prompts.json").read_text())["identities"]
    two = {"pid": IDENTITIES[1].pid, "placeholder": IDENTITIES[1].placeholder, "virtual": True}
    assert written == [{"pid": "0001", "placeholder": "<class_1>"}, two]
    written[0]["virtual"] = "yes"
    (tmp_path / "prompts.json").write_text(json.dumps({**to_dict(mixed), "identities": written}))
    refused("virtual", PromptTable.read, tmp_path / "prompts.json")


@pytest.mark.parametrize(
    ("text", "parts"),
    [("{person}", [1]), ("{tall} {broad} person , {black|blond} hair , walking , {red} , {wool} coat", [2, 1, 1, 1])],
)
def test_learned_words_are_counted_by_part_of_a_phrase(text, parts):
    assert Phrase(text).parts == parts and sum(parts) == len(Phrase(text).choices)
