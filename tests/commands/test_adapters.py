"""`dive-fast import` and `export-adapter`, and the commands of docs/published-weights.md on a folder of the same shape."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Run

PAGE = (Path(__file__).parents[2] / "docs" / "published-weights.md").read_text(encoding="utf-8")
CODES = {"cam1": "W5Eq", "cam2": "2Agp", "cam3": "8miP", "cam4": "HXY6", "cam5": "ITaw", "cam6": "dx1V", "cam7": "hFOc"}


@pytest.fixture(scope="module")
def published(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DiVE's folder, for the tiny model. Read only."""
    from dive_fast.models import load_bundle
    from tests.support.lora_layouts import write_dive
    from tests.support.tiny import tiny_adapter

    folder = tmp_path_factory.mktemp("published") / "lora_ti"
    return write_dive(folder, tiny_adapter(load_bundle(tiny_base), pids=["0001", "0534"]), CODES)


@pytest.fixture
def step(run: Run) -> Callable[..., dict[str, Any]]:
    def stepper(*arguments: object) -> dict[str, Any]:
        code, out, error = run(*arguments, "--json")
        assert code == 0, error
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return result

    return stepper


def commands() -> list[list[str]]:
    return [shlex.split(line) for line in re.findall(r"^dive-fast (.+)", PAGE, re.MULTILINE)]


def test_the_pages_codes_are_the_published_ones() -> None:
    codes = dict(re.findall(r"--camera (cam\d)=(?:rgb|ir):(\w+)", PAGE))
    from dive_fast.train.cameras import PUBLISHED_CODES

    assert codes == PUBLISHED_CODES == CODES


