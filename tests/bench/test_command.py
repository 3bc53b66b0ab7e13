"""`dive-fast bench` and `capacity` from the command line: files, exit codes, and no promise that was not measured."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from dive_fast.bench import compare
from dive_fast.bench.config import BenchConfig
from dive_fast.bench.run import Choice, Subject, _setup, chosen_backend, computed_in, open_subject, run_bench
from dive_fast.bench.timing import Ratio
from dive_fast.engines import load_engine
from dive_fast.models import load_bundle
from dive_fast.sampling import Sampling
from dive_fast.synth import save_plan
from dive_fast.types import to_dict
from tests.support.cli import Run, last_json
from tests.support.distilling import save_student
from tests.support.fake_engine import photo_plan, plan_of
from tests.support.refusals import refused

Step = Callable[..., dict[str, Any]]
SMALL = "--backend torch --rows 2,6 --steps 2 --guidance 3 --repeats 2 --rounds 2 --baseline-rows 4 --device cpu"


@pytest.mark.slow
def test_bench_writes_everything_and_capacity_reads_it(tiny_fused: Path, tmp_path: Path, run: Run, step: Step) -> None:
    out = tmp_path / "out"
    code, text, error = run(f"bench --model {tiny_fused} {SMALL} --baselines reference --out {out} --json")
    assert code == 0, error
    assert "estimate: at least" in error
    summary, written = last_json(text), json.loads((out / "bench.json").read_text())
    assert {key: summary[key] for key in written} == written
    assert [(row["rows"], row["images"]) for row in written["rows"]] == [(2, 1), (6, 3)]
    assert (written["backend"], written["sampling"]["steps"], written["conditions"]["clock"]) == ("torch", 2, "host")
    assert written["hardware"]["cpu"] and written["versions"]["torch"] and written["commit"]
    assert written["gflop"]["UNet row"] == pytest.approx(written["rows"][1]["unet_bound"]["gflop"] / 6)
    assert written["gflop"]["prompt"] > 0
    assert [baseline["name"] for baseline in written["baselines"]["results"]] == ["ours", "reference"]
    assert written["job"]["images"] >= 3
    for row in written["rows"]:
        assert row["unet_bound"]["fraction"] > 0 and row["batch_bound"]["fraction"] > 0
    lines = list(csv.DictReader((out / "bench.csv").open()))
    by = {(line["part"], line["name"], line["rows"], line["metric"]): float(line["p50"]) for line in lines}
    assert by["engine", "torch", "6", "images/s"] == written["rows"][1]["images_per_second"]["p50"]
    assert by["engine", "torch", "2", "UNet call GFLOP"] == written["rows"][0]["unet_bound"]["gflop"]
    assert ("baselines", "reference", "4", "images/s") in by
    for name in ("images-per-second", "stages", "roofline", "baselines"):
        picture = Image.open(out / f"{name}.png").convert("RGB")
        assert picture.width > 500 and len(picture.getcolors(1 << 20) or []) > 20
    rate = max(row["images_per_second"]["p50"] for row in written["rows"])
    assert step(f"capacity --result {out / 'bench.json'} --pairs 100000 --gpus 1,8")["fleet"]["rate"] == rate


@pytest.mark.slow
def test_a_student_its_teacher_and_the_reference_in_one_run(tiny_fused: Path, tmp_path: Path, step: Step) -> None:
    student, out = save_student(tiny_fused, tmp_path / "student"), tmp_path / "out"
    line = f"bench --engine {student} --model {tiny_fused} --backend torch --rows 4 --repeats 1 --rounds 2 --device cpu"
    found = step(f"{line} --baselines reference --baseline-rows 4 --baseline-steps 3 --presets 2 --out {out}")
    others = found["baselines"]
    assert (found["sampling"]["steps"], found["sampling"]["guidance"]) == (2, 1.0)
    assert (others["sampling"]["steps"], others["sampling"]["guidance"], others["teacher"]) == (3, 3.0, True)
    assert found["conditions"]["model fingerprint"] != others["model_fingerprint"]
    assert others["model_fingerprint"] == load_bundle(tiny_fused).fingerprint
    assert [(one["name"], one["parity"]["passed"]) for one in others["results"]] == [
        ("ours", True),
        ("reference", True),
    ]
    assert [(one["name"], {*one["faster"]}) for one in others["presets"]] == [
        ("2 steps", {"ours", "reference"}),
        ("student", {"ours", "reference", "2 steps"}),
    ]
    # the work of two steps of one row an image
    (rows,), gflop = found["rows"], found["gflop"]
    assert rows["images"] == 4 and rows["unet_bound"]["gflop"] == pytest.approx(4 * gflop["UNet row"])
    prompts = rows["batch_bound"]["gflop"] - 2 * 4 * gflop["UNet row"] - 4 * gflop["decoded image"]
    assert prompts / gflop["prompt"] == pytest.approx(4)
    assert (out / "baselines.png").stat().st_size


@pytest.mark.slow
def test_baselines_of_a_student_are_its_own_or_its_teacher_s(tiny_fused: Path, tmp_path: Path, run: Run) -> None:
    student, none = save_student(tiny_fused, tmp_path / "student"), "--baseline-steps 5 --baselines reference"
    for line, part in (
        (f"--engine {student} --model {student} --presets 7", str(student)),
        (f"--engine {student} --model {tiny_fused} --preset exact --baselines reference", str(student)),
        (f"--model {student} {none} --backend torch", "--baseline-steps"),
        (f"--model {tiny_fused} --preset turbo", "dive-fast distil --model"),
    ):
        code, _, error = run(f"bench --device cpu --rows 2 {line}")
        assert code == 2 and part in error, error


@pytest.mark.slow
def test_a_teacher_is_opened_as_its_student(tiny_fused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same backend, in the same size and variant; of a quantised student in the precision of its graph."""
    student = save_student(tiny_fused, tmp_path / "student")
    engine, asked = load_engine(student, "torch", "cpu"), []
    profile = replace(engine.spec.profile, height=32)
    config = BenchConfig(rows=(2,), baselines=("reference",), sampling=Sampling(2, 1.0))

    def export(model: Path, out: Path, rows: int, **options: Any) -> None:
        asked.append((model, rows, options["size"], options["options"].variant, options["options"].precision))

    monkeypatch.setattr("dive_export.export_engine", export)
    monkeypatch.setattr("dive_fast.bench.run.load_engine", lambda path, backend, *_, **given: load_engine(tiny_fused))
    for precision, own in (("int8", "fp32"), ("fp16", "fp16")):
        spec = replace(engine.spec, backend="onnxruntime", precision=precision, profile=profile, variant="kv-cache")
        monkeypatch.setattr(engine, "spec", spec)
        made = _setup(Subject("x", engine, student, tiny_fused), config)
        assert made is not None and asked == []
        setup = made(tmp_path)
        assert asked.pop() == (tiny_fused, 36, (32, 32), "kv-cache", own)
        assert setup.student is not None and setup.student.engine is engine
        assert setup.config.sampling == Sampling(50, 3.0)
    monkeypatch.setattr(engine, "spec", replace(engine.spec, backend="tensorrt"))
    refused("--tensorrt", _setup, Subject("x", engine, student, tiny_fused), config)


