"""The command line: help, exit codes, errors in one sentence, the JSON line, and the walk through all commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dive_fast import cli
from dive_fast.commands import common, machine
from dive_fast.commands.sampling import settings
from dive_fast.types import DiveError, InputError
from tests.support.cli import COMMANDS, Run, leaves

ALL = leaves(COMMANDS)


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_explains_every_option(words: tuple[str, ...], run: Run) -> None:
    code, out, _ = run(*words, "--help")
    assert code == 0
    assert "--json" in out
    unexplained = [option.name for option in ALL[words].params if not (option.help or "").strip()]
    assert not unexplained


def test_version_and_no_arguments(run: Run) -> None:
    assert run("--version")[:2] == (0, "dive-fast 0.1.0\n")
    code, out, error = run()
    assert code in (0, 2)  # typer's choice, by version
    assert "Commands:" in out + error


@pytest.mark.parametrize(
    ("raised", "code", "sentence"),
    [
        (DiveError("work: it broke; fix it"), 1, "dive-fast: work: it broke; fix it\n"),
        (InputError("input: it is bad; mend it"), 2, "dive-fast: input: it is bad; mend it\n"),
        (KeyboardInterrupt(), 1, "dive-fast: interrupted; finished work is kept, run the same command again to continue\n"),
        (ModuleNotFoundError("", name="peft"), 1, "dive-fast: peft is not installed; pip install 'dive-fast[train]'\n"),
    ],
    ids=["failed", "bad-input", "interrupt", "missing-package"],
)  # fmt: skip
def test_an_error_is_one_sentence(
    raised: BaseException, code: int, sentence: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dive_fast.commands.machine.collect", lambda _: (_ for _ in ()).throw(raised))
    assert run("doctor") == (code, "", sentence)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dive_fast.commands.machine.collect", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])
    monkeypatch.setattr("dive_fast.commands.machine.collect", lambda _: __import__("no_such_module"))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["doctor"])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["world", "make"], "Missing option '--out'"),
        (["plan", "--model", "m", "--out", "p", "--mode", "best"], "'best' is not one of"),
        (["doctor", "--need", "torch-cdua"], "'torch-cdua' is not one of"),
        (["personalize", "--out", "a"], "no photos to learn from; give --paired, --external or both"),
        (
            ["personalize", "--out", "a", "--onto", "b", "--phrase", "pocket"],
            "--phrase and --template are those of the",
        ),
        (["reid", "train", "--out", "c"], "nothing to train on"),
        (["world", "sheet", "--out", "s.png", "--pids", "1,,2"], "has an empty part"),
        (["export", "--model", "m", "--out", "e", "--size", "512"], "HEIGHTxWIDTH"),
        (["verify", "nowhere"], "nowhere is no synthesized dataset"),
        (["fuse", "--model", "nowhere", "--adapter", "a", "--out", "f"], "nowhere is not a folder"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_exits_with_2(
    arguments: list[str], part: str, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, error = run(*arguments)
    assert (code, out) == (2, "")
    assert part in error
    assert "Traceback" not in error


def test_our_warnings_come_without_file_and_line(capsys: pytest.CaptureFixture[str]) -> None:
    cli._show_warning("12 folders are empty", UserWarning, machine.__file__, 3)
    cli._show_warning("old", DeprecationWarning, "/somewhere/else.py", 3)
    assert capsys.readouterr().err == "dive-fast: 12 folders are empty\n/somewhere/else.py:3: DeprecationWarning: old\n"


def test_defaults_are_those_of_the_rooms() -> None:
    """Commands state their defaults, for `--help` without heavy imports; they must not drift from the configs."""
    from dive_export.fp8 import Fp8Config
    from dive_export.fp8_engine import Sampling
    from dive_fast.experiments.pipeline import PairConfig
    from dive_fast.experiments.study import StudyConfig
    from dive_fast.reid.evaluation.protocols import Protocol
    from dive_fast.reid.training.config import ReidConfig
    from dive_fast.train.personalize import PersonalizeConfig
    from dive_fast.train.precision import Compute
    from dive_fast.train.prior import Prior
    from dive_fast.train.samples import Samples
    from dive_fast.world.base.train import BaseTrainConfig
    from dive_fast.world.trees import WorldSpec

    own, pairs = settings(None, None, None, None, None), PairConfig()  # what `plan` does by default
    sampled = {"steps": own.steps, "guidance_interval": own.interval, "reuse": own.reuse}
    assert sampled == {name: getattr(pairs, name) for name in sampled}
    sampled["reuse_depth"] = own.reuse_depth  # 0 where nothing is reused, whatever a config says

    base = BaseTrainConfig()
    train_base = {"vae_steps": base.vae.steps, "text_steps": base.text.steps, "unet_steps": base.unet.steps}
    train_base |= {"vae_batch": base.vae.batch, "text_batch": base.text.batch, "unet_batch": base.unet.batch}
    train_base |= {"unet_lr": base.unet.lr}
    rooms: dict[tuple[str, ...], dict[str, Any]] = {
        ("personalize",): {**vars(PersonalizeConfig()), **vars(Compute()), **vars(Prior()), **vars(Samples())},
        ("plan",): {name: value for name, value in vars(PairConfig()).items() if name not in sampled},
        ("world", "make"): vars(WorldSpec()),
        ("world", "study"): {**vars(PairConfig()), "model": StudyConfig().model, "adapter": StudyConfig().adapter},
        ("world", "train-base"): {
            **train_base,
            "vae_images": base.vae_images,
            "unet_images": base.unet_images,
            "unet_grey": base.unet_grey,
            "start": base.start,
        },
        ("quantize",): {**vars(Fp8Config()), **vars(Sampling())},
        ("reid", "train"): vars(ReidConfig()),
        ("reid", "compare"): {**vars(ReidConfig()), **vars(Protocol())},
        ("reid", "eval"): vars(Protocol()),
    }
    for words, defaults in rooms.items():
        options = {option.name: option.default for option in ALL[words].params}
        shared = options.keys() & defaults.keys()
        assert len(shared) >= 3
        assert {name: options[name] for name in shared} == {name: defaults[name] for name in shared}, words
    study, config = {option.name: option.default for option in ALL["world", "study"].params}, StudyConfig()
    assert study["learn_steps"] == config.learn.steps
    assert study["reid_steps"] == config.reid.steps
    assert tuple(common.numbers(study["seeds"])) == config.seeds


def test_world_make_and_sheet(run: Run, tmp_path: Path) -> None:
    small = ["--paired-ids", 2, "--test-ids", 1, "--external-ids", 1, "--images-per-camera", 1, "--market-images", 1]
    code, out, _ = run("world", "make", "--out", tmp_path / "w", *small, "--json")
    assert code == 0
    summary = json.loads(out.splitlines()[-1])
    files = sum(1 for file in (tmp_path / "w").rglob("*.jpg"))
    assert summary == {"images": files, "world": str(tmp_path / "w")}
    code, out, _ = run("world", "sheet", "--out", tmp_path / "s.png", "--pids", "1,2", "--zoom", 1)
    assert (code, out) == (0, f"sheet {tmp_path / 's.png'}: 2 people\n")
    assert Image.open(tmp_path / "s.png").width > 6 * 64


def test_lists_and_sizes() -> None:
    assert common.names(None) == []
    assert common.names("cam3, cam6") == ["cam3", "cam6"]
    assert common.image_size("512x256") == (512, 256)
    assert common.image_size(None) is None


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of four people with infrared and two without."""
    from dive_fast.world.trees import WorldSpec, build_world

    world = tmp_path_factory.mktemp("people")
    build_world(world, WorldSpec(0, paired_ids=6, test_ids=2, external_ids=2, images_per_camera=2, market_images=2))
    return world


