"""A stand-in for the `tensorrt` module: keeps the rules that its documentation gives, and runs plans on a CPU.

A "plan" is JSON that names its ONNX graph; a context reads its inputs from the addresses that it was told, runs the graph
by onnxruntime and writes to the output's address. So numbers come out right only when shapes, addresses, padding and
profiles are. Every call that matters is recorded in `calls`. It knows nothing of streams or of time.
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.helper import tensor_dtype_to_np_dtype

STREAM = 7
DataType = enum.Enum("DataType", "FLOAT HALF INT64 COMPLEX")
TYPES = {1: DataType.FLOAT, 7: DataType.INT64, 10: DataType.HALF}
TensorIOMode = enum.Enum("TensorIOMode", "INPUT OUTPUT")
Strategy = enum.Enum("Strategy", "STATIC USER_MANAGED")
BuilderFlag = enum.Enum("BuilderFlag", "REFIT STRIP_PLAN VERSION_COMPATIBLE")


class Double:
    """The module. `calls` records; `losing` names weights that a refit leaves out; `fails` makes builds return None."""

    DataType, TensorIOMode, BuilderFlag = DataType, TensorIOMode, BuilderFlag
    ExecutionContextAllocationStrategy = Strategy
    HardwareCompatibilityLevel = enum.Enum("HardwareCompatibilityLevel", "NONE SAME_COMPUTE_CAPABILITY AMPERE_PLUS")
    MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")
    LayerType = enum.Enum("LayerType", "ATTENTION_INPUT")
    NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", "STRONGLY_TYPED", start=0)

    class ILogger:
        ERROR, INTERNAL_ERROR = "error", "internal error"

    class IProgressMonitor:
        pass

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.losing: set[str] = set()
        self.fails = False

    def count(self, name: str) -> int:
        return sum(call[0] == name for call in self.calls)

    # building

    def Builder(self, log: Any) -> Any:
        return SimpleNamespace(
            create_network=lambda flags: Network(),
            create_builder_config=Config,
            create_optimization_profile=ProfileDouble,
            build_serialized_network=lambda network, config: self._build(log, network, config),
        )

    def _build(self, log: Any, network: Network, config: Config) -> bytes | None:
        self.calls.append(("build", network.graph.parent.name, sorted(config.flags), config.timings.known))
        if self.fails or not config.progress_monitor.step_complete("Timing tactics", 0):
            log.log("error", "Error Code 10: Could not find any implementation for node conv_in")
            return None
        config.timings.known += b"+"
        stripped = "STRIP_PLAN" in config.flags
        return plan(network.graph, [profile.ranges for profile in config.profiles], stripped)

    def OnnxParser(self, network: Network, log: Any) -> Any:
        def parse(path: str) -> bool:
            network.graph = Path(path)
            return True

        return SimpleNamespace(parse_from_file=parse, num_errors=0)

    # running

    def Runtime(self, log: Any) -> Any:
        def deserialize(data: bytes) -> Engine | None:
            if not data.startswith(b"{"):
                log.log("error", "Error Code 6: the engine plan file is not compatible")
                return None
            return Engine(self, json.loads(data))

        return SimpleNamespace(deserialize_cuda_engine=deserialize)

    def Refitter(self, engine: Engine, log: Any) -> Any:
        def apply() -> bool:
            self.calls.append(("refit_cuda_engine", len(engine.pending)))
            engine.graph = engine.source
            return True

        every = weight_names(engine.graph)
        return SimpleNamespace(
            engine=engine,
            get_all_weights=lambda: every,
            get_missing_weights=lambda: [],
            get_named_weights=lambda name: SimpleNamespace(size=int(name in engine.pending)),
            refit_cuda_engine=apply,
        )

    def OnnxParserRefitter(self, refitter: Any, log: Any) -> Any:
        def load(path: str) -> bool:
            refitter.engine.source = Path(path)
            refitter.engine.pending = set(weight_names(Path(path))) - self.losing
            return True

        return SimpleNamespace(refit_from_file=load, num_errors=0)


def plan(graph: Path, profiles: list[dict[str, Any]], stripped: bool = False) -> bytes:
    return json.dumps({"graph": str(graph), "profiles": profiles, "stripped": stripped}).encode()


@cache
def model(path: Path) -> Any:
    return onnx.load(path, load_external_data=False)


def weight_names(path: Path) -> list[str]:
    return [tensor.name for tensor in model(path).graph.initializer if tensor.data_type in (1, 10)]


class Network:
    num_layers = 0
    graph = Path()

    def mark_weights_refittable(self, name: str) -> bool:
        return name in weight_names(self.graph)

    def unmark_weights_refittable(self, name: str) -> bool:
        return True


class Config:
    def __init__(self) -> None:
        self.flags: set[str] = set()
        self.profiles: list[ProfileDouble] = []
        self.progress_monitor: Any = None
        self.timings = TimingCache(b"")

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        assert pool.name == "WORKSPACE" and size > 0

    def add_optimization_profile(self, profile: ProfileDouble) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, known: bytes) -> TimingCache | None:
        return None if known.startswith(b"broken") else TimingCache(known)

    def set_timing_cache(self, timings: TimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.timings = timings
        return True


class TimingCache:
    def __init__(self, known: bytes) -> None:
        self.known = known

    def serialize(self) -> bytes:
        return self.known


class ProfileDouble:
    def __init__(self) -> None:
        self.ranges: dict[str, Any] = {}

    def set_shape(self, name: str, low: Any, best: Any, most: Any) -> None:
        self.ranges[name] = [low, best, most]


class Engine:
    def __init__(self, module: Double, data: dict[str, Any]) -> None:
        self.module, self.ranges = module, data["profiles"]
        self.graph = Path(data["graph"])
        self.has_weights = not data["stripped"]
        self.source, self.pending = self.graph, set[str]()
        graph = model(self.graph).graph
        self.values = {value.name: value.type.tensor_type for value in (*graph.input, *graph.output)}
        self.inputs = [value.name for value in graph.input]
        self.num_io_tensors = len(self.values)
        self.num_optimization_profiles = len(self.ranges)

    def get_tensor_name(self, i: int) -> str:
        return list(self.values)[i]

    def get_tensor_dtype(self, name: str) -> DataType:
        return TYPES[self.values[name].elem_type]

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> list[int]:
        return [d.dim_value or -1 for d in self.values[name].shape.dim]

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        return self.ranges[index][name]

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        return 100 * (index + 1)

    def create_execution_context(self, strategy: Any) -> Context:
        self.module.calls.append(("create_execution_context", strategy.name))
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.profile = -1
        self.memory = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def _note(self, *call: Any) -> None:
        self.engine.module.calls.append(call)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._note("profile", index, stream)
        self.profile = index
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        assert address
        self.memory = size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        fixed = self.engine.get_tensor_shape(name)
        low, _, most = self.engine.ranges[self.profile].get(name, [fixed] * 3)
        assert len(shape) == len(low) and all(a <= n <= b for a, n, b in zip(low, shape, most, strict=True)), (
            name,
            shape,
        )
        self._note("shape", name, shape)
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Of an output, which only a run tells."""
        zeros = {n: np.zeros(shape, self._dtype(n)) for n, shape in self.shapes.items()}
        (answer,) = session(self.engine.source).run([name], zeros)
        return tuple(answer.shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._note("address", name)
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self._note("execute", self.profile, stream)
        assert self.memory >= self.engine.get_device_memory_size_for_profile_v2(self.profile)
        assert self.engine.has_weights or (self.engine.source.is_file() and self.engine.pending), "no weights"
        feeds = {name: self._array(name, self.shapes[name]) for name in self.engine.inputs}
        outputs = [name for name in self.engine.values if name not in self.engine.inputs]
        for name, answer in zip(outputs, session(self.engine.graph).run(outputs, feeds), strict=True):
            self._array(name, answer.shape)[...] = answer
        return True

    def _dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(tensor_dtype_to_np_dtype(self.engine.values[name].elem_type))

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        dtype = self._dtype(name)
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(self.addresses[name]), dtype).reshape(shape)