def test_an_engine_of_another_model_and_peers_without_one(tiny_fused: Path, tiny_base: Path, tmp_path: Path) -> None:
    choice = Choice(tiny_fused, None, "torch", "cpu", "cpu", "auto", None)
    subject = open_subject(choice, BenchConfig(), tmp_path, print)  # a fused model is the baselines' model, too
    assert subject.folder == subject.model == tiny_fused and subject.engine.spec.backend == "torch"
    engine = subject.engine
    config = BenchConfig(rows=(2,), baselines=("reference",))
    refused("--model FOLDER", run_bench, Subject("x", engine, tiny_fused), config, tmp_path, print)
    refused(str(tiny_base), run_bench, Subject("x", engine, tiny_fused, tiny_base), config, tmp_path, print)


@pytest.mark.parametrize(
    ("backend", "device", "precision", "computed"),
    [
        ("onnxruntime", "cpu", "fp16", torch.float32),
        ("onnxruntime", "cpu", "fp8", torch.float32),
        ("onnxruntime", "cuda", "fp16", torch.float16),
        ("torch", "cpu", "bf16", torch.bfloat16),
        ("openvino", "cpu", "bf16", torch.bfloat16),
        ("tensorrt", "cuda", "fp8", torch.float16),
    ],
)
def test_peaks_are_those_of_what_an_engine_computes_in(
    backend: str, device: str, precision: str, computed: torch.dtype
) -> None:
    spec = SimpleNamespace(backend=backend, precision=precision)
    engine: Any = SimpleNamespace(spec=spec, device=torch.device(device))
    assert computed_in(engine) is computed


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("--fail-below 0.9", "--fail-below requires --compare"),
        ("--compare HEAD --fail-below 0.9 --rounds 4", "at least 5 --rounds"),
        ("--baselines best", "--baselines: 'best'"),
        ("--presets best", "--presets: 'best'"),
        ("--presets turbo", "--presets: 'turbo'"),
        ("--presets 0", "steps"),
        ("--compare HEAD --precision fp16", "--baselines"),
        ("--rows 2,x", "--rows"),
        ("--compare no-such-ref", "no-such-ref|git checkout"),
        ("--precision fp8", "--precision fp8: onnxruntime"),
    ],
)
def test_bad_questions_exit_with_2(arguments: str, part: str, run: Run) -> None:
    code, out, error = run(f"bench --device cpu {arguments}")
    assert (code, out) == (2, "")
    assert any(words in error for words in part.split("|")), error


