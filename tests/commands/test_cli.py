"""The command line: help, exit codes, errors in one sentence, the JSON line, and the walk through all commands."""

from __future__ import annotations

import json
import shlex
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dive_fast import cli, progress
from dive_fast.commands import machine
from dive_fast.environment.packages import Machine, Package
from dive_fast.options import options
from dive_fast.types import DiveError, InputError
from tests.support.cli import Run, following, function_of, last_json

BARE = Machine("3.11", "Linux", 2, None, (".", 1 << 30), {})


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_option_has_a_name_of_its_own_and_a_help_text(command: str, run: Run) -> None:
    found = options(function_of(command))
    flags = [option.flag for option in found]
    assert {"--json", "--quiet"} <= set(flags) and len(flags) == len(set(flags))
    assert not [option.flag for option in found if not option.text.strip()]
    code, out, _ = run(f"{command} --help")
    assert code == 0
    assert all(flag in out for flag in flags)


def test_the_overviews_list_every_command(run: Run) -> None:
    assert run("--version")[:2] == (0, "dive-fast 0.1.0\n")
    code, out, _ = run("--help")
    assert (code, run()[0]) == (0, 2)
    assert run()[1] == out
    for group in ("world", "reid"):
        code, inside, _ = run(f"{group} --help")
        assert code == 0 and group in out
        names = [command.split()[1] for command in cli.COMMANDS if command.startswith(f"{group} ")]
        assert all(name in inside for name in names)
    assert all(command in out for command in cli.COMMANDS if " " not in command)


