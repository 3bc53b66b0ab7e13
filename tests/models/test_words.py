"""Learned words in a tokenizer; the oracle is transformers, which reads and adds them one by one."""

import gc
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken
from transformers import CLIPTokenizer

from dive_fast.io import write_json
from dive_fast.models import PromptEncoder, fuse, load_bundle, save_bundle
from dive_fast.models.bundle import _save_tokenizer
from dive_fast.models.files import add_words, load_tokenizer
from dive_fast.models.phrase import Phrase
from tests.support.models import json_edit
from tests.support.refusals import refused
from tests.support.tiny import TEXT_WIDTH, tiny_adapter

# Prefixes of each other, characters that split words, names that no word holds as they are, and words of the vocabulary.
NAMES = [
    "anna",
    "anna1",
    "anna_1",
    "anna.1",
    "an",
    "Anna",
    "José",
    "小明",
    "a_b",
    "_",
    "0001",
    "person",
    "x-1",
    "endoftext",
]
ONE, THREE = Phrase("{person}"), Phrase("{red|blue} of , {a} {person}")
TEXTS = [
    "a {0} person",
    "{0}{1}",
    "{0} {1}{0}",
    "x{0}y",
    "{0}1",
    " {1} . {0},",
    "{0}".upper(),
    "é{0}<{1}>",
    "<|endoftext|>{0}",
]


def identities() -> list:
    return [
        phrase.identity(name + suffix, name + suffix) for phrase, suffix in ((ONE, ""), (THREE, "-3")) for name in NAMES
    ]


def learned() -> list[str]:
    return [word for one in identities() for word in one.words]


@pytest.fixture
def base(tiny_base: Path) -> Path:
    return tiny_base / "tokenizer"


def by_transformers(folder: Path, words: list[str] = ()):
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return tokenizer


def assert_alike(ours, theirs) -> None:
    words = learned()
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    assert ours.special_tokens_map == theirs.special_tokens_map
    for first, second in zip(words, words[1:] + words[:1], strict=True):
        for text in TEXTS:
            text = text.format(first, second)
            assert ours(text)["input_ids"] == theirs(text)["input_ids"], text


def saved(tokenizer, folder: Path) -> Path:
    _save_tokenizer(tokenizer, folder)
    return folder


