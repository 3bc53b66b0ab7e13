"""Every command line of every page, in order, on small trees of the named sets' shape and a small random model.

What the demo's page shows runs first, and what it made stands where another page takes it for granted. A command that is not
run here is in `NOT_RUN` with its reason; it parses all the same (`test_pages.py`).
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from dive_fast import cli, options
from dive_fast.experiments.demo import HOW_TO
from tests.support.cli import NEXT, Run, following, function_of, last_json
from tests.support.pages import PAGES, blocks, command_lines, lay_out

EXPECTED = (  # warnings of sets as these, which the pages speak of
    *("TEST identities", "seen in one modality", "fewer than two RGB photos"),
    *("are not four digits", "pre_process_sysu.py", "Market1501 classes stop", "are one, number"),
)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(*(f"ignore:.*{text}" for text in EXPECTED))]

TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in PAGES}
LINES = {
    "demo": command_lines("```\n" + HOW_TO.replace("\\\n", "") + "\n```\n"),
    **{page: lines for page, text in TEXTS.items() if (lines := command_lines(text))},
}
del LINES["own-photos"]  # test_own_photos_page.py runs it, on photos of its own
NOT_RUN = {  # command lines with these words
    "build": "TensorRT builds on a GPU; the last test here builds for RTX without one",
    "refit": "a refittable engine is built on a GPU",
    "doctor --need": "asks for a GPU",
    "synth fp8": "torch computes it on a GPU only",
    "synth --ray": "starts a cluster; tests/synth/test_many.py does, where ray is installed",
    "world study": "takes hours; tests/experiments/test_study.py runs it at toy size",
    "bench --baselines": "compiles for minutes; tests/bench/test_baselines.py",
    "bench --compare": "reads an older commit, which a shallow clone lacks; tests/bench/test_compare.py",
    "export --decoder": "tests/distil/test_decoder.py exports a tiny decoder",
    **({} if find_spec("openvino") else {"synth openvino": "openvino is not installed"}),
    **({} if find_spec("pyarrow") else {"manifest --parquet": "pyarrow is not installed"}),
}
SMALL = {  # what pages give, and what stands for it here
    **dict.fromkeys(("--steps 50", "--steps 1500", "--steps 2000"), "2"),
    **dict.fromkeys(("--test-ids 200", "--validation-people 40"), "2"),
    "--pairs 500": "1",
    "--people 1000": "3",
    "--refine-steps 200": "1",
    "--rows 16,32,64": "2,4",
    "--seeds 0,1,2,3,4": "0",
    "--min ir.modality=0.5": "ir.modality=0",  # which a random model's images pass
}
LEARN = "--identity-steps 1 --steps 1 --rank 2 --batch 4"
NET = "--lr 1e-4 --height 64 --width 32 --identities 2 --per-modality 2 --steps 1"
DEFAULTS = {  # for what pages leave to the defaults
    "personalize": f"{LEARN} --mixed-precision no",
    "train-encoder": f"--width 8 --pooled 2 {LEARN}",
    "virtual": "--percentile 0",
    "distil": "--teacher-steps 4 --trajectories 4 --steps 1 --batch 2 --rank 2",
    "distil-decoder": "--width 8 --images 4 --steps 1 --batch 2",
    "quantize": "--images 2",
    "plan": "--pairs 3 --steps 2",
    "synth": "--rows 8",
    "reid train": NET,
    "reid trials": f"--trials 1 {NET}",
    "reid compare": f"--seeds 0 {NET}",
    "report": "--workers 1",
    "world make": "--paired-ids 2 --external-ids 12 --images-per-camera 2 --market-images 3",
    "world quality": "--shots 1",
    "bench": "--rows 2 --rounds 1 --repeats 1 --steps 1",
}
PLACES = {"$SLURM_ARRAY_TASK_ID": "0", "s3://": "memory://", "/shared/": "shared/"}
if find_spec("tensorboard") is None:
    PLACES["--tensorboard"] = ""
GIVEN = {  # what a page takes for granted: its name there, and what another page made
    "bulk": {"runs/engine": "demo/runs/engine"},
    "distil": {"runs/adapter": "demo/runs/adapter", "runs/encoder": "encoder/runs/encoder"},
    "encoder": {"runs/adapter": "demo/runs/adapter"},
    "engines": {"adapter": "demo/runs/adapter", "adapter-2": "demo/runs/adapter"},
    "layouts": {"runs/pairs": "demo/runs/pairs"},
    "precision": {"fused": "demo/runs/fused", "onnx": "demo/runs/engine", "plan.json": "demo/runs/plan.json"},
    "python": {"runs/pairs": "demo/runs/pairs"},
    "quality": {"runs/engine": "demo/runs/engine", "runs/pairs": "demo/runs/pairs"},
    "reid": {"runs/pairs": "demo/runs/pairs"},
    "report": {"runs/pairs": "demo/runs/pairs"},
    "speed": {"runs/engine": "demo/runs/engine", "runs/plan.json": "demo/runs/plan.json"},
}
STAND_IN = {
    "export": "--model",
    "build": "--engine",
    "refit": "--engine",
}  # whose folder serves as --out of a line not run
JOBS = {  # a second run says that the first has finished
    *("prepare", "personalize", "train-encoder", "encode", "virtual", "import", "fuse", "export", "export-adapter"),
    *("plan", "synth", "pack", "merge", "manifest", "score", "filter", "compare-sets", "card", "report", "world make"),
    *("reid train", "reid trials", "reid compare", "reid show"),
    *("distil", "distil-decoder", "quantize"),
}
CAMERAS = [f"cam{number}" for number in range(1, 8)]
WITHOUT_GPU = {"72": "4,8", "engine": "rtx"}
BUILT = {words[words.index("--engine") + 1] for page in LINES.values() for words in page if words[0] == "build"}


class Done(NamedTuple):
    """A command that was run, as `synth`, and its line of JSON."""

    command: str
    summary: dict[str, Any]


def command_of(words: Sequence[str]) -> str:
    return next(command for command in cli.COMMANDS if words[: len(command.split())] == command.split())


def reason_against(words: Sequence[str]) -> str:
    """Why a command line is not run here; "" if it is."""
    reasons = (why for key, why in NOT_RUN.items() if set(key.split()) <= set(words))
    return "" if "--dry-run" in words else next(reasons, "")


def placed(words: Sequence[str]) -> list[str]:
    """The command line with small values and places of this machine."""
    command = command_of(words)
    given = words[len(command.split()) :]
    small = [SMALL.get(f"{option} {value}", value) for option, value in zip(["", *given], given, strict=False)]
    flags = {option.flag for option in options.options(function_of(command))}
    device = ["--device", "cpu"] if "--device" in flags else []
    if command == "bench" and "--engine" not in words:  # an export of the shipped model takes half a minute
        device += ["--backend", "torch"]
    defaults = DEFAULTS.get(command, "")
    if "runs/student-engine" in words:  # a student has steps of its own
        defaults = defaults.replace("--steps 2", "")
    line = [*command.split(), *defaults.split(), *device, *small]
    for name, place in PLACES.items():
        line = [word.replace(name, place) for word in line]
    return [word for word in line if word]


def execute(words: Sequence[str]) -> str:
    """Runs a command line, which must succeed and name a next one that parses; returns what it prints."""
    out, error = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(error), pytest.raises(SystemExit) as stop:
        cli.main([*words, "--json"])
    assert not stop.value.code, f"{' '.join(words)}\n{error.getvalue()}"
    following(out.getvalue())
    assert f"\n{NEXT}" in out.getvalue(), words
    return out.getvalue()


def value(words: Sequence[str], option: str) -> str:
    return words[words.index(option) + 1]


class Walks:
    """Pages whose commands were run, each in a folder of its own."""

    def __init__(self, root: Path, base: Path) -> None:
        self._root = root
        self._done: dict[str, list[Done]] = {}
        self._exports: set[tuple[str, ...]] = set()
        lay_out(root / "given", base)

    def folder(self, page: str) -> Path:
        return self._root / page

    def of(self, page: str) -> list[Done]:
        """Runs a page's commands, after the pages that made what it takes for granted; a later call returns the same."""
        if page not in self._done:
            for made in GIVEN.get(page, {}).values():
                self.of(made.partition("/")[0])
            self._lay_out(page)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(self.folder(page))
                self._done[page] = [done for words in LINES[page] if (done := self._run(words))]
        return self._done[page]

    def summaries(self, page: str) -> list[dict[str, Any]]:
        """What the commands of a page returned, but `export`, which is not run on every page."""
        return [done.summary for done in self.of(page) if done.command != "export"]

    def _lay_out(self, page: str) -> None:
        here = self.folder(page)
        here.mkdir()
        for path in (self._root / "given").iterdir():
            (here / path.name).symlink_to(path)
        for name, made in GIVEN.get(page, {}).items():
            source = self._root / made
            (here / name).parent.mkdir(exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, here / name)

    def _run(self, words: list[str]) -> Done | None:
        """Runs a line, twice if it is a job; another folder stands for what a line makes that is not run."""
        if reason_against(words) or (words[0] == "export" and self._exported(words)):
            out = Path(value(words, "--out")) if "--out" in words else None
            if out is not None and words[0] in STAND_IN and not out.exists():
                out.symlink_to(Path(value(words, STAND_IN[words[0]])).resolve())
            return None
        line = placed(words)
        text = execute(line)
        if command_of(words) in JOBS and not {"--dry-run", "--undo"} & set(words):
            assert "finished by an earlier run" in execute(line), line
        return Done(command_of(words), last_json(text))

    def _exported(self, words: list[str]) -> bool:
        """Whether an export of the same options was run, and no page builds of what it makes; each takes 15 seconds."""
        if value(words, "--out") in BUILT and not Path(value(words, "--out")).exists():
            return False
        given = tuple(word for word in words if word not in (value(words, "--model"), value(words, "--out")))
        known = given in self._exports
        self._exports.add(given)
        return known


