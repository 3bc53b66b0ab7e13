"""A stand-in for the `tensorrt` module that keeps the rules of its API and runs plans on a CPU.

The rules are those of the docstrings in tensorrt_cu13_bindings 11.4.0 and tensorrt_rtx 1.7.1: a plan is for one version
and GPU, profiles bound every free dimension, shapes and addresses are set before a call is enqueued, a stripped engine
needs all its weights, a call is enqueued once before its capture, and a captured call keeps its shapes and addresses.
What breaks a rule is refused as TensorRT refuses it: False or None and a line in the log, or an exception.

A "plan" is JSON that names its ONNX graph, which onnxruntime runs. So these it cannot show: time, streams that really run
beside each other, memory that is freed too early, the 256-byte alignment of device memory, and TensorRT's own numbers.
"""

from __future__ import annotations

import ctypes
import enum
import importlib.metadata
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.helper import tensor_dtype_to_np_dtype

from dive_fast.engines import tensorrt_api as trt
from dive_fast.engines.tensorrt_net import Lane
from tests.support.engines import edit_spec
from tests.support.graphs import named, reweigh

STREAM = 7
DataType = enum.Enum("DataType", "FLOAT HALF INT64 COMPLEX")
TYPES = {1: DataType.FLOAT, 7: DataType.INT64, 10: DataType.HALF}
TensorIOMode = enum.Enum("TensorIOMode", "INPUT OUTPUT")
Strategy = enum.Enum("Strategy", "STATIC USER_MANAGED")
BuilderFlag = enum.Enum("BuilderFlag", "REFIT STRIP_PLAN VERSION_COMPATIBLE")
Compatibility = enum.Enum("HardwareCompatibilityLevel", "NONE SAME_COMPUTE_CAPABILITY AMPERE_PLUS")
PoolType = enum.Enum("MemoryPoolType", "WORKSPACE")


