"""An exported engine folder run by OpenVINO on a CPU: fp32, in bf16 too where the CPU has that, and int8.

OpenVINO reads the graphs of `dive-fast export` as they are, Attention of opset 23 included. With free rows it is slower
than onnxruntime, with fixed ones faster. So each network is compiled once for each shape that it is called with.
"""

from __future__ import annotations

import importlib.util
import platform
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dive_fast.engines.base import Engine
from dive_fast.engines.engine_folder import fit_reasons, parts, read_engine, read_spec
from dive_fast.engines.onnx_engine import OnnxEngine, check_graph, foreign
from dive_fast.engines.onnx_session import ELEMENTS, Network, Place, Value
from dive_fast.engines.registry import EXPORTED, KINDS, OPENVINO, Choice
from dive_fast.io import brief
from dive_fast.types import DiveError, EngineSpec, InputError

BF16 = ("avx512_bf16", "amx_bf16")  # torch's names of the instructions
RUNS = {"fp32": ("fp32", "bf16"), "int8": ("int8",)}  # precision of an export: those that it can run in
TYPES = {"f32": "tensor(float)", "i32": "tensor(int32)", "i64": "tensor(int64)"}
KEPT = 2  # compiled shapes of a network: guidance in an interval alternates between two, and each holds the weights


def wins(folder: Path, device: str, precision: str) -> str:
    """Why `auto` takes OpenVINO for an exported engine, or "" where it takes onnxruntime."""
    measured = platform.machine() in ("x86_64", "AMD64")
    if not measured or importlib.util.find_spec("openvino") is None or OPENVINO.misfits(device, precision):
        return ""
    on_gpu = device == "auto" and torch.cuda.is_available()
    if on_gpu or _reasons(read_spec(folder), Choice(OPENVINO, EXPORTED, "", device, precision=precision)):
        return ""
    return f"the folder holds {KINDS[EXPORTED]}, which openvino ran faster than onnxruntime on an x86 CPU"


def open_openvino(folder: Path, choice: Choice) -> Engine:
    """Opens `folder`; raises `DiveError` with every reason why OpenVINO cannot run it as asked."""
    spec = read_spec(folder)
    reasons = _reasons(spec, choice)
    if importlib.util.find_spec("openvino") is None:
        reasons.append("openvino is not installed: pip install 'dive-fast[openvino]'")
    choice.refuse(folder, reasons)
    precision = _precision(spec, choice)
    files = read_engine(folder, replace(spec, backend=OPENVINO.name, precision=precision)).resized(choice.size)
    settings = _settings(precision, choice.threads, choice.cache and choice.cache / files.fingerprint[:16])
    networks = {}
    for part in parts(files.spec):
        path = folder / spec.files[part]
        check_graph(files, path)
        networks[part] = OpenvinoNetwork.read(path, settings)
    chosen = f"{choice.why}, device: {'the only one' if choice.device == 'auto' else 'asked for'}"
    engine = OnnxEngine(files, networks, chosen, choice.check_finite)
    engine.runs_on = "CPU"
    return engine


def _reasons(spec: EngineSpec, choice: Choice) -> list[str]:
    """What of the folder and of this CPU speaks against `choice`; not what the backend's row says."""
    reasons = foreign(spec) + fit_reasons(spec, replace(choice, precision="auto"))
    if _precision(spec, choice) not in RUNS.get(spec.precision, ()):
        reasons.append(
            f"precision {_precision(spec, choice)}: the engine is {spec.precision}; openvino runs fp32 exports, in fp32 "
            "or bf16, and int8 ones (dive-fast quantize --to int8)"
        )
    if "kv_gather" in spec.optimizations:
        reasons.append("openvino does not read our kernel's node, export without --kernels")
    if choice.precision == "bf16" and not bf16_here():
        reasons.append(f"precision bf16: this CPU has neither {' nor '.join(BF16)}, use fp32")
    if choice.graphs:
        reasons.append("graphs: they are CUDA graphs, openvino runs on a CPU")
    return reasons