@pytest.fixture(scope="module")
def walks(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Walks:
    return Walks(tmp_path_factory.mktemp("pages"), tiny_base)


@pytest.mark.parametrize("page", LINES)
def test_the_commands_of_a_page_run_as_typed(page: str, walks: Walks) -> None:
    walks.of(page)


def test_every_reason_is_that_of_a_line() -> None:
    lines = [words for page in LINES.values() for words in page]
    for table, found in (
        (NOT_RUN, lambda key, words: set(key.split()) <= set(words)),
        (SMALL, lambda key, words: f" {key} " in f" {' '.join(words)} "),
        (DEFAULTS, lambda key, words: command_of(words) == key),
        (PLACES, lambda key, words: any(key in word for word in words)),
    ):
        assert [key for key in table if not any(found(key, words) for words in lines)] == []


def test_the_training_page_leads_from_raw_folders_to_pairs(walks: Walks) -> None:
    counted, prepared, foreseen, adapter, more, fused, plan, pairs, checked, *_ = walks.summaries("training-an-adapter")
    assert counted["images"] == prepared["images"] == 5 * 6 * 2 + 12 + 11
    assert [(row["rule"], row["identities"], row["images"]) for row in prepared["dropped"]] == [
        ("of people with fewer than 12 images", 1, 1),
        ("not twice as high as wide", 0, 1),
    ]
    assert not foreseen.get("fingerprint")
    assert (adapter["identities"], adapter["cameras"]) == (7, [*CAMERAS])
    assert (more["identities"], fused["identities"]) == (9, 7)
    assert (plan["identities"], plan["pairs"]) == (2, 12)  # 10013 has photos, but too few, and was never learned
    assert (pairs["images"], checked["problems"]) == (12, [])


def test_the_page_of_published_weights_leads_from_their_files_to_pairs(walks: Walks, tiny_base: Path) -> None:
    imported, fused, plan, pairs, checked, with_photos, named, _ = walks.summaries("published-weights")
    assert imported["identities"] == fused["identities"] == 2
    assert (imported["landed"], imported["linears"], imported["dropped"]) == (32, 32, [])
    assert imported["cameras"] == [*CAMERAS]
    assert named["fingerprint"] == imported["fingerprint"]  # the codes named, the same adapter
    assert plan["pairs"] == 2 * 6 and with_photos["pairs"] == 6  # both people; and 0534, who has a photo
    assert (pairs["images"], checked["problems"]) == (24, [])
    (python,) = blocks(TEXTS["published-weights"], "python")
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(walks.folder("published-weights"))
        exec(python, names)
    assert names["pipe"].tokenizer.convert_tokens_to_ids("<class_1>") == len(names["pipe"].tokenizer) - 1
    assert names["pipe"].get_active_adapters()


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_what_the_engines_page_builds_is_built_for_rtx(walks: Walks, step: Any, run: Run, monkeypatch: Any) -> None:
    """As far as a machine without a GPU goes: plans that a refit can reach are refused in a sentence, others are built."""
    walks.of("engines")
    monkeypatch.chdir(walks.folder("engines"))
    _, build, *_ = [[WITHOUT_GPU.get(word, word) for word in line] for line in LINES["engines"] if line[0] == "build"]
    rtx = ("--flavour", "tensorrt-rtx", "--cache", "cache", "--vae-rows", "1", "--text-rows", "1")
    foreseen = step(*build, *rtx, "--dry-run")
    assert len(foreseen["parts"]) == 5 and not Path("rtx").exists()
    if not torch.cuda.is_available():
        assert any("with a GPU only" in reason for reason in foreseen["missing"]), foreseen["missing"]
        code, _, error = run(*build, *rtx)
        assert code == 1 and "with a GPU only" in error and not Path("rtx").exists()
    built = step(*[word for word in build if word != "--refittable"], *rtx)
    assert (built["variant"], built["row_counts"], built["backend"]) == ("kv-cache", [4, 8], "tensorrt-rtx")
    code, _, error = run("refit --engine rtx --weights onnx --out refitted")
    assert code == 2 and "hold their weights; build it with refittable" in error
