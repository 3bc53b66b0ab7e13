"""`dive-fast import` and `export-adapter`; tests/docs runs the commands of docs/published-weights.md."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dive_fast.models import load_bundle
from dive_fast.train.cameras import PUBLISHED_CODES
from tests.support.ldm import write_single_file
from tests.support.lora_layouts import write_dive
from tests.support.models import CallsWhenOpened
from tests.support.tiny import tiny_adapter

PAGE = (Path(__file__).parents[2] / "docs" / "published-weights.md").read_text(encoding="utf-8")
CODES = {"cam1": "W5Eq", "cam2": "2Agp", "cam3": "8miP", "cam4": "HXY6", "cam5": "ITaw", "cam6": "dx1V", "cam7": "hFOc"}


@pytest.fixture
def published(tiny_base, tmp_path):
    """DiVE's folder, for the tiny model."""
    adapter = tiny_adapter(load_bundle(tiny_base), pids=["0001", "0534"])
    return write_dive(tmp_path / "published" / "lora_ti", adapter, CODES)


def test_the_pages_codes_are_the_published_ones():
    assert dict(re.findall(r"--camera (cam\d)=(?:rgb|ir):(\w+)", PAGE)) == PUBLISHED_CODES == CODES


def test_import_says_what_it_left_out(run, published, tiny_base, tmp_path):
    path, out = published / "pytorch_lora_weights.safetensors", tmp_path / "adapter"
    more = {f"text_encoder.layers.{i}.q_proj.lora_A.weight": torch.zeros(4, 32) for i in range(25)}
    few = {name: tensor for name, tensor in load_file(path).items() if "mid_block" not in name}
    save_file(few | more, path)
    line = f"import {published} --model {tiny_base} --out {out}"
    code, _, error = run(line)
    assert code == 2
    assert "25 of text encoder, first 'text_encoder.layers.0.q_proj'" in error
    assert not out.exists()
    code, text, error = run(line, "--drop-unsupported")
    assert code == 0
    assert "25 layers" in error and "text_encoder.layers.0.q_proj" in error and "5 more" in error
    assert re.search("^8 .*attention", error, re.MULTILINE)
    assert str(out) in text and "2 identities" in text and "rank 4 on 24 of 32" in text and "cam1 (rgb W5Eq)" in text
    assert len(json.loads((out / "adapter.json").read_text())["facts"]["imported"]["dropped"]) == 25


@pytest.mark.slow
def test_a_single_file_base_and_identities_that_join(step, published, tiny_base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_single_file(load_bundle(tiny_base), tmp_path / "model.safetensors")
    one = f"--model model.safetensors --tokenizer {tiny_base}"
    made = step(f"import {published} {one} --out a")
    assert made["fingerprint"] == step(f"import {published} --model {tiny_base} --out b")["fingerprint"]
    fused = step(f"fuse {one} --adapter a --out fused")
    assert fused["fingerprint"] == step(f"fuse --model {tiny_base} --adapter a --out f")["fingerprint"]
    torch.save({"<ann>": torch.ones(2, 32)}, tmp_path / "ann.bin")
    joined = step(f"import ann.bin {one} --init-from a --out c")
    assert (made["identities"], joined["identities"]) == (2, 3)
    exported = step("export-adapter --adapter c --pids ann --out d")
    assert (exported["identities"], exported["rank"]) == (1, 4)


def test_names_are_checked_and_given_at_import(run, step, published, tiny_base, tmp_path):
    """A name that no folder of photos can have would stop the plan."""
    made = tmp_path / "a"
    step(f"import {published} --model {tiny_base} --out {made}")
    torch.save({"<a/b>": torch.ones(2, 32)}, tmp_path / "x.bin")
    line = f"import {tmp_path}/x.bin --model {tiny_base} --init-from {made} --out {tmp_path}/b"
    code, _, error = run(line)
    assert code == 2 and "'a/b'" in error and "--person" in error
    assert not (tmp_path / "b").exists()
    assert step(f"{line} --person 7={tmp_path}/x.bin")["identities"] == 3
    described = json.loads((tmp_path / "b" / "adapter.json").read_text())
    assert described["identities"][-1] == {"pid": "0007", "placeholder": "<7.0> <7.1>"}  # as folders are spelled


def test_a_pickle_that_calls_something_leaves_no_adapter(run, published, tiny_base, tmp_path):
    path, trace = published / "learned_embeds-steps-last.bin", tmp_path / "trace"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "step": CallsWhenOpened(os.system, f"touch {trace}")}, path)
    code, out, error = run(f"import {published} --model {tiny_base} --out {tmp_path}/adapter")
    assert (code, out) == (2, "")
    assert str(path) in error and f"{os.system.__module__}.system" in error
    assert not trace.exists()
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("import nowhere --out a --model {base}", "nowhere"),
        ("import x.bin --out a --camera cam3 --model {base}", "--camera 'cam3'"),
        ("import x.bin --out a --person anna --model {base}", "--person 'anna'"),
        ("import --out a --model {base}", "SOURCES"),
        ("export-adapter --adapter nowhere --out a", "nowhere"),
        ("export-adapter --adapter a --out b --layout a1111", "'a1111'"),
    ],
)
def test_bad_input_exits_with_2(line, part, run, monkeypatch, tmp_path, tiny_base):
    monkeypatch.chdir(tmp_path)
    code, out, error = run(line.format(base=tiny_base))
    assert (code, out) == (2, "")
    assert part in error
    assert not (tmp_path / "a").exists()