@pytest.mark.slow
def test_the_walk_from_photos_to_a_page(run: Run, people: Path, tiny_base: Path, tmp_path: Path) -> None:
    """personalize, fuse, plan, synth, verify, report and reid, each reading the file that the one before left."""

    def step(*arguments: object) -> dict[str, Any]:
        code, out, error = run(*arguments, "--json")
        assert code == 0, error
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return result

    sysu, market = people / "sysu", people / "market"
    adapter, fused, plan, pairs = (tmp_path / name for name in ("adapter", "fused", "plan.json", "pairs"))
    learned = step("personalize", "--model", tiny_base, "--paired", sysu, "--external", market, "--out", adapter,
                   "--external-prefix", 2, "--identity-steps", 2, "--steps", 2, "--rank", 2, "--batch", 2,
                   "--plot", tmp_path / "loss.png")  # fmt: skip
    assert learned["identities"] == 8
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert step("fuse", "--model", tiny_base, "--adapter", adapter, "--out", fused)["identities"] == 8
    planned = step("plan", "--model", fused, "--photos", market, "--photos-prefix", 2, "--out", plan,
                   "--pairs", 1, "--steps", 2)  # fmt: skip
    assert (planned["pairs"], planned["identities"]) == (4, 2)
    made = step("synth", "--plan", plan, "--engine", fused, "--out", pairs, "--device", "cpu")
    assert (made["pairs"], made["images"]) == (4, 4)
    assert step("verify", pairs)["problems"] == []
    assert Path(step("report", pairs, "--out", tmp_path / "page.html")["report"]).stat().st_size > 10_000
    trained = step("reid", "train", "--real", sysu, "--synthetic", pairs, "--out", tmp_path / "reid", "--steps", 2,
                   "--identities", 2, "--per-modality", 2, "--device", "cpu")  # fmt: skip
    assert trained["identities"] == 8
    scores = step("reid", "eval", "--checkpoint", tmp_path / "reid", "--data", sysu, "--device", "cpu")
    assert 0 < scores["map"] <= 100

    arms = [f"baseline={market}", f"oracle={market},{people / 'oracle'}"]
    compared = step("reid", "compare", "--data", sysu, "--arm", arms[0], "--arm", arms[1], "--out", tmp_path / "compare",
                    "--steps", 2, "--identities", 2, "--missing", "visible", "--seeds", "0", "--device", "cpu")  # fmt: skip
    assert set(compared["arms"]) == {"baseline", "oracle"}

    next((pairs / "cam3").rglob("*.*g")).unlink()
    code, out, error = run("verify", pairs, "--json")
    assert code == 1
    assert "is missing; run synth again" in out
    assert "1 problem(s)" in error
    assert run("synth", "--plan", plan, "--engine", fused, "--out", pairs, "--device", "cpu", "--check")[0] == 0
    assert step("verify", pairs)["problems"] == []


