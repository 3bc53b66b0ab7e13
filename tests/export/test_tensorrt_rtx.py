"""Real parsing and building by tensorrt-rtx, which needs no GPU for it: both UNet variants, the cache, errors, Ctrl-C."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from dive_export.tensorrt import BuildConfig, build_engine
from dive_export.tensorrt_build import PartBuild, build_plan, refit_map
from dive_export.tensorrt_cache import PlanCache
from dive_export.tensorrt_job import Build
from dive_export.tensorrt_profiles import profiles, weights_size
from dive_fast.engines import tensorrt_api as trt
from dive_fast.io import sha256_file, write_json
from dive_fast.types import DiveError, EngineSpec, Profile
from tests.support.engines import edit_spec
from tests.support.tensorrt_engines import quiet, rtx_parser

rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'dive-fast[rtx]'")
ROOT = Path(__file__).parents[2]
no_gpu = pytest.mark.skipif(trt.find_gpu()[0] is not None, reason="what is refused without a GPU works with one")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rtx") / "cache"


@pytest.fixture(scope="module")
def config(cache: Path) -> BuildConfig:
    return BuildConfig("tensorrt-rtx", rows=(4,), vae_rows=(2,), text_rows=(2,), prompts_max=16, cache=cache)


@pytest.fixture(scope="module")
def plans(tiny_engine: Path, config: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rtx") / "plans"
    build_engine(tiny_engine, folder, config, quiet)
    return folder


def check_built(folder: Path, source: Path, parts: int) -> None:
    spec = json.loads((folder / "engine.json").read_text())
    assert spec["backend"] == "tensorrt-rtx" and spec["gpu"] == trt.ANY_AMPERE and len(spec["files"]) == parts
    for part, name in spec["files"].items():
        assert (folder / name).stat().st_size > weights_size(source / part / "model.onnx")  # they are in it
        assert sha256_file(folder / name) == spec["sha256"][name]


def test_all_four_graphs_build(plans: Path, tiny_engine: Path) -> None:
    check_built(plans, tiny_engine, parts=4)


def test_the_bank_form_builds_in_half_precision_and_any_size(
    half_bank: Path, config: BuildConfig, tmp_path: Path
) -> None:
    build = Build.from_export(half_bank, config)
    unet = build.parts["unet"].profiles
    assert [shapes["sample"][0] for shapes in unet] == [(2, 2, 2), (4, 4, 4)]  # images: with guidance, and without
    assert all(shapes["image_index"] == ((4, 4, 4),) for shapes in unet)
    assert unet[0]["kv_bank"][0] == (1, 16, 16) and unet[0]["sample"][2:] == ((8, 8, 8), (4, 4, 4))
    build_engine(half_bank, tmp_path / "plans", config, quiet)
    check_built(tmp_path / "plans", half_bank, parts=5)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_a_build_that_is_stopped_leaves_no_engine(
    plans: Path, tiny_engine: Path, cache: Path, tmp_path: Path, sign: signal.Signals
) -> None:
    rows = tuple(range(1 + (sign == signal.SIGINT), 17, 2))  # eight profiles, which take seconds; each signal its own
    code = f"""
