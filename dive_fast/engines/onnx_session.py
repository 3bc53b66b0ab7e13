"""ONNX graphs on one execution provider of onnxruntime, called with torch tensors.

Inputs and outputs are bound by pointer on every device: nothing passes through the host on a GPU, and nothing is copied on
a CPU. Each call returns a new tensor, whose memory torch's allocator reuses once it is released.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dive_fast.io import brief, user_cache
from dive_fast.types import DiveError, InputError

Provider = Literal["cpu", "cuda", "tensorrt"]
PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# onnxruntime's name of an element type -> torch's, and its number in ONNX (TensorProto.DataType).
ELEMENTS = {
    "tensor(float)": (torch.float32, 1),
    "tensor(int32)": (torch.int32, 6),
    "tensor(int64)": (torch.int64, 7),
    "tensor(float16)": (torch.float16, 10),
    "tensor(bfloat16)": (torch.bfloat16, 16),
}
PRECISIONS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
Dimensions = tuple["int | str | None", ...]
# Operators that take tensors of images or tokens. Those of shapes may run on the CPU.
NORMS = ("LayerNormalization", "SkipLayerNormalization", "GroupNormalization", "InstanceNormalization")
WORK = ("Attention", "Conv", "MatMul", "Gemm", *NORMS, "Softmax", "Gelu", "Resize")


@dataclass(frozen=True)
class Place:
    """A provider, its options, and the device of the tensors that its graphs read and write.

    `providers` is onnxruntime's list, whose first must load. On a GPU onnxruntime works on `stream`, so `in_order` can
    order a call with torch's work without the host.
    """

    kind: Provider
    device: torch.device
    providers: list[tuple[str, dict[str, Any]]]
    stream: torch.cuda.Stream | None = None

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """Orders the block's work on `stream` after torch's earlier work and before its later work.

        The host does not wait. Memory that the block frees can be reused at once, as on torch's own stream.
        """
        if self.stream is None:
            yield
            return
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        try:
            yield
        finally:
            current.wait_stream(self.stream)


def place(kind: Provider, precision: str, cache: Path) -> Place:
    """Returns the place for graphs of `precision`; "cuda" and "tensorrt" require a torch that sees the GPU.

    `cache` is the folder of the engines that the TensorRT provider builds, made if missing. The CUDA provider runs what
    TensorRT cannot. TF32 is off in the CUDA provider; for TensorRT set NVIDIA_TF32_OVERRIDE=0.
    """
    if kind == "cpu":
        return Place("cpu", torch.device("cpu"), [(PROVIDERS["cpu"], {})])
    device = torch.device("cuda", torch.cuda.current_device())
    stream = torch.cuda.Stream(device)  # not torch's default stream: its number is 0, which onnxruntime takes for none
    providers = [cuda_provider(device.index, stream.cuda_stream)]
    if kind == "tensorrt":
        cache.mkdir(parents=True, exist_ok=True)
        caching = {"trt_engine_cache_enable": True, "trt_timing_cache_enable": True}
        where = {"trt_engine_cache_path": str(cache), "trt_timing_cache_path": str(cache)}
        shared = {name: providers[0][1][name] for name in ("device_id", "user_compute_stream")}
        types = {} if precision == "fp32" else {f"trt_{precision}_enable": True}
        providers.insert(0, (PROVIDERS["tensorrt"], {**shared, **caching, **where, **types}))
    return Place(kind, device, providers, stream)


def cuda_provider(device: int, stream: int) -> tuple[str, dict[str, Any]]:
    """Returns onnxruntime's name of the CUDA provider and its options, for a device and a stream by their numbers."""
    where = {"device_id": str(device), "user_compute_stream": str(stream)}
    layout = {"prefer_nhwc": True}  # channels last, as tensor cores read convolutions
    rounding = {"use_tf32": False, "enable_skip_layer_norm_strict_mode": True}  # sums in float32, whatever the release
    return PROVIDERS["cuda"], {**where, **layout, **rounding}


def default_cache(fingerprint: str) -> Path:
    """Returns the default folder for the TensorRT provider's engines of one engine folder."""
    return user_cache("onnxruntime-tensorrt") / fingerprint[:16]


@dataclass(frozen=True)
class Value:
    """A named input or output of a graph; a free dimension is its name, or None when it has none."""

    dtype: torch.dtype
    element: int
    dimensions: Dimensions