@pytest.mark.slow
def test_the_pages_commands_lead_from_published_files_to_pairs(
    step: Callable[..., dict[str, Any]], published: Path, tiny_base: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "SYSU_MARKET" / "cam7" / "0534"
    from PIL import Image

    photos.mkdir(parents=True)
    Image.new("RGB", (32, 64), (90, 40, 20)).save(photos / "0001.jpg")
    places = {"SD15": str(tiny_base), "lora_ti": str(published), "SYSU_MARKET/cam7": str(photos.parent)}
    done: dict[str, dict[str, Any]] = {}
    for name, *arguments in commands():
        if name == "export":  # takes half a minute; the fused folder is an engine too
            continue
        placed = [_placed(argument, places).replace("runs/engine", "runs/fused") for argument in arguments]
        placed = [str(tmp_path / argument) if argument.startswith("runs/") else argument for argument in placed]
        smaller = {"plan": ["--pairs", "1", "--steps", "2", "--ir", "cam3"], "synth": ["--device", "cpu"]}
        if name == "plan" and "--photos" in placed:
            placed[placed.index("--out") + 1] = str(tmp_path / "runs" / "with-photos.json")
        done[name if name not in done else f"{name} again"] = step(name, *placed, *smaller.get(name, []))
    assert done["import"]["identities"] == done["fuse"]["identities"] == 2
    assert (done["import"]["landed"], done["import"]["linears"], done["import"]["dropped"]) == (32, 32, [])
    assert done["import"]["cameras"] == list(CODES)
    assert done["import again"]["fingerprint"] == done["import"]["fingerprint"]  # the codes named, the same adapter
    assert done["plan"]["pairs"] + done["plan again"]["pairs"] == 3  # both identities; and 0534, which has a photo
    assert done["synth"]["images"] == 4
    assert done["verify"]["problems"] == []
    python = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert python
    names: dict[str, Any] = {}
    code = (
        python[1]
        .replace('"SD15"', repr(str(tiny_base)))
        .replace("runs/diffusers", str(tmp_path / "runs" / "diffusers"))
    )
    exec(code, names)
    assert names["pipe"].tokenizer.convert_tokens_to_ids("<class_1>") == len(names["pipe"].tokenizer) - 1
    assert names["pipe"].get_active_adapters()


def _placed(argument: str, places: dict[str, str]) -> str:
    layout, colon, path = argument.partition(":")
    return f"{layout}:{places[path]}" if colon and path in places else places.get(argument, argument)


def test_import_says_what_it_left_out(run: Run, published: Path, tiny_base: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(published, tmp_path / "lora_ti"))
    path = folder / "pytorch_lora_weights.safetensors"
    more = {f"text_encoder.layers.{i}.q_proj.lora_A.weight": torch.zeros(4, 32) for i in range(25)}
    few = {name: tensor for name, tensor in load_file(path).items() if "mid_block" not in name}
    save_file(few | more, path)
    out = tmp_path / "adapter"
    code, _, error = run("import", folder, "--model", tiny_base, "--out", out)
    assert code == 2
    assert "25 of text encoder, first 'text_encoder.layers.0.q_proj'" in error
    assert not out.exists()
    code, text, error = run("import", folder, "--model", tiny_base, "--out", out, "--drop-unsupported")
    assert code == 0
    assert "25 layers" in error and "text_encoder.layers.0.q_proj" in error and "5 more" in error
    assert re.search("^8 .*attention", error, re.MULTILINE)
    assert str(out) in text and "2 identities" in text and "rank 4 on 24 of 32" in text and "cam1 (rgb W5Eq)" in text
    assert len(json.loads((out / "adapter.json").read_text())["facts"]["imported"]["dropped"]) == 25


@pytest.mark.slow
def test_a_single_file_base_and_identities_that_join(
    step: Callable[..., dict[str, Any]], published: Path, tiny_base: Path, tmp_path: Path
) -> None:
    import torch

    from dive_fast.models import load_bundle
    from tests.support.ldm import write_single_file

    single = write_single_file(load_bundle(tiny_base), tmp_path / "model.safetensors")
    one = ("--model", single, "--tokenizer", tiny_base)
    made = step("import", published, *one, "--out", tmp_path / "a")
    from_folder = step("import", published, "--model", tiny_base, "--out", tmp_path / "b")
    assert made["fingerprint"] == from_folder["fingerprint"]
    fused = step("fuse", *one, "--adapter", tmp_path / "a", "--out", tmp_path / "fused")
    from_folder = step("fuse", "--model", tiny_base, "--adapter", tmp_path / "a", "--out", tmp_path / "f")
    assert fused["fingerprint"] == from_folder["fingerprint"]
    torch.save({"<ann>": torch.ones(2, 32)}, tmp_path / "ann.bin")
    joined = step("import", tmp_path / "ann.bin", *one, "--init-from", tmp_path / "a", "--out", tmp_path / "c")
    assert (made["identities"], joined["identities"]) == (2, 3)
    exported = step("export-adapter", "--adapter", tmp_path / "c", "--pids", "ann", "--out", tmp_path / "d")
    assert (exported["identities"], exported["rank"]) == (1, 4)


def test_a_pickle_that_calls_something_leaves_no_adapter(
    run: Run, published: Path, tiny_base: Path, tmp_path: Path
) -> None:
    import torch

    from tests.support.models import CallsWhenOpened

    folder = Path(shutil.copytree(published, tmp_path / "lora_ti"))
    path, trace = folder / "learned_embeds-steps-last.bin", tmp_path / "trace"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "step": CallsWhenOpened(os.system, f"touch {trace}")}, path)
    code, out, error = run("import", folder, "--model", tiny_base, "--out", tmp_path / "adapter")
    assert (code, out) == (2, "")
    assert str(path) in error and f"{os.system.__module__}.system" in error
    assert not trace.exists()
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["import", "nowhere", "--out", "a"], "nowhere"),
        (["import", "x.bin", "--out", "a", "--camera", "cam3"], "--camera 'cam3'"),
        (["import", "--out", "a"], "SOURCES"),
        (["export-adapter", "--adapter", "nowhere", "--out", "a"], "nowhere"),
        (["export-adapter", "--adapter", "a", "--out", "b", "--layout", "a1111"], "'a1111'"),
    ],
    ids=["no source", "camera", "no argument", "no adapter", "layout"],
)
def test_bad_input_exits_with_2(
    arguments: list[str], part: str, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_base: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "import":
        arguments = [*arguments, "--model", str(tiny_base)]
    code, out, error = run(*arguments)
    assert (code, out) == (2, "")
    assert part in error
    assert not (tmp_path / "a").exists()