def test_a_path_that_is_no_text_is_printed(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "sheet\udcff.png"  # a file name of the byte 0xff
    code, out, error = run("world sheet --pids 1 --zoom 1 --json --out", path)
    assert (code, error) == (0, "") and path.exists()
    assert "sheet\\udcff.png" in out and last_json(out)["sheet"] == str(path)


@pytest.mark.parametrize(
    ("raised", "code", "sentence"),
    [
        (DiveError("work: it broke; fix it"), 1, "dive-fast: work: it broke; fix it\n"),
        (InputError("input: it is bad; mend it"), 2, "dive-fast: input: it is bad; mend it\n"),
        (
            KeyboardInterrupt(),
            1,
            "dive-fast: interrupted; finished work is kept, run the same command again to continue\n",
        ),
        (
            ModuleNotFoundError("", name="peft"),
            1,
            "dive-fast: this command needs peft; pip install 'dive-fast[train]'\n",
        ),
    ],
    ids=["failed", "bad-input", "interrupt", "missing-package"],
)
def test_an_error_is_one_sentence(
    raised: BaseException, code: int, sentence: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dive_fast.commands.machine.collect", lambda _: (_ for _ in ()).throw(raised))
    assert run("doctor") == (code, "", sentence)


def test_a_failure_ends_in_a_line_of_json_where_that_is_wanted(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, out, error = run("verify --json", tmp_path / "nowhere")
    assert last_json(out) == {"error": error.removeprefix("dive-fast: ").rstrip("\n"), "exit_code": 2} and code == 2
    assert out.count("\n") == 1

    lacking = replace(BARE, packages={"torch": Package("2.0", "OSError: no libc")})
    monkeypatch.setattr("dive_fast.commands.machine.collect", lambda _: lacking)
    code, out, error = run("doctor --json")
    found = last_json(out)
    assert (code, found["exit_code"]) == (1, 1) and found["error"] in error
    broken = next(row for row in found["rows"] if row["name"] == "torch")  # what the command found is there too
    assert broken["state"] == "broken" and "pip install" in broken["remedy"]
    assert run("doctor")[1] == out.rsplit("\n", 2)[0] + "\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("dive_fast.commands.machine.collect", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])
    monkeypatch.setattr("dive_fast.commands.machine.collect", lambda _: __import__("no_such_module"))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["doctor", "--json"])
    assert last_json(capsys.readouterr().out) == {
        "error": "ModuleNotFoundError: No module named 'no_such_module'",
        "exit_code": 1,
    }


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("nonsense", "'nonsense'"),
        ("world make", "--out"),
        ("plan --model m --out p --mode best", "--mode must be one of"),
        ("doctor --need torch-cdua", "--need must be one of"),
        ("personalize --out a", "give either --photos or --prepared"),
        ("personalize --out a --init-from b --phrase pocket", "--phrase and --template are those of the"),
        ("reid train --out c", "nothing to train on"),
        ("world sheet --out s.png --pids 1,,2", "--pids"),
        ("export --model m --out e --size 512", "HEIGHTxWIDTH"),
        ("verify nowhere", "nowhere is no synthesized dataset"),
        ("fuse --model nowhere --adapter a --out f", "nowhere is not a folder"),
    ],
)
def test_bad_input_exits_with_2(
    line: str, part: str, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, error = run(line)
    assert (code, out) == (2, "")
    assert part in error
    assert "Traceback" not in error


def test_quiet_leaves_warnings_errors_and_the_result(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def collect(_: Path) -> Machine:
        progress.log("looking")
        warnings.warn_explicit("12 folders are empty", UserWarning, machine.__file__, 3)
        with progress.ProgressBar(total=2) as bar:
            bar.update()
        return BARE

    monkeypatch.setattr("dive_fast.commands.machine.collect", collect)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    code, out, error = run("doctor --quiet")
    assert code == 0 and out.startswith("machine\n") and error == "dive-fast: 12 folders are empty\n"
    assert "looking" in run("doctor")[2]


def test_our_warnings_come_without_file_and_line(capsys: pytest.CaptureFixture[str]) -> None:
    cli._show_warning("12 folders are empty", UserWarning, machine.__file__, 3)
    cli._show_warning("old", DeprecationWarning, "/somewhere/else.py", 3)
    assert capsys.readouterr().err == "dive-fast: 12 folders are empty\n/somewhere/else.py:3: DeprecationWarning: old\n"


@pytest.mark.slow
def test_world_make_and_sheet(run: Run, step: Any, tmp_path: Path) -> None:
    small = "--paired-ids 2 --test-ids 1 --external-ids 1 --images-per-camera 1 --market-images 1"
    summary = step(f"world make --out {tmp_path / 'w'} {small}")
    files = sum(1 for file in (tmp_path / "w").rglob("*.jpg"))
    assert summary == {"images": files, "world": str(tmp_path / "w")}
    code, out, _ = run(f"world make --out {tmp_path / 'other'} {small} --seed 7")
    photos = f"market:{tmp_path / 'other' / 'market'},prefix=7"  # nobody whom the shipped adapter has
    assert following(out) == ["encode", "--photos", photos, "--out", str(tmp_path / "adapter")]
    code, out, _ = run(f"world sheet --out {tmp_path / 's.png'} --pids 1,2 --zoom 1")
    assert (code, out.splitlines()[0]) == (0, f"sheet {tmp_path / 's.png'}: 2 identities")
    assert Image.open(tmp_path / "s.png").width > 6 * 64


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of four people with infrared and two without."""
    from dive_fast.world.config import WorldSpec
    from dive_fast.world.trees import build_world

    world = tmp_path_factory.mktemp("people")
    build_world(world, WorldSpec(0, paired_ids=6, test_ids=2, external_ids=2, images_per_camera=2, market_images=2))
    return world


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*one modality only")
def test_the_walk_from_photos_to_a_page(run: Run, step: Any, people: Path, tiny_base: Path, tmp_path: Path) -> None:
    """personalize, fuse, plan, synth, verify, report and reid, each reading the file that the one before left."""
    sysu, market = people / "sysu", people / "market"
    adapter, fused, plan, pairs = (tmp_path / name for name in ("adapter", "fused", "plan.json", "pairs"))
    photos = f"--photos market:{market},prefix=2"
    learned = step(
        f"personalize --model {tiny_base} --photos sysu:{sysu} {photos} --out {adapter} --identity-steps 2 --steps 2 "
        f"--rank 2 --batch 2 --plot {tmp_path / 'loss.png'}"
    )
    assert learned["identities"] == 8
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    fuse = f"fuse --model {tiny_base} --adapter {adapter} --out {fused}"
    assert step(fuse)["identities"] == 8
    for _ in range(2):  # the second run finds what the first has made
        code, again, _ = run(fuse)
        assert code == 0 and "finished by an earlier run" in again
        assert following(again) == ["export", "--model", str(fused), "--out", str(tmp_path / "engine")]
    planned = step(f"plan --model {fused} {photos} --out {plan} --pairs 1 --steps 2")
    assert (planned["pairs"], planned["identities"], planned["images"]) == (4, 2, 4)
    synth = f"synth --plan {plan} --engine {fused} --out {pairs} --device cpu"
    _, again, _ = run(f"plan --model {fused} {photos} --out {plan} --pairs 1 --steps 2")
    assert "finished by an earlier run" in again and following(again) == shlex.split(synth)[:-2]
    made = step(synth)
    assert sum(file.stat().st_size for file in pairs.rglob("*.*")) <= planned["bytes"]
    code, again, _ = run(synth)
    assert "finished by an earlier run" in again and following(again) == ["verify", str(pairs)]
    assert (made["pairs"], made["images"]) == (4, 4)
    assert step(f"verify {pairs}")["problems"] == []
    assert Path(step(f"report {pairs} --out {tmp_path / 'page.html'}")["report"]).stat().st_size > 10_000
    reid, small = tmp_path / "reid", f"--real sysu:{sysu} --steps 2 --identities 2 --device cpu"
    assert step(f"reid train {small} --synthetic {pairs} --out {reid} --per-modality 2")["identities"] == 8
    scores = step(f"reid eval --checkpoint {reid} --test sysu:{sysu} --device cpu")
    assert 0 < scores["map"] <= 100

    arms = f"--arm baseline=market:{market} --arm oracle=market:{market},sysu:{people / 'oracle'}"
    compared = step(f"reid compare {small} {arms} --out {tmp_path / 'compare'} --missing visible --seeds 0")
    assert set(compared["arms"]) == {"baseline", "oracle"}

    next((pairs / "cam3").rglob("*.*g")).unlink()
    code, out, error = run(f"verify {pairs} --json")
    assert code == 1
    assert "is missing; run synth again" in out
    assert "1 problem," in error
    assert run(f"{synth} --check")[0] == 0
    assert step(f"verify {pairs}")["problems"] == []


@pytest.mark.slow
def test_names_in_both_sets_are_refused(run: Run, people: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos" / "0001"
    photos.mkdir(parents=True)
    Image.new("RGB", (64, 128)).save(photos / "a.jpg")
    sets = f"--photos sysu:{people / 'sysu'} --photos folder:{tmp_path / 'photos'}"
    code, _, error = run(f"personalize {sets} --out {tmp_path / 'a'}")
    assert code == 2
    assert "0001" in error and "prefix=" in error


@pytest.mark.slow
def test_excluded_people_are_left_out_and_unknown_ones_refused(
    run: Run, people: Path, tiny_base: Path, tmp_path: Path
) -> None:
    command = (
        f"personalize --model {tiny_base} --photos sysu:{people / 'sysu'} --steps 1 --rank 2 --identity-steps 0 "
        f"--batch 2 --out {tmp_path / 'adapter'} --exclude"
    )
    everyone = sorted(p.name for p in (people / "sysu" / "cam1").iterdir())
    code, _, error = run(command, everyone[0][:-1])
    assert code == 2
    assert "--exclude names 1 identities without photos" in error
    assert run(command, everyone[0])[0] == 0
    learned = {i["pid"] for i in json.loads((tmp_path / "adapter" / "adapter.json").read_text())["identities"]}
    assert learned
    assert everyone[0] not in learned


@pytest.mark.slow
def test_demo_and_study_hand_their_options_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both run for minutes; their rooms' own tests do that. Here only what arrives there matters."""
    from dive_fast.experiments import demo, study
    from dive_fast.experiments.config import DemoConfig, PairConfig, StudyConfig

    seen: dict[str, Any] = {}

    def run_demo(out: Path, config: DemoConfig) -> demo.Demo:
        seen["demo"] = (out, config)
        return demo.Demo(out / "index.html", "Ours is first.", "One seed.")

    def run_study(config: StudyConfig, out: Path) -> dict[str, Any]:
        seen["study"] = config
        record = {"arms": [{"name": "ours", "map_mean": 41.5, "gap_closed_mean": 0.4}]}
        (out / "compare").mkdir(parents=True)
        (out / "compare" / "compare.json").write_text(json.dumps(record))
        (out / "compare" / "table.txt").write_text("arm  mAP\nours 41.5\n")
        return {"curve": [{"steps": 250, "map": 8.1}], "seconds": {"world": 2.0, "reid": 1998.0}}

    monkeypatch.setattr(demo, "run_demo", run_demo)
    monkeypatch.setattr(study, "run_study", run_study)
    told = f"Ours is first.\nOne seed.\ndone: open {tmp_path / 'index.html'}\n"
    code, out, _ = run("demo", "--out", tmp_path, "--model", "m")
    assert code == 0 and out.startswith(told)
    assert following(out) == ["report", f"{tmp_path}/pairs", "--out", f"{tmp_path}/gallery"]
    assert seen["demo"] == (tmp_path, DemoConfig(model="m"))
    code, out, error = run(f"world study --out {tmp_path / 's'} --adapter none --seeds 4,5 --json")
    assert code == 0
    assert "250 steps: mAP 8.1" in error and "2,000 seconds" in error
    assert out.startswith("arm  mAP\nours 41.5\n")
    assert last_json(out)["arms"] == {"ours": {"gap_closed": 0.4, "map": 41.5}}
    assert (seen["study"].adapter, seen["study"].seeds, seen["study"].pairs) == (None, (4, 5), PairConfig())
