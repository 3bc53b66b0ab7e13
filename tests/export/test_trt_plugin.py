"""TensorRT's plugin for `dive::cross_attention` as far as it goes without a GPU: its PTX assembled for every architecture,
what TensorRT is told against what torch would launch, registration, and the builder around it (against stand-ins)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch

from dive_export import GraphOptions, export_engine, tensorrt_job, trt_plugin
from dive_export.fp8_engine import exported_graphs
from dive_export.kernel_node import NodeUnetGraph, attributes, kernel_nodes
from dive_export.onnx import measure_parity
from dive_export.tensorrt import BuildConfig, build_engine, dry_run, refit_engine
from dive_export.tensorrt_build import PartBuild, build_plan
from dive_export.tensorrt_job import Build
from dive_export.tensorrt_ptx import View, repassed
from dive_export.trt_plugin import Site, call_of, for_plugin, register, sites
from dive_fast.engines import tensorrt_api as trt
from dive_fast.engines.node_runner import read_graph
from dive_fast.engines.tensorrt_net import Lane, Net
from dive_fast.types import DiveError, EngineSpec, InputError
from dive_fast.unet.optimizations import OPTIMIZATIONS
from dive_kernels import package
from tests.support import tensorrt_plugin_double
from tests.support.kernel_cases import assert_as_good_as_torch
from tests.support.kernel_nodes import attended, one_node
from tests.support.tensorrt_double import Double, Network, install, retrained
from tests.support.tensorrt_engines import quiet, rtx_parser
from tests.support.tensorrt_plugin_double import DataType, TensorDesc
from tests.support.tiny import ENGINE_ROWS

pytestmark = pytest.mark.slow

Building = Callable[..., EngineSpec]
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
HALF = torch.float16
# Stable Diffusion 1.5 at 512x256: its first, second and deepest cross-attention of a bank of 12,480 columns
SITES = {
    "d=40": Site(HALF, 8, 0, 2048, 320, 77, 12480),
    "d=80": Site(HALF, 8, 640, 512, 640, 77, 12480),
    "d=160": Site(HALF, 8, 1920, 32, 1280, 77, 12480),
}


def compiled(out: Path, launches: list[tuple[Any, int]]) -> Path:
    """A folder of kernels as `make kernels` makes it, of these launches for these architectures, with PTX."""
    pytest.importorskip("triton", reason="triton is not installed: make kernels")
    from dive_kernels.aot.examples import Example
    from dive_kernels.aot.triton_kernels import compile_job

    out.mkdir(parents=True, exist_ok=True)
    kernels = []
    for i, (launch, architecture) in enumerate(launches):
        example = Example("cross_attention", "fp16", [launch], {"number": i}, ptx=True)
        kernels += [compile_job(job, out) for job in example.jobs(architecture)]
    package.write(package.Package(out, tuple(kernels), ()))
    return out


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> package.Package:
    """d=40 for every architecture, the other head dims for 9.0."""
    wanted = [(SITES["d=40"].launch(36, 1, capability), capability) for capability in ARCHITECTURES]
    wanted += [(SITES[name].launch(36, 1, 90), 90) for name in ("d=80", "d=160")]
    return package.read(compiled(tmp_path_factory.mktemp("kernels") / "cubins", wanted))


@pytest.fixture
def sd15(kernels: package.Package, monkeypatch: pytest.MonkeyPatch) -> package.Package:
    """`kernels` as those of this installation, whose GPU has compute capability 9.0."""
    monkeypatch.setenv(package.FOLDER, str(kernels.folder))
    monkeypatch.setattr(trt, "find_gpu", lambda: (trt.Gpu("NVIDIA Double", "9.0"), ""))
    return kernels


# PTX


def assembled(ptx: str, file: Path) -> tuple[int, int]:
    """Registers and spilled bytes that the assembler reports; it fails the test where it does not take the text."""
    from dive_kernels.aot.triton_kernels import resources

    triton = pytest.importorskip("triton")
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert target is not None
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    tool = tools / ("ptxas-blackwell" if target[1] >= "sm_100" and len(target[1]) > 5 else "ptxas")
    file.write_text(ptx)
    command = [str(tool if tool.is_file() else tools / "ptxas"), "-v", f"--gpu-name={target[1]}", str(file)]
    run = subprocess.run([*command, "-o", f"{file}.cubin"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return resources(run.stderr)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_plugins_ptx_assembles_and_takes_no_more_registers(
    kernels: package.Package, architecture: int, tmp_path: Path
) -> None:
    call = call_of(SITES["d=40"], 36, architecture, kernels)
    assert call.kernel.architecture == architecture and call.kernel.ptx is not None
    registers, spills = assembled(call.ptx(kernels), tmp_path / "plugin.ptx")
    before, _ = assembled(kernels.read(call.kernel.ptx).decode(), tmp_path / "triton.ptx")
    assert registers <= before and spills == 0


def parameters(ptx: str) -> list[str]:
    found = re.search(r"\.entry \w+\(([^)]*)\)", ptx)
    assert found is not None
    return [text.split()[-1] for text in found[1].split(",")]


def loaded(ptx: str, given: dict[str, int]) -> dict[str, int]:
    """The registers that parameters are loaded to, by a machine that knows what the views' addresses are made with."""
    registers: dict[str, int] = {}
    for line in ptx.splitlines():
        words = re.findall(r"[%$.\w]+", line.split("//")[0])
        if words[:1] and words[0].startswith("ld.param."):
            registers[words[1]] = given[words[2]]
        elif words[:1] == ["mul.wide.s32"] and words[1].startswith("%view"):
            registers[words[1]] = registers[words[2]] * int(words[3])
        elif words[:1] == ["add.s64"] and words[-1].startswith("%view"):
            registers[words[1]] = registers[words[2]] + registers[words[3]]
    return {name: value for name, value in registers.items() if not name.startswith("%view")}