@pytest.mark.parametrize(("limit", "code"), [(0.89, 0), (0.91, 1)])
def test_a_regression_fails_the_command(
    limit: float, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Run
) -> None:
    found = [
        compare.Difference("UNet call", 2, 10, 20, Ratio(0.4, 0.5, 0.6, 5), "slower"),
        compare.Difference("batch", 2, 9, 10, Ratio(0.8, 0.9, 0.95, 5), "slower"),
    ]
    monkeypatch.setattr(compare, "other_tree", lambda ref, target: "0" * 40)
    monkeypatch.setattr(compare, "compare_trees", lambda *a, **k: found)
    given = f"--compare HEAD --model {tmp_path} --device cpu --out {tmp_path} --fail-below {limit}"
    stopped, out, error = run(f"bench {given}")
    assert stopped == code
    assert "batch        2 rows  0.900x (0.800 to 0.950 in 5 rounds)" in out
    assert ("batches of 2 rows are 0.900 times as fast, 0.91 is asked for" in error) is (code == 1)
    assert json.loads((tmp_path / "compare.json").read_text())["differences"][0]["verdict"] == "slower"


@pytest.mark.slow
def test_capacity_by_hand(tmp_path: Path, run: Run) -> None:
    given = "--pairs 1000000 --mode synthetic --rate 10 --bytes-per-image 100000 --disk-write 100 --network 25"
    code, text, _ = run(f"capacity {given} --gpus 1,64,1000 --out {tmp_path} --json")
    assert code == 0
    assert text.startswith("prediction, not a measurement")
    found = json.loads((tmp_path / "capacity.json").read_text())
    assert (found["kind"], found["disk bytes"]) == ("prediction", 2e11)
    assert found["binds"] == {"what": "disk", "workers": pytest.approx(100)}
    one, some, all_ = found["workers"]
    assert one["gpu_hours"] == pytest.approx(2e6 / 10 / 3600, rel=0.01)
    assert some["efficiency"] == pytest.approx(1, rel=0.03)
    assert all_["seconds"] == pytest.approx(2e6 / 1000, rel=0.05)  # 1,000 images/s through the disk
    assert all_["bound"] == "disk"
    assert Image.open(tmp_path / "capacity.png").width > 500
    code, _, error = run("capacity --pairs 5 --rate 10")
    assert code == 2 and "--bytes-per-image" in error


@pytest.mark.parametrize(("mode", "sides"), [("synthetic", 2), ("real-rgb", 1)])
def test_capacity_of_a_plan(mode: str, sides: int, tmp_path: Path, step: Step) -> None:
    people = {"0001": 2, "0003": 1}
    plan = plan_of() if mode == "synthetic" else photo_plan(tmp_path / "photos", people)
    save_plan(plan, tmp_path / "plan.json")
    found = step(f"capacity --plan {tmp_path / 'plan.json'} --rate 10 --bytes-per-image 1000 --gpus 1")
    assert found["disk bytes"] == 1000 * sides * len(plan.pairs)
    assert (found["fleet"]["pairs"], found["fleet"]["shard_size"]) == (len(plan.pairs), 4)


def test_the_backend_that_auto_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen_backend("torch", "cpu") == ("torch", "asked for")
    assert chosen_backend("auto", "cuda")[0] == "torch-compiled"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else object())
    kind, why = chosen_backend("auto", "cpu")
    assert kind == "torch" and "onnxruntime" in why and "onnxscript" not in why.split(":")[0]


@pytest.mark.parametrize(("steps", "noted"), [(4, False), (50, True)])
def test_a_rate_of_another_sampling_than_the_plan_s_is_noted(steps: int, noted: bool, tmp_path: Path, run: Run) -> None:
    plan = plan_of()
    save_plan(plan, tmp_path / "plan.json")
    own = {**to_dict(plan.sampling), "steps": steps}
    row = {"images_per_second": {"p50": 2.0}, "bytes_per_image": 10}
    result = {"rows": [row], "sampling": own, "hardware": {"device": "cpu"}}
    (tmp_path / "bench.json").write_text(json.dumps(result))
    line = f"capacity --plan {tmp_path}/plan.json --result {tmp_path}/bench.json --gpus 1"
    code, text, error = run(line)
    assert code == 0 and "CPU-hours" in text
    assert ("50 steps" in error) == noted
    assert "50 steps" not in run(f"{line} --rate 3")[2]