def test_words_are_tokens_as_transformers_adds_them(base, tmp_path):
    ours = load_tokenizer(base)
    add_words(ours, learned())
    theirs = by_transformers(base, learned())
    assert_alike(ours, theirs)
    assert ours.convert_tokens_to_ids(learned()) == list(range(len(ours) - len(learned()), len(ours)))
    read = load_tokenizer(saved(ours, tmp_path / "ours"))
    assert_alike(read, theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    again = saved(read, tmp_path / "again")  # of what was read without its words
    for file in (tmp_path / "theirs").iterdir():
        mine = [json.loads((folder / file.name).read_text()) for folder in (tmp_path / "ours", again)]
        assert mine == [json.loads(file.read_text())] * 2, file.name


def listed_twice(folder: Path, count: int | None = None) -> None:
    """The first words also in tokenizer_config.json, from which transformers then takes them all."""
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"][:count]
    listed = {str(token.pop("id")): token for token in tokens}
    json_edit("tokenizer_config.json", added_tokens_decoder=listed)(folder)


def some_normalized(folder: Path) -> None:
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    json_edit("tokenizer.json", added_tokens=[token | {"normalized": 8 <= n < 12} for n, token in enumerate(tokens)])(
        folder
    )


OTHERS = {
    "a file of words": lambda f: write_json(f / "added_tokens.json", load_tokenizer(f).get_added_vocab()),
    "a second list": listed_twice,
    "a shorter list": lambda f: listed_twice(f, 9),
    "words of another kind between": some_normalized,
}


@pytest.mark.parametrize("other", OTHERS)
def test_folders_of_other_libraries_are_read_as_transformers_reads_them(other, base, tmp_path):
    folder = saved(by_transformers(base, learned()), tmp_path / "folder")
    OTHERS[other](folder)
    assert_alike(load_tokenizer(folder), by_transformers(folder))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_left_out(encoding, base, tmp_path):
    theirs = by_transformers(base, learned())
    file = saved(theirs, tmp_path / "folder") / "tokenizer.json"
    file.write_bytes(file.read_text("utf-8").encode(encoding))
    assert_alike(load_tokenizer(file.parent), theirs)


def with_added(base: Path, out: Path, change) -> Path:
    """The folder with three words after `change` of tokenizer.json's list."""
    folder = saved(by_transformers(base, ["<a>", "<b>", "<c>"]), out)
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    change(tokens)
    json_edit("tokenizer.json", added_tokens=tokens)(folder)
    return folder


DAMAGES = {
    "a gap": (lambda added: added[-1].update(id=10**6), "1 of its words .*'<c>'"),
    "a missing word": (lambda added: added.pop(-2), "1 of its words .*'<c>'"),
    "a word twice": (lambda added: added[-1].update(content="<b>"), "'<b>'"),
    "a special word twice": (lambda added: added[-1].update(content="<|endoftext|>"), "endoftext"),
    "no id": (lambda added: added[-1].pop("id"), "tokenizer"),
    "an id of text": (lambda added: added[-1].update(id="x"), "tokenizer"),
    "no text": (lambda added: added[-1].pop("content"), "tokenizer"),
    "a number as text": (lambda added: added[-1].update(content=5), "tokenizer"),
    "a list as text": (lambda added: added[-1].update(content=["<c>"]), "tokenizer"),
    "no token": (lambda added: added.append("<d>"), "tokenizer"),
    "a property of no kind": (lambda added: added[-1].update(special=5), "tokenizer"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_words_out_of_place_are_refused(damage, base, tmp_path):
    change, part = DAMAGES[damage]
    refused(part, load_tokenizer, with_added(base, tmp_path / "damaged", change))


def test_words_in_another_order_of_the_file_are_read_by_id(base, tmp_path):
    folder = with_added(base, tmp_path / "turned", lambda added: added.reverse())
    assert load_tokenizer(folder).get_vocab() == by_transformers(folder).get_vocab()


def test_a_fused_model_of_many_names_opens_again(bundle, tmp_path):
    """Its prompts read each word as one token, that of the identity's row, before and after the way through files."""
    people = tuple(identities())
    rows = torch.randn(len(learned()), TEXT_WIDTH, generator=torch.Generator().manual_seed(0))
    fused = fuse(bundle, replace(tiny_adapter(bundle), identities=people, embeddings=rows))
    save_bundle(fused, tmp_path / "fused")
    again = load_bundle(tmp_path / "fused")
    assert again.fingerprint == fused.fingerprint
    keys = [(one.pid, "cam3") for one in people]
    ids = PromptEncoder(again.tokenizer, again.prompts).token_ids(keys)
    assert torch.equal(ids, PromptEncoder(fused.tokenizer, fused.prompts).token_ids(keys))
    table, first = again.text_encoder.get_input_embeddings().weight, len(bundle.tokenizer)
    found = table[ids[ids >= first]]
    assert torch.equal(found, rows)


@pytest.mark.slow
def test_many_words_are_read_in_a_fraction_of_transformers_time(base, tmp_path):
    folder = saved(by_transformers(base, [f"<p{number:05d}>" for number in range(20_000)]), tmp_path / "many")
    seconds: dict = {load_tokenizer: [], by_transformers: []}
    gc.disable()  # a collection of all that this process holds would take more than either
    try:
        for read, took in [*seconds.items()] * 2:
            began = time.process_time()
            assert len(read(folder)) > 20_000
            took.append(time.process_time() - began)
    finally:
        gc.enable()
    assert min(seconds[load_tokenizer]) < min(seconds[by_transformers]) / 2  # a third, measured