def test_the_plugins_parameters_reach_the_registers_that_tritons_reached(kernels: package.Package) -> None:
    """Inputs, integers, output, with addresses and sizes made up; Triton's kernel gets the views' own addresses."""
    site = SITES["d=160"]
    call = call_of(site, 36, 90, kernels)
    assert call.kernel.ptx is not None
    written, passed = kernels.read(call.kernel.ptx).decode(), call.ptx(kernels)
    address = {"query_ptr": 1 << 40, "kv_bank": 1 << 41, "prompt_index_ptr": 1 << 42, "out_ptr": 1 << 43}
    numbers = {name: 64 if value is None else value for name, value in call.scalars.items()}
    views = {
        name: address["kv_bank"] + 2 * site.starts[start]
        for name, start in (("key_ptr", "key_start"), ("value_ptr", "value_start"))
    }
    everything = {**address, **views, **numbers}
    tritons = [everything[name] for name, _ in call.kernel.arguments] + [0] * call.kernel.null_pointers
    ours = [everything[name] for name in (*trt_plugin.INPUTS, *call.scalars, trt_plugin.OUTPUT)]
    expected = loaded(written, dict(zip(parameters(written), tritons, strict=True)))
    assert len(expected) == len(call.kernel.arguments)
    assert loaded(passed, dict(zip(parameters(passed), ours, strict=True))) == expected
    assert all(f"[{text}]" in passed for text in parameters(passed))  # no idle one


SMALL = """
.visible .entry k(
	.param .u64 .ptr .global .align 1 k_param_0,
	.param .u32 k_param_1,
	.param .u64 .ptr .global .align 1 k_param_2
)
{
	ld.param.b64 	%rd1, [k_param_0];
	ld.param.b32 	%r1, [k_param_1];
	ret;
}
"""


A_N = [("a", "*fp16"), ("n", "i32")]