def test_names_in_both_sets_are_refused(run: Run, people: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos" / "0001"
    photos.mkdir(parents=True)
    Image.new("RGB", (64, 128)).save(photos / "a.jpg")
    code, _, error = run("personalize", "--paired", people / "sysu", "--external", tmp_path / "photos",
                         "--external-layout", "folder", "--out", tmp_path / "a")  # fmt: skip
    assert code == 2
    assert "first '0001'; tell the people apart with --external-prefix" in error


def test_excluded_people_are_left_out_and_unknown_ones_refused(
    run: Run, people: Path, tiny_base: Path, tmp_path: Path
) -> None:
    arguments = ("personalize", "--model", tiny_base, "--paired", people / "sysu", "--steps", 1, "--rank", 2,
                 "--identity-steps", 0, "--batch", 2, "--out", tmp_path / "adapter")  # fmt: skip
    everyone = sorted(p.name for p in (people / "sysu" / "cam1").iterdir())
    code, _, error = run(*arguments, "--exclude", everyone[0][:-1])
    assert code == 2
    assert "--exclude names 1 identities without photos" in error
    assert run(*arguments, "--exclude", everyone[0])[0] == 0
    learned = {i["pid"] for i in json.loads((tmp_path / "adapter" / "adapter.json").read_text())["identities"]}
    assert learned
    assert everyone[0] not in learned


def test_demo_and_study_hand_their_options_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both run for minutes; their rooms' own tests do that. Here only what arrives there matters."""
    from dive_fast.experiments import demo, study

    seen: dict[str, Any] = {}

    def run_demo(out: Path, config: demo.DemoConfig) -> Path:
        seen["demo"] = (out, config)
        return out / "index.html"

    def run_study(config: study.StudyConfig, out: Path) -> None:
        seen["study"] = config
        record = {"arms": [{"name": "ours", "map_mean": 41.5, "gap_closed_mean": 0.4}]}
        (out / "compare").mkdir(parents=True)
        (out / "compare" / "compare.json").write_text(json.dumps(record))
        (out / "compare" / "table.txt").write_text("arm  mAP\nours 41.5\n")

    monkeypatch.setattr(demo, "run_demo", run_demo)
    monkeypatch.setattr(study, "run_study", run_study)
    assert run("demo", "--out", tmp_path, "--model", "m")[:2] == (0, f"done: open {tmp_path / 'index.html'}\n")
    assert seen["demo"] == (tmp_path, demo.DemoConfig(model="m"))
    code, out, _ = run("world", "study", "--out", tmp_path / "s", "--adapter", "none", "--seeds", "4,5", "--json")
    assert code == 0
    assert out.startswith("arm  mAP\nours 41.5\n")
    assert json.loads(out.splitlines()[-1])["arms"] == {"ours": {"gap_closed": 0.4, "map": 41.5}}
    assert (seen["study"].adapter, seen["study"].seeds, seen["study"].pairs) == (None, (4, 5), study.PairConfig())
