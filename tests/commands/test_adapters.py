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

from tests.support.cli import Run, parse

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
    """The page's commands, those within sentences too."""
    return [shlex.split(line) for line in re.findall(r"(?:^|`)dive-fast ([^`\n]+)", PAGE, re.MULTILINE)]


def test_the_page_has_commands_that_exist() -> None:
    assert len(commands()) == 9
    for words in commands():
        parse(words)  # options and their types, without running them
    codes = dict(re.findall(r"--camera (cam\d)=(?:rgb|ir):(\w+)", PAGE))
    from dive_fast.train.cameras import PUBLISHED_CODES

    assert codes == PUBLISHED_CODES == CODES


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
    assert done["plan"]["pairs"] + done["plan again"]["pairs"] == 3  # both people; and 0534, who has a photo
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
    assert "an adapter has no place for 25 of text encoder, first 'text_encoder.layers.0.q_proj'" in error
    assert not out.exists()
    code, text, error = run("import", folder, "--model", tiny_base, "--out", out, "--drop-unsupported")
    assert code == 0
    lines = error.splitlines()
    lines = lines[lines.index("dropped 25 layers that no adapter holds; adapter.json lists all") :]
    assert (lines[1], lines[21]) == ("  text_encoder.layers.0.q_proj", "  and 5 more")
    assert lines[22] == "8 attention linears have no LoRA in the file and stay as in the base"
    assert text.startswith(
        f"adapter {out}: 2 identities, LoRA of rank 4 on 24 of 32 attention linears, cameras cam1 (rgb W5Eq)"
    )
    assert len(json.loads((out / "adapter.json").read_text())["facts"]["imported"]["dropped"]) == 25


def test_a_single_file_base_and_people_that_join(
    step: Callable[..., dict[str, Any]], published: Path, tiny_base: Path, tmp_path: Path
) -> None:
    import torch

    from dive_fast.models import load_bundle
    from tests.support.ldm import write_single_file

    single = write_single_file(load_bundle(tiny_base), tmp_path / "model.safetensors")
    one = ("--model", single, "--tokenizer", tiny_base)
    made = step("import", published, *one, "--out", tmp_path / "a")
    assert (
        made["fingerprint"] == step("import", published, "--model", tiny_base, "--out", tmp_path / "b")["fingerprint"]
    )
    fused = step("fuse", *one, "--adapter", tmp_path / "a", "--out", tmp_path / "fused")
    assert (
        fused["fingerprint"]
        == step("fuse", "--model", tiny_base, "--adapter", tmp_path / "a", "--out", tmp_path / "f")["fingerprint"]
    )
    torch.save({"<ann>": torch.ones(2, 32)}, tmp_path / "ann.bin")
    joined = step("import", tmp_path / "ann.bin", *one, "--init-from", tmp_path / "a", "--out", tmp_path / "c")
    assert (made["identities"], joined["identities"]) == (2, 3)
    exported = step("export-adapter", "--adapter", tmp_path / "c", "--pids", "ann", "--out", tmp_path / "d")
    assert (exported["identities"], exported["rank"]) == (1, 4)


class _Touches:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_with_orders_runs_none_and_leaves_no_adapter(
    run: Run, published: Path, tiny_base: Path, tmp_path: Path
) -> None:
    import torch

    folder = Path(shutil.copytree(published, tmp_path / "lora_ti"))
    path, trace = folder / "learned_embeds-steps-last.bin", tmp_path / "trace"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "step": _Touches(trace)}, path)
    code, out, error = run("import", folder, "--model", tiny_base, "--out", tmp_path / "adapter")
    assert (code, out) == (2, "")
    said = (
        f"dive-fast: {path} is a pickle that runs {os.system.__module__}.system when it is opened, so it was not opened"
    )
    assert error.splitlines()[-1].startswith(said)
    assert not trace.exists()
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["import", "nowhere", "--out", "a"], "nowhere does not exist or is no file; give a LoRA or embedding file"),
        (["import", "x.bin", "--out", "a", "--camera", "cam3"], "write NAME=rgb:CODE or NAME=ir:CODE, as cam3=ir:8miP"),
        (["import", "--out", "a"], "missing SOURCES"),
        (["export-adapter", "--adapter", "nowhere", "--out", "a"], "nowhere has no adapter.json"),
        (["export-adapter", "--adapter", "a", "--out", "b", "--layout", "a1111"], "--layout must be one of"),
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