@cache
def session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class LaneDouble:
    """No stream: work is done when it is enqueued."""

    def __init__(self) -> None:
        self.captured = 0

    @contextmanager
    def turn(self) -> Any:
        yield STREAM

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1
        return work


def install(monkeypatch: Any, module: Double, name: str = "NVIDIA Double", capability: str = "9.0") -> None:
    """Makes `module` the installed tensorrt 11.4.0 of a machine with a GPU of that name."""
    from dive_fast.engines import tensorrt_api as trt

    monkeypatch.setattr(trt, "reasons", lambda kind: [])
    monkeypatch.setattr(trt, "version", lambda kind: "11.4.0")
    monkeypatch.setattr(trt, "load", lambda kind: module)
    monkeypatch.setattr(trt, "find_gpu", lambda: (trt.Gpu(name, capability), ""))


def retrained(folder: Path, out: Path, scale: float = 1.5, only: str = "") -> Path:
    """A copy of an exported folder as another adapter would give it: float weights of two axes or more times `scale`.

    `only` names the one initializer to change instead, of whatever type.
    """
    import shutil

    from dive_fast.io import sha256_file

    shutil.copytree(folder, out)
    spec = json.loads((out / "engine.json").read_text())
    for path in out.glob("*/model.onnx"):
        changed = onnx.load(path)
        for tensor in changed.graph.initializer:
            if tensor.name == only or (not only and tensor.data_type in (1, 10) and len(tensor.dims) > 1):
                values = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array((values * scale).astype(values.dtype), tensor.name))
        path.with_name("model.onnx.data").unlink(missing_ok=True)
        onnx.save(changed, path, save_as_external_data=True, location="model.onnx.data")
        for file in path.parent.glob("model.onnx*"):
            spec["sha256"][file.relative_to(out).as_posix()] = sha256_file(file)
    spec["model_fingerprint"] = "0" * 64
    (out / "engine.json").write_text(json.dumps(spec))
    return out


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Double:
    """The stand-in, installed in TensorRT's place."""
    module = Double()
    install(monkeypatch, module)
    return module