@dataclass(eq=False)
class Network:
    """One graph on a `Place`. Calls from several threads are safe: each binds its own tensors."""

    path: Path
    place: Place
    session: Any
    inputs: dict[str, Value]
    outputs: dict[str, Value]
    _options: Any = field(repr=False)

    @classmethod
    def open(cls, path: Path, where: Place, threads: int) -> Network:
        """Raises `InputError` for a file that is no graph of known types, `DiveError` if the provider does not load."""
        import onnxruntime

        session = open_session(path, where, threads)
        options = onnxruntime.RunOptions()
        if where.stream is not None:  # else every call would end with the host waiting for the stream
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        inputs, outputs = (
            {value.name: _value(value, path) for value in values}
            for values in (session.get_inputs(), session.get_outputs())
        )
        return cls(path, where, session, inputs, outputs, options)

    def require(self, inputs: Sequence[str], output: str, remedy: str) -> None:
        """Raises `InputError` unless the graph reads exactly `inputs` and has an `output`."""
        if set(self.inputs) != set(inputs) or output not in self.outputs:
            raise InputError(
                f"{self.path} reads {', '.join(self.inputs)} and gives {', '.join(self.outputs)}, where "
                f"{', '.join(inputs)} -> {output} is needed; {remedy}"
            )

    def run(self, output: str, shape: Sequence[int], **inputs: Tensor) -> Tensor:
        """Returns `output` of that shape as a new tensor on the place's device, of the graph's type.

        Inputs are cast to the graph's types and copied only from other devices or if not contiguous. Raises `DiveError`
        for what onnxruntime refuses, including another output shape.
        """
        device = self.place.device
        # CUDA has read pageable host memory when a non-blocking copy returns; copies to the host are not done then.
        bound = {
            name: tensor.detach().to(device, self.inputs[name].dtype, non_blocking=device.type == "cuda").contiguous()
            for name, tensor in inputs.items()
        }
        value = self.outputs[output]
        result = torch.empty(*shape, dtype=value.dtype, device=device)
        index = device.index or 0
        binding = self.session.io_binding()
        for name, tensor in bound.items():
            element = self.inputs[name].element
            binding.bind_input(name, device.type, index, element, list(tensor.shape), tensor.data_ptr())
        binding.bind_output(output, device.type, index, value.element, list(result.shape), result.data_ptr())
        try:
            with self.place.in_order():
                self.session.run_with_iobinding(binding, self._options)
        except Exception as error:  # onnxruntime's own exceptions share no base class but this
            raise DiveError(f"{self.path} failed in onnxruntime: {brief(error)}") from error
        return result


def open_session(path: Path, where: Place, threads: int, optimized: Path | None = None) -> Any:
    """Opens an onnxruntime session on `where`; raises `DiveError` if it runs elsewhere, `InputError` if it is broken.

    On CUDA its graph is that of `onnx_cuda`. The graph that onnxruntime makes of it and runs is written to `optimized`.
    """
    import onnxruntime

    if where.kind == "cuda":
        from dive_fast.engines.onnx_cuda import read_for_cuda
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        graph = read_for_cuda(path) if where.kind == "cuda" else str(path)
        session = onnxruntime.InferenceSession(graph, options, providers=where.providers)
    except Exception as error:  # as above
        if type(error).__name__ == "NotImplemented":  # bfloat16 on a CPU, mostly
            if where.kind == "cuda":  # or a session on the CPU, which has no GroupNorm
                _require_provider(onnxruntime.InferenceSession(str(path), options, providers=where.providers), where)
            raise DiveError(
                f"{path}: {PROVIDERS[where.kind]} has no kernel for one of its operators ({brief(error)}); "
                "choose another device, or export with precision fp32"
            ) from error
        raise InputError(  # the graph passed its hash, so it was written broken
            f"{path} is not a graph that onnxruntime can open ({brief(error)}); export the engine again"
        ) from error
    _require_provider(session, where)
    if where.kind != "cpu":
        refuse_cpu_work(path, placement(session))
    return session


def _require_provider(session: Any, where: Place) -> None:
    """Raises `DiveError` where onnxruntime fell back to the CPU, as it does with a warning (a missing CUDA library, say)."""
    wanted, found = PROVIDERS[where.kind], session.get_providers()[0]
    if found != wanted:
        raise DiveError(
            f"onnxruntime did not bring up {wanted} and offers {found} ({_why_down(where.kind)}); "
            "install the libraries it asks for, or choose device 'cpu'"
        )


def placement(session: Any) -> dict[str, Counter[str]]:
    """Counts a session's nodes by provider and operator, as onnxruntime placed them."""
    found: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        found.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return found


def refuse_cpu_work(path: Path, placed: Mapping[str, Counter[str]]) -> None:
    """Raises `DiveError` if a GPU's session has operators of `WORK` on the CPU, to which onnxruntime gives them silently."""
    here = placed.get(PROVIDERS["cpu"], Counter())
    work = [f"{count} {op}" for op, count in here.items() if op in WORK]
    if work:
        raise DiveError(
            f"{path}: onnxruntime computes {', '.join(work)} on the CPU, as its GPU provider has no kernel for them; "
            "pip install -U 'dive-fast[gpu]', or use another backend"
        )


def _why_down(kind: Provider) -> str:
    """Returns the dynamic linker's reason why a provider does not load, which onnxruntime only logs."""
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        for name, mode in (("shared", ctypes.RTLD_GLOBAL), (kind, ctypes.RTLD_LOCAL)):
            ctypes.CDLL(str(folder / f"libonnxruntime_providers_{name}.so"), mode)
    except OSError as error:
        return brief(error)
    return "its libraries load, so the GPU or its driver fails; see onnxruntime's log on standard error"


def _value(value: Any, path: Path) -> Value:
    if value.type not in ELEMENTS:
        raise InputError(f"{path}: {value.name} is a {value.type}; known are {', '.join(ELEMENTS)}")
    return Value(*ELEMENTS[value.type], tuple(value.shape))
