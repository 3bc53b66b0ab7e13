"""FP8 graphs against an e4m3 of our own, and the gates that decide which layers get it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from dive_export.calibration import Calibration, peaks, sampling_inputs
from dive_export.fp8 import quantize
from dive_export.fp8_report import LayerTime, read_times, timing_gate
from dive_export.graphs import graphs
from dive_export.options import Fp8Config
from dive_fast.models import load_bundle
from dive_fast.sampling.config import Sampling
from dive_fast.types import InputError, to_dict
from tests.support.graphs import write_graph
from tests.support.tiny import ENGINE_ROWS

EVERYTHING = Fp8Config(budget=10, keep=())


def e4m3(values: np.ndarray) -> np.ndarray:
    """Rounded to the nearest number of e4m3, ties to even, cut off at 448 (arXiv 2209.05433, table 1), in float64.

    Normal numbers have 3 bits behind the point of 1.xxx x 2^e, e >= -6; below, the spacing stays 2^-9.
    """
    values = np.asarray(values, np.float64)
    exponent = np.maximum(np.floor(np.log2(np.maximum(np.abs(values), 1e-300))), -6)
    spacing = 2.0 ** (exponent - 3)
    return np.clip(np.round(values / spacing) * spacing, -448, 448)


def int8(values: np.ndarray) -> np.ndarray:
    """Rounded to the nearest whole number, ties to even, cut off where int8 ends."""
    return np.clip(np.round(np.asarray(values, np.float64)), -128, 127)


def write(path: Path, nodes: Sequence[onnx.NodeProto], weights: dict[str, np.ndarray], shape: Sequence[Any]) -> Path:
    """A graph sample [rows, *shape] -> out_sample in the type of its weights."""
    return write_graph(path, nodes, weights, "sample", shape, "out_sample")


def run(path: Path, call: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(str(path)).run(None, dict(call))[0])


def relative_error(path: Path, original: Path, call: Mapping[str, np.ndarray]) -> float:
    exact = run(original, call)
    return float(np.linalg.norm(run(path, call) - exact) / np.linalg.norm(exact))


def layer(op: str, source: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, [source, f"{output}_w"], [output], name=f"/{output}/{op}", **attributes)


@pytest.mark.parametrize(
    ("op", "attributes", "weight", "sample", "axis"),
    [
        ("Conv", {"pads": [1, 1, 1, 1]}, (6, 5, 3, 3), (5, 8, 4), 0),
        ("MatMul", {}, (5, 6), (7, 5), 1),
        ("Gemm", {}, (5, 6), (5,), 1),
        ("Gemm", {"transB": 1}, (6, 5), (5,), 0),
    ],
)
@pytest.mark.parametrize(("to", "dtype"), [("fp8", np.float32), ("fp8", np.float16), ("int8", np.float32)])
def test_one_layer_computes_what_its_numbers_say(
    tmp_path: Path,
    to: Any,
    op: str,
    attributes: dict[str, Any],
    weight: tuple[int, ...],
    sample: tuple[int, ...],
    axis: int,
    dtype: type,
) -> None:
    rng = np.random.default_rng(0)
    channels = np.exp(rng.uniform(-4, 4, weight[axis])).reshape([-1 if i == axis else 1 for i in range(len(weight))])
    w: np.ndarray = (rng.standard_normal(weight) * channels).astype(
        dtype
    )  # channels of very different sizes need scales of their own
    x: np.ndarray = rng.standard_normal((2, *sample)).astype(dtype)
    other: np.ndarray = rng.standard_normal((2, *sample)).astype(dtype)
    source = write(tmp_path / "a.onnx", [layer(op, "sample", "out_sample", **attributes)], {"out_sample_w": w}, sample)
    report = quantize(
        source, tmp_path / "b.onnx", Calibration([{"sample": x}], [{"sample": other}]), replace(EVERYTHING, to=to)
    )
    assert [(row.name, row.quantised, row.largest) for row in report.layers] == [("out_sample", True, np.abs(x).max())]

    most, rounded = {"fp8": (448, e4m3), "int8": (127, int8)}[to]
    rest = tuple(i for i in range(w.ndim) if i != axis)
    w_scale = np.abs(w.astype(np.float64)).max(axis=rest, keepdims=True) / most
    x_scale = np.abs(x.astype(np.float64)).max() / most
    wide, narrow = (
        rounded(v / s) * s for v, s in ((other.astype(np.float64), x_scale), (w.astype(np.float64), w_scale))
    )
    expected, exact = (product(op, a, b, attributes) for a, b in ((wide, narrow), (other, w)))
    # The scales are rounded to the graph's type (up to an ulp above), which moves a few values over a tie to e4m3's next
    # number, 1/8 away at most. In float32 that is rare enough to compare every value.
    found = run(tmp_path / "b.onnx", {"sample": other}).astype(np.float64)
    bound = product(op, np.abs(wide), np.abs(narrow), attributes)
    error = np.abs(found - expected)
    if dtype is np.float32:
        assert (error <= 16 * np.finfo(dtype).eps * bound).all()
    else:
        assert np.linalg.norm(error) < 0.2 * np.linalg.norm(expected - exact)
    assert report.error is not None
    assert report.error == pytest.approx(np.linalg.norm(expected - exact) / np.linalg.norm(exact), rel=0.05)


def product(op: str, x: np.ndarray, w: np.ndarray, attributes: dict[str, Any]) -> np.ndarray:
    x, w = (np.asarray(array, np.float64) for array in (x, w))
    if op == "Conv":
        return np.asarray(torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(w), padding=1).numpy())
    return np.asarray(x @ (w.T if attributes.get("transB") else w))


def test_peaks_are_the_largest_percentile_of_any_call(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Neg", ["sample"], ["twin"]), layer("MatMul", "twin", "out_sample")]
    path = write(tmp_path / "a.onnx", nodes, {"out_sample_w": np.eye(4, dtype=np.float16)}, (25, 4))
    calls = [{"sample": size * rng.standard_normal((1, 25, 4)).astype(np.float16)} for size in (1, 3)]
    ordered = [
        np.sort(np.abs(call["sample"]).ravel())[::-1] for call in calls
    ]  # 100 values each, so `rank` of them are larger
    model = onnx.load(path, load_external_data=False)
    for percentile, rank in ((100, 0), (99, 1), (97, 3), (50, 50)):
        found = peaks(model, path, ["twin"], calls, percentile)
        assert found == {"twin": max(values[rank] for values in ordered)}


def chain(folder: Path) -> tuple[Path, Calibration]:
    """Four layers of 32 channels, the third made sensitive: a channel of 1e6 that its weights ignore sets its scale."""
    rng = np.random.default_rng(0)
    names = ["first", "second", "touchy", "out_sample"]
    weights = {f"{name}_w": (rng.standard_normal((32, 32)) / 32**0.5).astype(np.float32) for name in names}
    weights["touchy_w"][0] = 0
    weights["spike"] = np.array([1e6, *[0] * 31], np.float32)
    nodes = [
        layer("MatMul", "sample", "first"),
        layer("MatMul", "first", "second"),
        helper.make_node("Add", ["second", "spike"], ["spiked"]),
        layer("MatMul", "spiked", "touchy"),
        layer("MatMul", "touchy", "out_sample"),
    ]
    path = write(folder / "chain" / "model.onnx", nodes, weights, (32,))
    calls = [{"sample": rng.standard_normal((8, 32)).astype(np.float32)} for _ in range(4)]
    return path, Calibration(calls[:2], calls[2:])


def test_the_error_gate_leaves_out_the_layer_that_costs_most(tmp_path: Path) -> None:
    path, calibration = chain(tmp_path)
    report = quantize(path, tmp_path / "fp8" / "model.onnx", calibration, Fp8Config(budget=0.1, keep=("first",)))
    assert {row.name: (row.quantised, row.why) for row in report.layers} == {
        "first": (False, "kept by 'first'"),
        "second": (True, ""),
        "touchy": (False, "error gate: one of the 1 that cost most"),
        "out_sample": (True, ""),
    }
    alone = {row.name: row.error for row in report.layers}
    assert alone["first"] is None and alone["touchy"] > 0.3 and max(alone["second"], alone["out_sample"]) < 0.05  # type: ignore[operator, type-var]
    assert report.error_of_all is not None and report.error_of_all > 0.3
    worst = max(relative_error(tmp_path / "fp8" / "model.onnx", path, call) for call in calibration.held_out)
    assert report.error == pytest.approx(worst, rel=1e-3) and 0 < worst <= 0.1
    assert sorted(file.name for file in (tmp_path / "fp8").iterdir()) == ["model.onnx", "model.onnx.data"]

    none = quantize(path, tmp_path / "none.onnx", calibration, Fp8Config(budget=0, keep=()))
    assert none.quantised == () and none.error == 0


def test_a_layer_whose_fp8_form_is_not_finite_is_left_out_whatever_the_budget(tmp_path: Path) -> None:
    """Float16 has no number for 448 times the scale, rounded up, of weights that reach its own largest, 65504."""
    weights = {"first_w": np.diag(np.array([65504, 1], np.float16)), "out_sample_w": np.eye(2, dtype=np.float16)}
    nodes = [layer("MatMul", "sample", "first"), layer("MatMul", "first", "out_sample")]
    path = write(tmp_path / "a.onnx", nodes, weights, (2,))
    call = {"sample": np.array([[0.5, 0.5]], np.float16)}
    report = quantize(path, tmp_path / "b.onnx", Calibration([call], [call]), EVERYTHING)
    assert [(row.name, row.quantised, row.why) for row in report.layers] == [
        ("first", False, "the output is not finite with it in fp8"),
        ("out_sample", True, ""),
    ]
    assert np.isfinite(run(tmp_path / "b.onnx", call)).all()
    json.dumps(to_dict(report), allow_nan=False)


def test_the_timing_gate_leaves_out_what_fp8_does_not_make_faster(tmp_path: Path) -> None:
    path, calibration = chain(tmp_path)
    table = {"first": (0.3, 0.2), "second": (0.2, 0.2), "touchy": (0.3, 0.1), "out_sample": (0.1, 0.2)}
    rows = {name: {"plain_ms": plain, "fp8_ms": fp8} for name, (plain, fp8) in table.items()}
    (tmp_path / "times.json").write_text(json.dumps({"gpu": "made up", "layers": rows}))
    times = read_times(tmp_path / "times.json")
    assert times["first"] == LayerTime(0.3, 0.2)
    everything = quantize(path, tmp_path / "all.onnx", calibration, EVERYTHING)
    assert len(everything.quantised) == 4

    faster = timing_gate(everything, times)
    assert [row.name for row in faster.quantised] == ["first", "touchy"] and faster.error is None
    assert faster.layers[1].why == "timing gate: 0.2 ms in fp8, 0.2 ms without"
    both = quantize(path, tmp_path / "both.onnx", calibration, Fp8Config(budget=0.1, keep=()), times=times)
    assert [row.name for row in both.quantised] == ["first"]
    assert {row.name: row.why.split(":")[0] for row in both.layers if row.why} == {
        "second": "timing gate",
        "touchy": "error gate",
        "out_sample": "timing gate",
    }

    slower = {name: LayerTime(1, 2) for name in table}
    none = quantize(path, tmp_path / "none.onnx", calibration, EVERYTHING, times=slower)
    assert none.quantised == () and none.error == 0

    with pytest.raises(InputError, match="lacks 3 layer"):
        timing_gate(everything, {"first": LayerTime(1, 1)})
    with pytest.raises(InputError, match="names unknown 1 layer.*'third'"):
        timing_gate(everything, {**times, "third": LayerTime(1, 1)})
    for broken in ("[]", '{"layers": {}}', '{"layers": {"first": {"plain_ms": 0, "fp8_ms": 1}}}'):
        (tmp_path / "times.json").write_text(broken)
        with pytest.raises(InputError, match="timing table"):
            read_times(tmp_path / "times.json")


def test_bad_requests_are_refused_and_nothing_is_left_behind(tmp_path: Path) -> None:
    path, calibration = chain(tmp_path)
    out = tmp_path / "fp8" / "model.onnx"
    nan = [{"sample": np.full((1, 32), np.nan, np.float32)}]
    for where, calls, config, problem in (
        (path, calibration, EVERYTHING, "model.onnx exists"),
        (out, calibration, Fp8Config(keep=("*",)), "no layer to quantise"),
        (out, replace(calibration, held_out=nan), EVERYTHING, "not finite"),
        (out, Calibration([{"x": np.ones((1, 32))}], calibration.held_out), EVERYTHING, "takes sample, got x"),
    ):
        with pytest.raises(InputError, match=problem):
            quantize(path, where, calls, config)
    path.with_name("model.onnx.data").write_bytes(b"cut off")
    with pytest.raises(InputError, match="weights.* cannot be read"):
        quantize(path, out, calibration, EVERYTHING)
    assert not out.parent.exists() or not list(out.parent.iterdir())
    with pytest.raises(InputError, match="budget must be finite, got inf"):
        Fp8Config(budget=math.inf)
    with pytest.raises(InputError, match="0 calls to set scales and 2 held out"):
        Calibration([], calibration.held_out)


def test_the_tiny_unet_is_quantised_within_its_budget_on_real_sampling(
    tiny_engine: Path, tiny_fused: Path, tmp_path: Path
) -> None:
    bundle = load_bundle(tiny_fused)
    unet = next(graph for graph in graphs(bundle, None, ENGINE_ROWS)[0] if graph.part == "unet")
    scales = sampling_inputs(
        bundle, unet, [("0001", "cam1"), ("0002", "cam3")], [1, 2], Sampling(steps=4, guidance=5.0)
    )
    held_out = sampling_inputs(bundle, unet, [("0003", "cam3")], [3], Sampling(steps=4, guidance=5.0))
    assert len(scales) == 4 and scales[0]["sample"].shape[0] == 4  # a call a step, two rows an image
    timesteps = [int(call["timestep"][0]) for call in scales]
    assert timesteps == sorted(timesteps, reverse=True)
    path = tiny_engine / "unet" / "model.onnx"
    out = tmp_path / "unet" / "model.onnx"
    report = quantize(path, out, Calibration(scales, held_out[::3]), Fp8Config(budget=0.03))

    names = [row.name for row in report.quantised]
    assert 10 < len(names) < len(report.layers) and (report.error_of_all or 0) > 0.03
    assert not [name for name in names if name.startswith(("conv_in", "conv_out", "time_")) or "time_emb" in name]
    assert max(relative_error(out, path, call) for call in held_out[::3]) <= 0.03 * 1.01
    onnx.checker.check_model(str(out), full_check=True)
    model = onnx.load(out, load_external_data=False)
    quantised = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT8E4M3FN]
    assert len([tensor for tensor in quantised if tensor.dims]) == len(names)
    before, after = (file.with_name("model.onnx.data").stat().st_size for file in (path, out))
    assert after < before
