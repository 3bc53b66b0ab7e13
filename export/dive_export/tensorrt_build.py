"""Builds one ONNX graph into one TensorRT plan, in a thread that reports progress and can be stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dive_export import trt_plugin
from dive_export.tensorrt_cache import Plan, fixed_hash, is_weight, timings
from dive_fast.engines import tensorrt_api as trt
from dive_fast.engines.node_runner import read_graph
from dive_fast.io import brief
from dive_fast.types import DiveError

SECONDS_A_LINE = 10.0  # between two lines of progress
Range = tuple[int, int, int]  # smallest, best, largest
Shapes = dict[str, tuple[Range, ...]]  # of an input, by name


@dataclass(frozen=True)
class PartBuild:
    """What to build: `profiles` has, per profile, the range of every dimension of every input.

    `kernels` maps the compiled kernels for `dive::cross_attention` to their hashes; without any, the node's body is built.
    """

    part: str
    graph: Path
    profiles: list[Shapes]
    refittable: bool
    compatibility: str  # a member of HardwareCompatibilityLevel
    target: str | None  # compute capability like "8.9"; None: the GPU here, or the flavour's own choice
    level: int | None
    workspace: int | None  # bytes
    timings: Path
    kernels: dict[str, str] = field(default_factory=dict)


def build_plan(kind: trt.Flavour, module: Any, todo: PartBuild, progress: Callable[[str], None]) -> Plan:
    """Builds a plan. Raises `DiveError` naming part, node and reason if TensorRT refuses the graph.

    A stripped plan is built with REFIT: STRIP_PLAN alone means REFIT_IDENTICAL, which is undefined for other weights.
    """
    log = trt.logger(module)
    # Not in the main thread: Ctrl-C inside TensorRT's call of our logger would be lost.
    with ThreadPoolExecutor(1, thread_name_prefix=f"parse-{todo.part}") as pool:
        builder, network = pool.submit(_network, module, log, todo).result()
    trt.allow_decomposition(module, network)
    names = refit_map(network, todo.graph) if todo.refittable else []
    config = builder_config(module, builder, todo)
    monitor = progress_monitor(module)
    config.progress_monitor = monitor
    log.errors.clear()
    with timings(kind, config, todo.timings, progress):
        data = _in_thread(lambda: builder.build_serialized_network(network, config), monitor, todo.part, progress)
        if data is None:
            raise DiveError(f"build {todo.part}: {kind.name} failed ({trt.first(log.errors)}){_remedy(kind, todo)}")
    return Plan(bytes(data), names, fixed_hash(todo.graph, names) if names else "")


def _network(module: Any, log: Any, todo: PartBuild) -> tuple[Any, Any]:
    builder = module.Builder(log)
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = module.OnnxParser(network, log)
    if todo.kernels:
        trt_plugin.register(module)
        model = trt_plugin.for_plugin(read_graph(todo.graph))
        parsed = parser.parse(model.SerializeToString(), str(todo.graph))  # the path finds the weights
    else:
        parsed = parser.parse_from_file(str(todo.graph))
    if not parsed:
        raise DiveError(f"build {todo.part}: {parse_error(parser, log)}; export the engine again")
    return builder, network


def _remedy(kind: trt.Flavour, todo: PartBuild) -> str:
    gpu, why = trt.find_gpu()
    if todo.refittable and gpu is None:
        return f"; refittable plans need a GPU to build and {why}, build on a machine with one or leave refittable out"
    if todo.kernels:
        return "; if the layer is dive::cross_attention, build without --kernels: the plugin is new"
    return "; the layer is named above, choose another --precision or --variant for the export"


def parse_error(parser: Any, log: Any) -> str:
    """Describes the parser's first error: the node, its operator and the reason."""
    if not parser.num_errors:
        return f"the parser reports {trt.first(log.errors)}"
    error = parser.get_error(0)
    node = (
        f"node {error.node_name() or error.node()} ({error.node_operator()})" if error.node_operator() else "the graph"
    )
    reason = brief(error.desc())
    return f"{node} is refused, {error.code().name}: {reason if len(reason) > 8 else trt.first(reversed(log.errors))}"


def refit_map(network: Any, graph: Path) -> list[str]:
    """Returns the ONNX weights that a refit can replace: those that the parsed network knows by name.

    Constants that the parser folds (scales of a resize, say) are not among them.
    """
    weights = [tensor.name for tensor in read_graph(graph).graph.initializer if is_weight(tensor)]
    found = [name for name in weights if network.mark_weights_refittable(name)]
    for name in found:  # the query marks them, and marked weights mean REFIT_INDIVIDUAL
        network.unmark_weights_refittable(name)
    return found


def builder_config(module: Any, builder: Any, todo: PartBuild) -> Any:
    """Makes the IBuilderConfig: flags, limits, target and profiles."""
    config = builder.create_builder_config()
    if todo.refittable:
        config.set_flag(module.BuilderFlag.REFIT)
        config.set_flag(module.BuilderFlag.STRIP_PLAN)
    if todo.level is not None:
        config.builder_optimization_level = todo.level
    if todo.workspace is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, todo.workspace)
    if todo.compatibility != "NONE":
        config.hardware_compatibility_level = getattr(module.HardwareCompatibilityLevel, todo.compatibility)
    if todo.target is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(module.ComputeCapability, f"SM{todo.target.replace('.', '')}"), 0)
    for shapes in todo.profiles:
        profile = builder.create_optimization_profile()
        for name, dimensions in shapes.items():
            profile.set_shape(name, *zip(*dimensions, strict=True))
        if config.add_optimization_profile(profile) < 0:
            raise DiveError(f"build {todo.part}: TensorRT refuses the profile {shapes}; choose other row counts")
    return config


def progress_monitor(module: Any) -> Any:
    """Makes an IProgressMonitor that counts steps for `_in_thread`, and ends the build once `stop` is set.

    TensorRT calls it from its own threads, so it neither prints nor raises.
    """

    class Monitor(module.IProgressMonitor):
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.stop = threading.Event()
            self.started = time.monotonic()
            self.steps = 0
            self.phases: dict[str, tuple[int, int]] = {}  # running ones, outermost first: steps done, of

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases[phase_name] = (0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.steps += 1
            self.phases[phase_name] = (step + 1, self.phases.get(phase_name, (0, step + 1))[1])
            return not self.stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self.phases.pop(phase_name, None)

        def line(self) -> str:
            seconds = time.monotonic() - self.started
            running = [f"{name} {done} of {steps}" for name, (done, steps) in list(self.phases.items())[-2:]]
            return f"{', '.join(running) or 'starting'} ({self.steps / seconds:.0f} steps/s, {seconds:.0f} s)"

    return Monitor()


def _in_thread(build: Callable[[], Any], monitor: Any, part: str, progress: Callable[[str], None]) -> Any:
    """Runs `build` in a thread, with lines of progress.

    In the main thread, Ctrl-C would wait for the build's end; here it stops at TensorRT's next step.
    """
    with ThreadPoolExecutor(1, thread_name_prefix=f"build-{part}") as pool:
        future = pool.submit(build)
        try:
            while not wait([future], timeout=SECONDS_A_LINE).done:
                progress(f"build {part}: {monitor.line()}")
            return future.result()
        finally:
            monitor.stop.set()