@pytest.mark.parametrize(
    ("change", "arguments", "passed", "message"),
    [
        (("", ""), [("a", "*fp16"), ("n", "fp32")], ["t", "s", "n"], "n as fp32"),
        (("", ""), [("a", "*fp16"), ("n", "*i64")], ["t", "s", "n"], r"k_param_1 has 32 bits.* n, \*i64"),
        (("[k_param_1]", "[k_param_2]"), A_N, ["t", "s", "n"], "reads k_param_2"),
        (("[k_param_0]", "[k_param_0+0]"), A_N, ["t", "s", "n"], "k_param_0 is read"),
        (("", ""), A_N, ["t", "n"], "passed t, n"),
        ((".entry", ".func"), [], [], "exactly one kernel"),
        (("", ""), [("a", "*fp16")] * 4, ["t", "s"], "3 parameters, its arguments are 4"),
    ],
)
def test_ptx_of_another_form_is_refused_not_guessed(
    change: tuple[str, str], arguments: list[tuple[str, str]], passed: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        repassed(SMALL.replace(*change) if change[0] else SMALL, arguments, {"a": View("t", "s")}, passed)


# What TensorRT is told


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize(("rows", "prompts"), [(36, 18), (144, 1024), (1, 1)])
def test_the_call_is_the_launch_that_torch_makes(kernels: package.Package, name: str, rows: int, prompts: int) -> None:
    site = SITES[name]
    launch = site.launch(rows, prompts, 90)
    call = call_of(site, rows, 90, kernels)
    assert (call.kernel.function, call.threads) == ("cross_attention_kernel", 32 * launch.warps)
    assert (call.programs_a_row * rows,) == launch.grid
    assert call.shared_bytes == kernels.find(launch.identity, 90).shared_bytes  # type: ignore[union-attr]
    told = {name: prompts if value is None else value for name, value in call.scalars.items()}
    integers = {name: value for name, value in launch.arguments.items() if isinstance(value, int)}
    assert told == {**integers, **site.starts}
    bank = torch.empty(prompts, 2, site.keys, site.width, device="meta")
    key, value = (bank[:, side, :, site.start : site.start + site.channels] for side in (0, 1))
    assert (key.storage_offset(), value.storage_offset()) == tuple(site.starts.values())


def test_a_plan_for_many_rows_is_right_for_fewer(kernels: package.Package) -> None:
    """A profile's rows are its largest: with them the kernel takes several tiles a program, however few rows come."""
    site = SITES["d=40"]
    call = call_of(site, 144, 90, kernels)
    steps, block = call.scalars["steps"], call.kernel.constants["BLOCK"]
    assert steps is not None and steps > 1 and isinstance(block, int)
    assert call.programs_a_row == site.heads * -(-site.tokens // (block * steps))


@pytest.mark.parametrize(
    ("site", "architecture", "reason"),
    [
        (replace(SITES["d=40"], keys=64), 90, "no PTX of dive_kernels.cross_attention.fused:cross_attention_kernel"),
        (replace(SITES["d=40"], dtype=torch.bfloat16), 90, "torch.bfloat16, head dim 40 and 77 keys (make kernels"),
        (replace(SITES["d=40"], start=4), 90, "column 4 is no multiple of 16"),
        (replace(SITES["d=40"], width=12488), 90, "key_token_stride 12488 is no multiple of 16"),
        (SITES["d=80"], 100, "for sm_100, torch.float16, head dim 80"),
    ],
)
def test_what_the_compiled_kernel_does_not_take_is_refused_with_the_reason(
    kernels: package.Package, site: Site, architecture: int, reason: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        call_of(site, 36, architecture, kernels)


# Registration


@pytest.fixture
def trtp(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in for `tensorrt.plugin`, where `register` finds it."""
    made = tensorrt_plugin_double.module()
    monkeypatch.setitem(sys.modules, "tensorrt_double.plugin", made)
    return made


MODULE = SimpleNamespace(__name__="tensorrt_double")


def test_the_plugin_registers_once_and_hands_over_the_kernel(trtp: Any, sd15: package.Package) -> None:
    register(MODULE)
    register(MODULE)  # a second plan of the same process
    definition = trtp.op.dive.cross_attention
    assert definition.tensors == ["query", "kv_bank", "prompt_index"]
    assert definition.attributes == {"heads": int, "start": int}
    site = SITES["d=80"]
    inputs = [
        TensorDesc(DataType.HALF, [("rows", 144), site.tokens, site.channels]),
        TensorDesc(DataType.HALF, [("prompts", 1024), 2, site.keys, site.width]),
        TensorDesc(DataType.INT64, [("rows", 144)]),
    ]
    output = definition.describe(*inputs, site.heads, site.start)
    assert output.dtype == DataType.HALF and list(output.shape) == [-1, site.tokens, site.channels]
    (combination,) = definition.autotune(*inputs, (output,))
    assert combination.types == ["FP16", "FP16", "INT64", "FP16"]
    function, ptx, launch, scalars = definition.launch(inputs, heads=site.heads, start=site.start)
    expected = call_of(site, 144, 90, sd15)
    assert (function, ptx) == ("cross_attention_kernel", expected.ptx(sd15))
    for rows, prompts in ((36, 5), (144, 1024)):
        free = {"rows": rows, "prompts": prompts}
        told = {name: getattr(launch, name).value(free) for name in launch.NAMES}
        sizes = {"grid_x": rows * expected.programs_a_row, "block_x": 128, "shared_mem": expected.shared_bytes}
        assert told == {**dict.fromkeys(launch.NAMES, 1), **sizes}
        values = [scalar.value(free) for scalar in scalars.items]
        assert values == [prompts if value is None else value for value in expected.scalars.values()]


# The builder


class PluginDouble(Double):
    """The stand-in for `tensorrt`, with plugins. `parsed` are the models that came as bytes."""

    __name__ = "tensorrt_double"
    QuickPluginCreationRequest = object()

    def __init__(self) -> None:
        super().__init__()
        self.parsed: list[Any] = []

    def OnnxParser(self, network: Network, log: Any) -> Any:
        parser = super().OnnxParser(network, log)

        def parse(model: bytes, path: str) -> bool:
            self.parsed.append(onnx.load_from_string(model))
            return bool(parser.parse_from_file(path))  # what it runs is the body

        parser.parse = parse
        return parser


@pytest.fixture(scope="module")
def half(tiny_fused: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a whole engine folder with the nodes, in half precision."""
    folder = tmp_path_factory.mktemp("node") / "engine"
    options = GraphOptions("kv-cache", "fp16", kernels=True)
    export_engine(tiny_fused, folder, rows_max=ENGINE_ROWS, check=False, options=options, progress=quiet)
    return folder


@pytest.fixture(scope="module")
def tiny_kernels(half: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kernels for the tiny model's cross-attentions on a GPU of compute capability 9.0."""
    launches = [site.launch(8, 1, 90) for site in sites(read_graph(half / "unet/model.onnx").graph).values()]
    unique = {launch.identity: launch for launch in launches}
    return compiled(tmp_path_factory.mktemp("kernels") / "tiny", [(launch, 90) for launch in unique.values()])


@pytest.fixture
def double(trtp: Any, tiny_kernels: Path, monkeypatch: pytest.MonkeyPatch) -> PluginDouble:
    """The stand-in, installed beside the kernels of the tiny model."""
    monkeypatch.setenv(package.FOLDER, str(tiny_kernels))
    module = PluginDouble()
    install(monkeypatch, module)
    return module


@pytest.fixture
def config(tmp_path: Path) -> BuildConfig:
    return BuildConfig(
        rows=(4, 8), vae_rows=(2,), text_rows=(2,), prompts_max=6, cache=tmp_path / "cache", kernels=True
    )


@pytest.fixture
def build(half: Path, tmp_path: Path, double: PluginDouble, config: BuildConfig) -> Building:
    return lambda name, **changes: build_engine(half, tmp_path / name, replace(config, **changes), quiet)


def test_the_exported_folder_says_so_and_is_within_budget(half: Path, tiny_fused: Path) -> None:
    spec = json.loads((half / "engine.json").read_text())
    assert spec["optimizations"] == [*OPTIMIZATIONS, "kv_gather"]
    *_, parts = exported_graphs(tiny_fused, half)  # as dive-fast quantize finds it again
    assert any(isinstance(module, NodeUnetGraph) for module in parts["unet"].module.modules())
    parity = measure_parity(parts["unet"], half / "unet/model.onnx", "fp16")
    assert 0 < parity.worst <= parity.budget


def test_a_build_takes_the_plugin_names_its_kernels_and_caches_them_apart(
    half: Path, tiny_kernels: Path, tmp_path: Path, trtp: Any, double: PluginDouble, build: Building
) -> None:
    build("plans")
    (model,) = double.parsed
    assert not model.functions and trtp.op.dive.cross_attention
    exported = kernel_nodes(read_graph(half / "unet/model.onnx").graph)
    for node, before in zip(kernel_nodes(model.graph), exported, strict=True):
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        wanted = {name: attributes(before)[name] for name in ("heads", "start")}
        assert given == {**wanted, "plugin_namespace": b"dive", "plugin_version": b"1", "aot": 1}
        assert list(node.input) == list(before.input) and node.op_type == "cross_attention"
    record = json.loads((tmp_path / "plans/build.json").read_text())
    assert record["kernels"] == {"unet": {kernel.name: kernel.build for kernel in package.read(tiny_kernels).kernels}}
    keys = record["keys"]
    build("body", kernels=False)
    other = json.loads((tmp_path / "body/build.json").read_text())
    assert "kernels" not in other and len(double.parsed) == 1  # the file itself was parsed
    assert {part for part in keys if keys[part] != other["keys"][part]} == {"unet"}
    built = double.count("build")
    build("again")
    assert double.count("build") == built


def test_a_refit_keeps_the_kernels_and_names_them(half: Path, tmp_path: Path, build: Building) -> None:
    build("a", refittable=True)
    refit_engine(tmp_path / "a", retrained(half, tmp_path / "other"), tmp_path / "b", quiet)
    names = [json.loads((tmp_path / folder / "build.json").read_text())["kernels"] for folder in "ab"]
    assert names[0] == names[1] and names[0]["unet"]


def test_a_failed_build_tells_of_the_way_without_kernels(tmp_path: Path, double: PluginDouble, build: Building) -> None:
    build("body", kernels=False)  # the other parts' plans
    double.fails = True
    with pytest.raises(DiveError, match="build unet: tensorrt failed .*dive::cross_attention"):
        build("plans")
    assert not (tmp_path / "plans").exists()


def test_everything_that_is_missing_is_told_with_its_remedy(
    half: Path,
    tmp_path: Path,
    double: PluginDouble,
    config: BuildConfig,
    build: Building,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(package.FOLDER, "")
    monkeypatch.delattr(PluginDouble, "QuickPluginCreationRequest")
    with pytest.raises(DiveError, match="11.4.0 has no ahead-of-time Python plugins; .*make kernels"):
        build("plans")
    assert not (tmp_path / "plans").exists() and not double.calls
    missing = dry_run(half, tmp_path / "plans", config).missing
    assert len(missing) == 2
    assert dry_run(half, tmp_path / "plans", replace(config, kernels=False)).missing == ()  # the body needs nothing


def test_kernels_of_other_sizes_are_told_once_for_all_nodes(half: Path, build: Building, sd15: package.Package) -> None:
    with pytest.raises(DiveError, match=r"head dim \d+ and 32 keys .*make kernels") as caught:
        build("plans")
    found = sites(read_graph(half / "unet/model.onnx").graph).values()
    assert str(caught.value).count("has no PTX") == len({site.channels // site.heads for site in found})


def test_a_graph_without_the_nodes_is_refused(build: Building, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_job, "kernel_nodes", lambda graph: [])
    with pytest.raises(InputError, match="--variant kv-cache --kernels"):
        build("plans")


def test_nodes_of_free_sizes_have_no_plugin(half: Path) -> None:
    model = read_graph(half / "unet/model.onnx")
    node = kernel_nodes(model.graph)[0]
    (query,) = (value for value in model.graph.value_info if value.name == node.input[0])
    query.type.tensor_type.shape.dim[1].dim_param = "height*width"
    with pytest.raises(ValueError, match=rf"{node.name} .*height\*width"):
        sites(model.graph)


def test_tensorrt_rtx_builds_through_the_body_and_knows_no_node_without_it(half: Path, tmp_path: Path) -> None:
    """What is parsed for the plugin can be taken for nothing else: without the plugin that is an error."""
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'dive-fast[rtx]'")
    rows = {"rows": (4,), "vae_rows": (2,), "text_rows": (2,)}
    todo = Build.from_export(half, BuildConfig("tensorrt-rtx", **rows, cache=tmp_path / "cache")).parts["unet"]
    assert len(build_plan(trt.RTX, rtx, todo, quiet).data) > 1 << 16

    def parsed(model: Any) -> Any:
        *_, parser = rtx_parser(rtx)
        done = parser.parse(model.SerializeToString(), str(todo.graph))  # as bytes: its weights are found all the same
        return None if done else parser.get_error(0).node_operator()

    assert parsed(read_graph(todo.graph)) is None
    assert parsed(for_plugin(read_graph(todo.graph))) == "cross_attention"


@pytest.mark.gpu
def test_the_plugin_computes_attention_inside_tensorrt(tmp_path: Path) -> None:
    """Written without a GPU and not run yet. Needs tensorrt and `make kernels`."""
    tensorrt = pytest.importorskip("tensorrt", reason="tensorrt is not installed: pip install 'dive-fast[trt]'")
    site, (gpu, _), installed = SITES["d=40"], trt.find_gpu(), trt_plugin.compiled()
    if gpu is None or installed is None:
        pytest.skip("no kernels compiled ahead of time: make kernels")
    path = tmp_path / "model.onnx"
    onnx.save(one_node(onnx.TensorProto.FLOAT16, site.heads, 16, site.channels, 1024, site.tokens, site.keys), path)
    kernel = call_of(replace(site, start=16, width=1024), 6, trt_plugin.capability_of(gpu), installed).kernel
    rows, prompts = (6, 6, 6), (1, 3, 5)
    shapes = {
        "q": (rows, *((n, n, n) for n in (site.tokens, site.channels))),
        "b": (prompts, *((n, n, n) for n in (2, site.keys, 1024))),
        "i": (rows,),
    }
    todo = PartBuild("unet", path, [shapes], False, "NONE", None, None, None, tmp_path / "t", {kernel.name: "1"})
    plan = build_plan(trt.TENSORRT, tensorrt, todo, quiet)
    device = torch.device("cuda", 0)
    engine = trt.open_plan(tensorrt, plan.data, "the plan")
    net = Net(tensorrt, engine, device, Lane(device), "the plan", graphs=False)
    query = torch.randn(6, site.tokens, site.channels, device=device, dtype=HALF)
    bank = torch.randn(5, 2, site.keys, 1024, device=device, dtype=HALF)
    index = torch.tensor([4, 0, 2, 2, 1, 3], device=device)
    scratch = torch.empty(max(net.scratch, 1), dtype=torch.uint8, device=device)
    found = net.run({"q": query, "b": bank, "i": index}, 6, scratch)
    key, value = bank[index][..., 16 : 16 + site.channels].unbind(1)
    plain, exact = (attended(*(x.to(kind) for x in (query, key, value)), site.heads) for kind in (HALF, torch.float64))
    assert_as_good_as_torch(found, plain, exact)