class Double:
    """The module. `calls` records; `losing` names weights that a refit leaves out; `fails` makes builds return None."""

    DataType, TensorIOMode, BuilderFlag = DataType, TensorIOMode, BuilderFlag
    ExecutionContextAllocationStrategy = Strategy
    HardwareCompatibilityLevel, MemoryPoolType = Compatibility, PoolType
    LayerType = enum.Enum("LayerType", "ATTENTION_INPUT")
    NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", "STRONGLY_TYPED", start=0)
    __name__, __spec__, __version__ = "tensorrt", ModuleSpec("tensorrt", None), "11.4.0"

    class ILogger:
        ERROR, INTERNAL_ERROR = "error", "internal error"

    class IProgressMonitor:
        pass

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.losing: set[str] = set()
        self.fails = False
        self.gpu, self.capability = "", ""

    def count(self, name: str) -> int:
        return sum(call[0] == name for call in self.calls)

    # building

    def Builder(self, log: Any) -> Any:
        def create_network(flags: int) -> Network:
            assert flags == 1 << self.NetworkDefinitionCreationFlag.STRONGLY_TYPED
            return Network()

        return SimpleNamespace(
            create_network=create_network,
            create_builder_config=Config,
            create_optimization_profile=Profile,
            build_serialized_network=lambda network, config: self._build(log, network, config),
        )

    def _build(self, log: Any, network: Network, config: Config) -> bytes | None:
        self.calls.append(("build", network.graph.parent.name, sorted(config.flags), config.timings.known))
        wrong = [line for profile in config.profiles for line in profile.misfits(network.inputs())]
        if wrong or (network.is_dynamic and not config.profiles):
            log.log("error", f"Error Code 4: {wrong or 'Network has dynamic inputs, but no optimization profile'}")
            return None
        if self.fails or not config.progress_monitor.step_complete("Timing tactics", 0):
            log.log("error", "Error Code 10: Could not find any implementation for node conv_in")
            return None
        config.timings.known += b"+"
        plan = {
            "graph": str(network.graph),
            "profiles": [profile.ranges for profile in config.profiles] or [{}],
            "flags": sorted(config.flags),
            "version": self.__version__,
            "gpu": {"NONE": self.gpu, "SAME_COMPUTE_CAPABILITY": self.capability}.get(config.compatibility),
        }
        return json.dumps(plan).encode()

    def OnnxParser(self, network: Network, log: Any) -> Any:
        def parse(path: str) -> bool:
            network.graph = Path(path)
            return network.graph.is_file()

        return SimpleNamespace(parse_from_file=parse, num_errors=0)

    # running

    def Runtime(self, log: Any) -> Any:
        def deserialize(data: bytes) -> Engine | None:
            tag = json.loads(data) if data.startswith(b"{") else {"version": "unknown", "gpu": None}
            if tag["version"] != self.__version__:
                log.log(
                    "error",
                    "Error Code 6: The engine plan file is not compatible with this version of TensorRT, expecting "
                    f"library version {self.__version__} got {tag['version']}, please rebuild.",
                )
                return None
            if tag["gpu"] not in (None, self.gpu, self.capability):
                log.log("error", f"Error Code 6: The engine was generated on {tag['gpu']}, here is {self.gpu}")
                return None
            return Engine(self, tag, log)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)

    def Refitter(self, engine: Engine, log: Any) -> Any:
        if not engine.refittable:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        every, given = weight_names(engine.graph), set[str]()

        def missing() -> list[str]:
            """The weights of an engine are combined in ways that it does not tell: with one, all are needed."""
            return sorted(set(every) - given) if given else []

        def apply() -> bool:
            self.calls.append(("refit_cuda_engine", len(given)))
            if missing() or not given:
                log.log("error", f"Error Code 3: {len(missing())} weights are missing")
                return False
            engine.graph, engine.has_weights = source, True
            return True

        def load(path: str) -> bool:
            nonlocal source
            source = Path(path)
            given.update(set(weight_names(source)) & set(every) - self.losing)
            return source.is_file()

        source = engine.graph
        return SimpleNamespace(
            load=load,
            get_all_weights=lambda: every,
            get_missing_weights=missing,
            get_named_weights=lambda name: SimpleNamespace(size=int(name in given)),  # null weights have none
            refit_cuda_engine=apply,
        )

    def OnnxParserRefitter(self, refitter: Any, log: Any) -> Any:
        return SimpleNamespace(refit_from_file=refitter.load, num_errors=0)


@cache
def model(path: Path) -> Any:
    return onnx.load(path, load_external_data=False)


def weight_names(path: Path) -> list[str]:
    return [tensor.name for tensor in model(path).graph.initializer if tensor.data_type in (1, 10)]


def sizes(value: Any) -> list[int]:
    """-1 for a free dimension."""
    return [d.dim_value or -1 for d in value.type.tensor_type.shape.dim]


class Network:
    num_layers = 0
    graph = Path()

    def inputs(self) -> dict[str, list[int]]:
        return {value.name: sizes(value) for value in model(self.graph).graph.input}

    @property
    def is_dynamic(self) -> bool:
        return any(-1 in shape for shape in self.inputs().values())

    def mark_weights_refittable(self, name: str) -> bool:
        return name in weight_names(self.graph)

    def unmark_weights_refittable(self, name: str) -> bool:
        return name in weight_names(self.graph)


class Config:
    def __init__(self) -> None:
        self.flags: set[str] = set()
        self.profiles: list[Profile] = []
        self.progress_monitor: Any = None
        self.timings = TimingCache(b"")
        self.hardware_compatibility_level = Compatibility.NONE

    @property
    def compatibility(self) -> str:
        return self.hardware_compatibility_level.name

    def set_flag(self, flag: Any) -> None:
        assert isinstance(flag, BuilderFlag)
        self.flags.add(flag.name)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        assert isinstance(pool, PoolType) and size > 0

    def add_optimization_profile(self, profile: Profile) -> int:
        if not all(0 <= a <= b <= c for shapes in profile.ranges.values() for a, b, c in zip(*shapes, strict=True)):
            return -1
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