from pathlib import Path
from dive_export.tensorrt import BuildConfig, build_engine
config = BuildConfig('tensorrt-rtx', rows={rows}, vae_rows=(2,), text_rows=(2,), cache=Path({str(cache)!r}))
build_engine({str(tiny_engine)!r}, {str(tmp_path / "plans")!r}, config)
"""
    path = f"{ROOT}:{ROOT / 'kernels'}:{ROOT / 'export'}"
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env={"PYTHONPATH": path}
    ) as run:
        assert run.stderr is not None
        seen = wait_for(iter(run.stderr.readline, ""), "build 2 of 4: unet, 8 profiles ...")
        run.send_signal(sign)
        rest = run.communicate(timeout=60)[1]
    assert any("text_encoder" in line and "from the cache" in line for line in seen)
    assert "4: unet, " not in rest and not (tmp_path / "plans").exists()
    if sign == signal.SIGINT:
        assert "KeyboardInterrupt" in rest and list(tmp_path.iterdir()) == []
    else:  # nothing could clear up: what is left has another name, and the next run clears it
        assert [path.name for path in tmp_path.iterdir()] == [".plans.dive-tmp"]


def wait_for(lines: Iterator[str], wanted: str) -> list[str]:
    seen = []
    for line in lines:
        seen.append(line)
        if wanted in line:
            return seen
    raise AssertionError("".join(seen))


def test_an_operator_that_it_does_not_know_is_named_with_its_node(
    tiny_engine: Path, config: BuildConfig, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(tiny_engine, tmp_path / "export"))
    path = source / "text_encoder/model.onnx"
    model = onnx.load(path, load_external_data=False)
    node = next(node for node in model.graph.node if len(node.input) == 1 and not node.attribute)
    node.op_type = "Det"
    onnx.save(model, path)
    edit_spec(source, rehash=True)
    with pytest.raises(DiveError, match=rf"build text_encoder: node {node.name} \(Det\).*UNSUPPORTED_NODE"):
        build_engine(source, tmp_path / "plans", config, quiet)
    assert {path.name for path in tmp_path.iterdir()} == {"export"}


def test_a_refit_reaches_every_weight_matrix(tiny_engine: Path) -> None:
    """The parser's own word of what it holds under the ONNX names, against the file."""
    for part in ("unet", "text_encoder", "vae_decoder", "vae_encoder"):
        path = tiny_engine / part / "model.onnx"
        _, _, network, parser = rtx_parser(rtx)
        assert parser.parse_from_file(str(path))
        found = refit_map(network, path)
        tensors = onnx.load(path, load_external_data=False).graph.initializer
        floats = {tensor.name for tensor in tensors if tensor.data_type == onnx.TensorProto.FLOAT}
        assert {t.name for t in tensors if t.name in floats and len(t.dims) > 1} <= set(found) <= floats
        assert not any(network.are_weights_marked_refittable(name) for name in found)  # asking left no mark


@no_gpu
def test_refittable_plans_need_a_gpu_and_say_so(tiny_engine: Path, config: BuildConfig, tmp_path: Path) -> None:
    """Refused at once; and if tried, this is how tensorrt-rtx 1.7.1 fails: it runs the weights' preparation on the GPU."""
    stripped = replace(config, refittable=True)
    with pytest.raises(DiveError, match="refittable"):
        build_engine(tiny_engine, tmp_path / "plans", stripped, quiet)
    todo = Build.from_export(tiny_engine, stripped).parts["text_encoder"]
    with pytest.raises(DiveError, match="build text_encoder: .*refittable"):
        build_plan(trt.RTX, rtx, todo, quiet)


@no_gpu
def test_a_plan_does_not_load_without_a_gpu(plans: Path) -> None:
    with pytest.raises(DiveError, match=r"the plan .*[Cc]uda"):
        trt.open_plan(rtx, (plans / "vae_encoder/model.plan").read_bytes(), "the plan")


@pytest.mark.slow
def test_the_unet_of_stable_diffusion_builds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Full size, random weights, fp16, 512x256 at 36 and 72 rows: minutes, and about 8 GB."""
    from diffusers import UNet2DConditionModel

    from dive_export.graphs import Axis, Graph
    from dive_export.onnx import export_graph
    from dive_fast.unet.graphs import UnetGraph

    unet = UNet2DConditionModel(sample_size=(64, 32), cross_attention_dim=768, attention_head_dim=8)
    module = UnetGraph(unet.eval())
    rows = Axis("rows", 0)
    inputs = {"sample": (rows, 4, 64, 32), "timestep": (1,), "encoder_hidden_states": (rows, 77, 768)}
    path = tmp_path / "unet/model.onnx"
    export_graph(Graph("unet", module, inputs, "out_sample", 0, 2, module), path, "fp16")
    del unet, module
    for part in ("unet", "vae_decoder"):
        config = {"in_channels": 4, "block_out_channels": [1] * 4, "scaling_factor": 1}
        write_json(tmp_path / part / "config.json", config)
    spec = EngineSpec("onnxruntime", "fp16", Profile(1, 36, 72, 512, 256), "0", {"unet": "unet/model.onnx"}, {})
    sizes = [{"rows": (n, n, n)} for n in (36, 72)]
    todo = PartBuild(
        "unet", path, profiles("unet", path, spec, sizes), False, "NONE", "8.9", None, None, tmp_path / "timings"
    )
    started = time.monotonic()
    plan = build_plan(trt.RTX, rtx, todo, print)
    seconds = time.monotonic() - started
    assert len(plan.data) > weights_size(path) > 1.7e9
    assert capsys.readouterr().out.count("steps/s") >= seconds // 20  # progress was told
    PlanCache(tmp_path / "cache", print).put("sd15", plan)
    assert PlanCache(tmp_path / "cache", print).get("sd15", path) == plan
    print(f"built in {seconds:.0f} s, {len(plan.data) / 1e9:.2f} GB")