def _precision(spec: EngineSpec, choice: Choice) -> str:
    return spec.precision if choice.precision == "auto" else choice.precision


def bf16_here() -> bool:
    """Whether this CPU computes in bf16 faster than in fp32."""
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in BF16)


def _settings(precision: str, threads: int | None, cache: Path | None) -> dict[str, Any]:
    """What networks are compiled with. Threads are not pinned, as processes side by side would share the same cores."""
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",  # by default bf16 where it can
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    if cache is None:
        return settings
    # Not mapped into memory: another process may write a damaged file of the cache again.
    return {**settings, "CACHE_DIR": str(cache), "ENABLE_MMAP": False}


@dataclass(eq=False)
class OpenvinoNetwork(Network):
    """One graph by OpenVINO, compiled at the first call of each shape; the last `KEPT` shapes are kept.

    `session` is OpenVINO's model, `_options` what it is compiled with. Calls from several threads are safe.
    """

    _compiled: dict[str, Any] = field(default_factory=dict, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def read(cls, path: Path, settings: dict[str, Any]) -> OpenvinoNetwork:
        """Raises `InputError` for a file that is no graph of known types and operators."""
        from openvino.frontend import FrontEndManager

        reader = FrontEndManager().load_by_framework("onnx")  # a plain read_model asks every other reader, too
        try:
            model = reader.convert(reader.load(str(path)))
        except Exception as error:  # OpenVINO raises RuntimeErrors and classes of its own
            raise InputError(
                f"{path} is not a graph that openvino can read ({_said(error)}); export the engine again"
            ) from error
        inputs, outputs = (
            {value.any_name: _value(value, path) for value in values} for values in (model.inputs, model.outputs)
        )
        return cls(path, Place("cpu", torch.device("cpu"), []), model, inputs, outputs, settings)

    def run(self, output: str, shape: Any, **inputs: Tensor) -> Tensor:
        """As `Network.run`: returns `output` of that shape as a new tensor; `DiveError` for what OpenVINO refuses."""
        from openvino import Tensor as Shared

        given = {name: x.detach().to("cpu", self.inputs[name].dtype).contiguous() for name, x in inputs.items()}
        result = torch.empty(*shape, dtype=self.outputs[output].dtype)
        try:
            request = self._for({name: list(x.shape) for name, x in given.items()}).create_infer_request()
            for name, tensor in {**given, output: result}.items():
                request.set_tensor(name, Shared(tensor.numpy(), shared_memory=True))
            request.infer()
        except Exception as error:  # as above
            raise DiveError(f"{self.path} failed in openvino: {_said(error)}") from error
        return result

    def _for(self, shapes: dict[str, list[int]]) -> Any:
        """The network compiled for these shapes of its inputs."""
        from openvino import Core

        key = str(sorted(shapes.items()))
        with self._lock:
            found = self._compiled.pop(key, None)
            if found is None:
                self.session.reshape(shapes)
                found = Core().compile_model(self.session, "CPU", self._options)
            self._compiled[key] = found  # the last used is the last
            while len(self._compiled) > KEPT:
                del self._compiled[next(iter(self._compiled))]
        return found


def _value(value: Any, path: Path) -> Value:
    kind = value.element_type.get_type_name()
    if kind not in TYPES:
        raise InputError(f"{path}: {value.any_name} is of type {kind}; known are {', '.join(TYPES)}")
    sizes = tuple(side.get_length() if side.is_static else None for side in value.partial_shape)
    return Value(*ELEMENTS[TYPES[kind]], sizes)


def _said(error: Exception) -> str:
    """What went wrong, without the source files of OpenVINO that its errors begin with."""
    lines = str(error).splitlines()
    return brief(" ".join(line for line in lines if not line.startswith(("Exception from ", "Check '"))) or error)