class Profile:
    def __init__(self) -> None:
        self.ranges: dict[str, Any] = {}

    def set_shape(self, name: str, low: Any, best: Any, most: Any) -> None:
        if not len(low) == len(best) == len(most):
            raise ValueError(f"{name}: ranks of min, opt and max differ")
        self.ranges[name] = [low, best, most]

    def misfits(self, inputs: dict[str, list[int]]) -> Iterator[str]:
        """Every rule of `set_shape` that the whole network shows to be broken."""
        for name, real in inputs.items():
            shapes = self.ranges.get(name, [] if -1 in real else [real])
            if not shapes:
                yield f"dynamic input {name} is missing dimensions in a profile"
            for shape in shapes:
                if len(shape) != len(real) or any(n not in (-1, m) for n, m in zip(real, shape, strict=True)):
                    yield f"{name} is {real}, the profile has {shape}"
        yield from (f"{name} is no input" for name in set(self.ranges) - set(inputs))


class Engine:
    def __init__(self, module: Double, plan: dict[str, Any], log: Any) -> None:
        self.module, self.ranges, self.log = module, plan["profiles"], log
        self.graph = Path(plan["graph"])
        self.refittable, self.has_weights = "REFIT" in plan["flags"], "STRIP_PLAN" not in plan["flags"]
        graph = model(self.graph).graph
        self.values = {value.name: value for value in (*graph.input, *graph.output)}
        self.inputs = [value.name for value in graph.input]
        self.num_io_tensors = len(self.values)
        self.num_optimization_profiles = len(self.ranges)

    def get_tensor_name(self, i: int) -> str:
        return list(self.values)[i]

    def get_tensor_dtype(self, name: str) -> DataType:
        return TYPES[self.values[name].type.tensor_type.elem_type]

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> list[int]:
        return sizes(self.values[name])

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        return self.ranges[index][name]

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        return 100 * (index + 1)

    @property
    def device_memory_size_v2(self) -> int:
        return max(map(self.get_device_memory_size_for_profile_v2, range(len(self.ranges))))

    def create_execution_context(self, strategy: Any) -> Context:
        assert strategy is Strategy.USER_MANAGED, "with any other one TensorRT allocates memory itself"
        self.module.calls.append(("create_execution_context", strategy.name))
        return Context(self)

    def array(self, name: str, shape: tuple[int, ...], address: int) -> np.ndarray:
        dtype = np.dtype(tensor_dtype_to_np_dtype(self.values[name].type.tensor_type.elem_type))
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)

    def run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        feeds = {name: self.array(name, shapes[name], addresses[name]) for name in self.inputs}
        outputs = [name for name in self.values if name not in self.inputs]
        for name, answer in zip(outputs, session(self.graph).run(outputs, feeds), strict=True):
            self.array(name, answer.shape, addresses[name])[...] = answer


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.profile = -1
        self.memory = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.deferred = True  # updates of shapes that the next call applies

    def _note(self, *call: Any) -> None:
        self.engine.module.calls.append(call)

    def _refuse(self, why: str) -> bool:
        self.engine.log.log("error", f"Error Code 3: API Usage Error ({why})")
        return False

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._note("profile", index, stream)
        if not 0 <= index < len(self.engine.ranges):
            return self._refuse(f"profile {index}")
        self.profile, self.deferred = index, True
        fixed = {name: self.engine.get_tensor_shape(name) for name in self.engine.inputs}
        self.shapes = {name: tuple(shape) for name, shape in fixed.items() if -1 not in shape}
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        assert address and size >= self.engine.device_memory_size_v2
        self.memory = size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if not isinstance(shape, (tuple, list)) or not all(isinstance(n, int) for n in shape):
            raise TypeError("set_input_shape(): incompatible function arguments")
        self._note("shape", name, shape)
        if name not in self.engine.inputs or self.profile < 0:
            return self._refuse(f"{name} is no input, or no profile is set")
        fixed = self.engine.get_tensor_shape(name)
        low, _, most = self.engine.ranges[self.profile].get(name, [fixed] * 3)
        if len(shape) != len(low) or not all(a <= n <= b for a, n, b in zip(low, shape, most, strict=True)):
            return self._refuse(f"{name} {shape} is outside of profile {self.profile}, {low} to {most}")
        self.shapes[name], self.deferred = shape, True
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Of an output: free dimensions are -1 until every input's shape is set."""
        if name in self.engine.inputs or set(self.engine.inputs) - set(self.shapes):
            return self.shapes.get(name, tuple(self.engine.get_tensor_shape(name)))
        kinds = {n: self.engine.values[n].type.tensor_type.elem_type for n in self.shapes}
        zeros = {n: np.zeros(self.shapes[n], tensor_dtype_to_np_dtype(kind)) for n, kind in kinds.items()}
        (answer,) = session(self.engine.graph).run([name], zeros)
        return tuple(answer.shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        if not isinstance(address, int):
            raise TypeError("set_tensor_address(): incompatible function arguments")
        self._note("address", name)
        if name not in self.engine.values:
            return self._refuse(f"{name} is no tensor of the engine")
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        captured = LaneDouble.recording is not None
        self._note("capture" if captured else "execute", self.profile, stream)
        assert LaneDouble.turns and stream == STREAM, "enqueued on a stream whose turn it is not"
        unset = [name for name in self.engine.inputs if name not in self.shapes]
        unset += [name for name in self.engine.values if not self.addresses.get(name)]
        if unset or not self.memory or not self.engine.has_weights:
            return self._refuse(f"not set: {unset}, memory {self.memory}, weights {self.engine.has_weights}")
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        if LaneDouble.recording is not None:
            if self.deferred:
                return self._refuse("updates are deferred to a call, which has to be enqueued before the capture")
            LaneDouble.recording.append(lambda: self._replay(shapes, addresses))
            return True
        self.deferred = False
        self.engine.run(shapes, addresses)
        return True

    def _replay(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        self._note("replay")
        self.engine.run(shapes, addresses)


@cache
def session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class LaneDouble(Lane):
    """One stream: work is done when it is enqueued. While a capture records, nothing runs; a replay runs what it holds."""

    turns = 0
    recording: list[Callable[[], None]] | None = None

    def __init__(self) -> None:
        self.captured = 0

    @contextmanager
    def turn(self) -> Any:
        LaneDouble.turns += 1
        try:
            yield STREAM
        finally:
            LaneDouble.turns -= 1

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        assert LaneDouble.turns and LaneDouble.recording is None
        self.captured += 1
        LaneDouble.recording = calls = []
        try:
            work()
        finally:
            LaneDouble.recording = None

        def replay() -> None:
            assert LaneDouble.turns
            for call in calls:
                call()

        return replay


def install(monkeypatch: Any, module: Double, name: str = "NVIDIA Double", capability: str = "9.0") -> None:
    """Makes `module` the installed tensorrt of a machine with a GPU of that name."""
    version = importlib.metadata.version
    module.gpu, module.capability = name, capability
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: module.__version__ if name == "tensorrt" else version(name)
    )
    monkeypatch.setattr(trt, "find_gpu", lambda: (trt.Gpu(name, capability), ""))


def retrained(folder: Path, out: Path, scale: float = 1.5, only: str = "") -> Path:
    """A copy of an exported folder as another adapter would give it: float weights of two axes or more times `scale`.

    `only` names the one initializer to change instead, of whatever type.
    """
    shutil.copytree(folder, out)
    for path in out.glob("*/model.onnx"):
        chosen = named(only) if only else lambda tensor: tensor.data_type in (1, 10) and len(tensor.dims) > 1
        reweigh(path, chosen, lambda values: values * scale)
    edit_spec(out, lambda spec: spec.update(model_fingerprint="0" * 64), rehash=True)
    return out


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Double:
    """The stand-in, installed in TensorRT's place."""
    module = Double()
    install(monkeypatch, module)
    return module
