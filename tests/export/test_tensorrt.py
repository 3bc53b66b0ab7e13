"""The TensorRT builder: what a plan is cached under, what is refused, what stands on disk. Plans are a stand-in's."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dive_export import tensorrt_job, tensorrt_refit
from dive_export.tensorrt import BuildConfig, build_engine, dry_run, refit_engine
from dive_fast.engines import tensorrt_api as trt
from dive_fast.io import sha256_file, write_json
from dive_fast.types import DiveError, EngineSpec, InputError, Profile
from tests.support.engines import edit_spec
from tests.support.refusals import refused
from tests.support.tensorrt_double import Double, install, retrained
from tests.support.tensorrt_engines import quiet
from tests.support.tiny import ENGINE_ROWS, HEIGHT, WIDTH

PARTS = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]


@pytest.fixture
def config(tmp_path: Path) -> BuildConfig:
    return BuildConfig(rows=(2, 8), vae_rows=(1, 4), text_rows=(4,), cache=tmp_path / "cache")


def parts_built(double: Double) -> list[str]:
    found = [call[1] for call in double.calls if call[0] == "build"]
    double.calls.clear()
    return found


def test_the_folder_is_whole_and_says_what_it_is(
    tiny_engine: Path, tmp_path: Path, double: Double, config: BuildConfig
) -> None:
    spec = build_engine(tiny_engine, tmp_path / "plans", config, quiet)
    assert (spec.backend, spec.gpu, spec.row_counts) == ("tensorrt", "NVIDIA Double (compute capability 9.0)", (2, 8))
    assert (spec.profile.rows_min, spec.profile.rows_max) == (1, 8) and spec.versions["tensorrt"] == "11.4.0"
    out = tmp_path / "plans"
    on_disk = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert on_disk == {*spec.sha256, "engine.json"} and not list(out.rglob("*.onnx*"))
    assert all(sha256_file(out / name) == value for name, value in spec.sha256.items())
    for name in ("prompts.json", "unet/config.json", "scheduler/scheduler_config.json"):
        assert (out / name).read_bytes() == (tiny_engine / name).read_bytes()
    profiles = json.loads((out / "unet/model.plan").read_bytes())["profiles"]
    assert [ranges["sample"] for ranges in profiles] == [[[n, 8, 8, 4]] * 3 for n in (2, 8)]  # min = opt = max
    assert {path.name for path in tmp_path.iterdir()} == {"plans", "cache"}


def test_a_second_build_takes_every_plan_from_the_cache(
    tiny_engine: Path, tmp_path: Path, double: Double, config: BuildConfig
) -> None:
    first = build_engine(tiny_engine, tmp_path / "a", config, quiet)
    assert parts_built(double) == PARTS
    lines: list[str] = []
    assert build_engine(tiny_engine, tmp_path / "b", config, lines.append) == first
    assert parts_built(double) == [] and sum("from the cache" in line for line in lines) == 4
    assert build_engine(tiny_engine, tmp_path / "a", config, lines.append) == first
    assert "is there already" in lines[-1]


@pytest.mark.parametrize("damage", ["plan", "record", "no plan"])
def test_a_damaged_plan_is_built_again_with_a_word(
    tiny_engine: Path, tmp_path: Path, double: Double, config: BuildConfig, damage: str
) -> None:
    build_engine(tiny_engine, tmp_path / "a", config, quiet)
    parts_built(double)
    key = json.loads((tmp_path / "a/build.json").read_text())["keys"]["unet"]
    plan = tmp_path / "cache/plans" / f"{key}.plan"
    if damage == "no plan":
        plan.unlink()
    else:
        file = plan if damage == "plan" else plan.with_suffix(".json")
        file.write_bytes(file.read_bytes()[:-2])
    lines: list[str] = []
    build_engine(tiny_engine, tmp_path / "b", config, lines.append)
    assert parts_built(double) == ["unet"] and any(str(plan) in line for line in lines)
    assert (tmp_path / "b/unet/model.plan").read_bytes() == (tmp_path / "a/unet/model.plan").read_bytes()


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"rows": (2, 4)}, ["unet"]),
        ({"vae_rows": (4,)}, ["vae_decoder", "vae_encoder"]),
        ({"prompts_max": 9}, []),  # a plain UNet has no bank
        ({"level": 4}, PARTS),
        ({"workspace": 1 << 30}, PARTS),
        ({"refittable": True}, PARTS),
        ({"compatibility": "ampere"}, PARTS),
    ],
)
def test_a_plan_is_cached_under_every_option_that_it_depends_on(
    tiny_engine: Path, tmp_path: Path, double: Double, config: BuildConfig, change: dict[str, Any], again: list[str]
) -> None:
    build_engine(tiny_engine, tmp_path / "a", config, quiet)
    parts_built(double)
    build_engine(tiny_engine, tmp_path / "b", replace(config, **change), quiet)
    assert parts_built(double) == again


def test_a_plan_is_cached_for_one_gpu_version_and_set_of_weights(
    tiny_engine: Path, tmp_path: Path, double: Double, config: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_engine(tiny_engine, tmp_path / "a", config, quiet)
    parts_built(double)
    other = retrained(tiny_engine, tmp_path / "export-b")
    build_engine(other, tmp_path / "b", config, quiet)
    assert parts_built(double) == PARTS
    install(monkeypatch, double, "NVIDIA Other")
    build_engine(tiny_engine, tmp_path / "c", config, quiet)
    assert parts_built(double) == PARTS
    double.__version__ = "11.5.0"
    build_engine(tiny_engine, tmp_path / "d", config, quiet)
    assert parts_built(double) == PARTS


def test_a_stripped_plan_is_shared_by_adapters_unless_a_built_in_constant_differs(
    tiny_engine: Path, tmp_path: Path, double: Double, config: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stripped = replace(config, refittable=True)
    build_engine(tiny_engine, tmp_path / "a", stripped, quiet)
    assert [call[2] for call in double.calls if call[0] == "build"] == [["REFIT", "STRIP_PLAN"]] * 4
    assert double.count("refit_cuda_engine") == 4  # tried once before the folder stands
    parts_built(double)
    build_engine(retrained(tiny_engine, tmp_path / "export-b"), tmp_path / "b", stripped, quiet)
    assert parts_built(double) == []
    assert (tmp_path / "b/unet/model.onnx.data").is_file()
    # A parser that uses conv_out.bias up while parsing: its value is part of the plan, so another value is another plan.
    from tests.support import tensorrt_double

    known = tensorrt_double.Network.mark_weights_refittable
    skips = lambda self, name: name != "network.unet.conv_out.bias" and known(self, name)  # noqa: E731
    monkeypatch.setattr(tensorrt_double.Network, "mark_weights_refittable", skips)
    build_engine(tiny_engine, tmp_path / "c", replace(stripped, cache=tmp_path / "cache2"), quiet)
    parts_built(double)
    third = retrained(tiny_engine, tmp_path / "export-c", only="network.unet.conv_out.bias")
    build_engine(third, tmp_path / "d", replace(stripped, cache=tmp_path / "cache2"), quiet)
    assert parts_built(double) == ["unet"]
    with pytest.raises(InputError, match="unet: network.unet.conv_out.bias"):
        refit_engine(tmp_path / "c", third, tmp_path / "e", quiet)


def test_timings_are_taken_up_and_broken_ones_dropped_with_a_word(
    tiny_engine: Path, tmp_path: Path, double: Double, config: BuildConfig
) -> None:
    build_engine(tiny_engine, tmp_path / "a", config, quiet)
    assert [call[3] for call in double.calls if call[0] == "build"] == [b"", b"+", b"++", b"+++"]
    (file,) = (tmp_path / "cache/timings").iterdir()
    assert file.read_bytes() == b"++++"
    file.write_bytes(b"broken")
    lines: list[str] = []
    double.calls.clear()
    build_engine(tiny_engine, tmp_path / "b", replace(config, level=1), lines.append)
    assert next(call[3] for call in double.calls if call[0] == "build") == b""
    assert any(str(file) in line for line in lines)


def test_a_failed_build_leaves_nothing_and_gives_part_and_reason(
    tiny_engine: Path, tmp_path: Path, double: Double, config: BuildConfig
) -> None:
    double.fails = True
    with pytest.raises(DiveError, match="build text_encoder: tensorrt .*node conv_in"):
        build_engine(tiny_engine, tmp_path / "plans", config, quiet)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_in_the_middle_is_one_sentence_and_leaves_no_engine(
    tiny_engine: Path, tmp_path: Path, double: Double, config: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dive_export import tensorrt_folder

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorrt_folder.shutil, "copyfile", full)
    with pytest.raises(DiveError, match="plans: the disk is full"):
        build_engine(tiny_engine, tmp_path / "plans", config, quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    monkeypatch.undo()
    monkeypatch.setattr(tensorrt_job, "free_space", lambda out: 1000)
    install(monkeypatch, double)
    with pytest.raises(DiveError, match="0 MB are free"):
        build_engine(tiny_engine, tmp_path / "plans", config, quiet)


def test_what_else_stands_at_out_is_left_alone(
    tiny_engine: Path, tmp_path: Path, double: Double, config: BuildConfig
) -> None:
    out = tmp_path / "plans"
    build_engine(tiny_engine, out, config, quiet)
    with pytest.raises(InputError, match=r"keys, config differ.*--out"):
        build_engine(tiny_engine, out, replace(config, level=2), quiet)
    with pytest.raises(InputError, match="a tensorrt engine"):
        build_engine(out, tmp_path / "b", config, quiet)
    (out / "unet/model.plan").write_bytes(b"?")
    with pytest.raises(InputError, match="unet/model.plan"):
        build_engine(tiny_engine, out, config, quiet)
    (tmp_path / "thesis").write_text("chapter 1")
    with pytest.raises(InputError, match="thesis exists"):
        build_engine(tiny_engine, tmp_path / "thesis", config, quiet)


def test_rows_beyond_the_export_are_refused_with_the_remedy(tiny_engine: Path, tmp_path: Path) -> None:
    message = rf"rows 36, 64, 72, 144 > rows_max {ENGINE_ROWS} of .*{ENGINE_ROWS}"
    with pytest.raises(InputError, match=message):
        dry_run(tiny_engine, tmp_path / "plans", BuildConfig(rows=(36, 72, 144), vae_rows=(1,)))


@pytest.mark.parametrize("damage", ["truncated", "no data"])
def test_a_damaged_export_is_refused_before_anything_is_built(
    tiny_engine: Path, tmp_path: Path, double: Double, config: BuildConfig, damage: str
) -> None:
    source = Path(shutil.copytree(tiny_engine, tmp_path / "export"))
    graph = source / "unet/model.onnx"
    if damage == "truncated":
        graph.write_bytes(graph.read_bytes()[:1000])
    else:
        (source / "unet/model.onnx.data").unlink()
    with pytest.raises(InputError, match="unet/model.onnx differs|model.onnx.data is missing"):
        build_engine(source, tmp_path / "plans", config, quiet)
    if damage == "truncated":  # and written broken
        edit_spec(source, rehash=True)
        with pytest.raises(InputError, match="unet/model.onnx is not an ONNX graph"):
            build_engine(source, tmp_path / "plans", config, quiet)
    assert not double.calls


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flavour": "onnx"}, "flavour must be one of tensorrt, tensorrt-rtx, got 'onnx'"),
        ({"rows": ()}, r"rows must be whole numbers > 0, ascending, got \[\]"),
        ({"rows": (4, 2), "vae_rows": (0,)}, r"rows must .* got \[4, 2\]; vae_rows must .* got \[0\]"),
        ({"prompts_max": 0}, "prompts_max must be at least 1, got 0"),
        ({"target": "8.9"}, "target '8.9': tensorrt builds for the GPU it runs on"),
        ({"flavour": "tensorrt-rtx", "target": "9.0"}, "target '9.0': tensorrt-rtx knows 7.5, 8.0"),
        ({"flavour": "tensorrt-rtx", "compatibility": "ampere"}, "compatibility ampere: tensorrt-rtx does not know it"),
        ({"flavour": "tensorrt-rtx", "kernels": True}, "kernels: tensorrt-rtx"),
        ({"kernels": True, "compatibility": "ampere"}, "kernels.* compatibility is ampere"),
        ({"compatibility": "all", "level": 6}, "compatibility .* got 'all'; level must be within 0..5, got 6"),
    ],
)
def test_options_that_do_not_fit_are_refused_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BuildConfig(**options)


def test_a_dry_run_forecasts_and_writes_nothing(
    tiny_engine: Path, tmp_path: Path, double: Double, config: BuildConfig
) -> None:
    forecast = dry_run(tiny_engine, tmp_path / "plans", config)
    assert [part.part for part in forecast.parts] == PARTS and not any(part.cached for part in forecast.parts)
    unet = forecast.parts[1]
    assert unet.profiles[1] == "sample 8x8x8x4, encoder_hidden_states 8x32x32"
    data = (tiny_engine / "unet/model.onnx.data").stat().st_size
    assert data <= unet.weights < 1.05 * data  # small ones stand in the graph
    assert unet.activations > 8 * 32 * 32 * 4 * 2  # inputs, and more than one of the largest values
    assert forecast.parts[2].activations > 4 * 3 * HEIGHT * WIDTH * 4
    assert forecast.disk > sum(part.weights for part in forecast.parts) and forecast.missing == ()
    assert list(tmp_path.iterdir()) == []
    build_engine(tiny_engine, tmp_path / "a", config, quiet)
    assert all(part.cached for part in dry_run(tiny_engine, tmp_path / "plans", config).parts)


def test_a_dry_run_lists_all_that_is_missing(
    tiny_engine: Path, tmp_path: Path, config: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt, "version", lambda kind: None)
    monkeypatch.setattr(trt, "find_gpu", lambda: (None, "no NVIDIA driver (libcuda.so.1) is installed"))
    forecast = dry_run(tiny_engine, tmp_path / "plans", config)
    assert forecast.gpu is None and not any(part.cached for part in forecast.parts)
    assert [reason.split(",")[0] for reason in forecast.missing] == [
        "tensorrt is not installed: pip install 'dive-fast[trt]'",
        "tensorrt builds on the GPU that runs the engine",
    ]
    with pytest.raises(DiveError, match="dive-fast.trt.*GPU"):
        build_engine(tiny_engine, tmp_path / "plans", config, quiet)
    rtx = replace(config, flavour="tensorrt-rtx", refittable=True)
    assert "builds refittable plans with a GPU only" in dry_run(tiny_engine, tmp_path / "plans", rtx).missing[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_refit_needs_the_same_graph_and_a_refittable_engine(
    tiny_engine: Path, tmp_path: Path, double: Double, config: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    build_engine(tiny_engine, tmp_path / "whole", config, quiet)
    with pytest.raises(InputError, match="text_encoder, unet, vae_decoder, vae_encoder"):
        refit_engine(tmp_path / "whole", tiny_engine, tmp_path / "b", quiet)
    with pytest.raises(InputError, match="onnxruntime engine; .*dive-fast build"):
        refit_engine(tiny_engine, tiny_engine, tmp_path / "b", quiet)
    build_engine(tiny_engine, tmp_path / "a", replace(config, refittable=True), quiet)
    other = retrained(tiny_engine, tmp_path / "export-b")
    graph = other / "unet/model.onnx"
    changed = onnx.load(graph, load_external_data=False)
    place, node = next((i, node) for i, node in enumerate(changed.graph.node) if node.op_type == "Conv")
    node.attribute[0].CopyFrom(onnx.helper.make_attribute(node.attribute[0].name, "SAME_UPPER"))
    onnx.save(changed, graph)
    edit_spec(other, rehash=True)
    with pytest.raises(InputError, match=rf"unet: node {place} \({node.name}\)"):
        refit_engine(tmp_path / "a", other, tmp_path / "b", quiet)
    double.losing = {"vae_decoder.nothing"}
    good = retrained(tiny_engine, tmp_path / "export-c")
    made: EngineSpec = refit_engine(tmp_path / "a", good, tmp_path / "c", quiet)
    assert made.model_fingerprint == "0" * 64
    lines: list[str] = []
    assert refit_engine(tmp_path / "a", good, tmp_path / "c", lines.append) == made and "is there already" in lines[-1]
    double.losing = {"network.unet.conv_in.weight"}
    with pytest.raises(DiveError, match="1 of .* weights would keep old values"):
        refit_engine(tmp_path / "a", good, tmp_path / "d", quiet)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"fixed": {}},
        {"refittable": {"unet": "x"}},
        {"refittable": {"unet": ["x"], "other": ["x"]}},
        {"refittable": {"unet": [1]}},
    ],
)
def test_a_build_record_that_does_not_fit_its_engine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    spec = EngineSpec("tensorrt", "fp16", Profile(1, 2, 4, 64, 32), "m", {"unet": "unet/model.plan"}, {})
    monkeypatch.setattr(tensorrt_refit, "read_spec", lambda _: spec)
    monkeypatch.setattr(tensorrt_refit, "check_files", lambda *_: None)
    record = {"keys": {}, "config": {}, "refittable": {"unet": ["w"]}, "fixed": {"unet": "0"}}
    write_json(tmp_path / "build.json", record)
    assert tensorrt_refit.refittable_spec(tmp_path) == (spec, record)
    write_json(tmp_path / "build.json", {**record, **change})
    refused("build.json", tensorrt_refit.refittable_spec, tmp_path)
