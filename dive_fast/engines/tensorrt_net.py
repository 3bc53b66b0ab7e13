"""One TensorRT plan on a GPU: a context and buffers for each profile, a stream, CUDA graphs on request.

Not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dive_fast.engines import tensorrt_api as trt
from dive_fast.types import DiveError, InputError

AGAIN = "build the engine again (dive-fast build)"


class Lane:
    """A CUDA stream for an engine's work: on torch's default stream, TensorRT would synchronise the device at each call.

    Events order the two streams: the CPU never waits, and torch reuses memory as if there were one stream.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    @contextmanager
    def turn(self) -> Iterator[int]:
        """Yields the stream to enqueue on, ordered after torch's earlier work and before its later work."""
        torchs = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(torchs)
        with torch.cuda.stream(self.stream):
            yield self.stream.cuda_stream
        torchs.wait_stream(self.stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Captures `work`, which has run once, within a turn; returns what replays it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            work()
        return graph.replay


class Net:
    """One plan; each profile gets an execution context and buffers at its first call.

    An input with one size per profile is copied to a buffer, padded with zeros; one with a range (the K/V cache) is read
    in place.
    """

    def __init__(self, module: Any, engine: Any, device: torch.device, lane: Lane, where: str, graphs: bool) -> None:
        self._module, self._engine, self._device, self._lane = module, engine, device, lane
        self._where, self._graphs = where, graphs
        self._slots: dict[int, Slot] = {}
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.dtypes = {name: getattr(torch, trt.torch_dtype(engine.get_tensor_dtype(name))) for name in names}
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == module.TensorIOMode.INPUT]
        (self._output,) = (name for name in names if name not in self._inputs)
        ranges = [
            {name: self._range(name, i) for name in self._inputs} for i in range(engine.num_optimization_profiles)
        ]
        self.profiles = [{name: most for name, (_, _, most) in shapes.items()} for shapes in ranges]
        self._ranged = {name for name, (low, _, most) in ranges[0].items() if low != most}
        self.scratch = max(engine.get_device_memory_size_for_profile_v2(i) for i in range(len(ranges)))

    def _range(self, name: str, index: int) -> list[tuple[int, ...]]:
        """Returns the smallest, best and largest shape of an input; TensorRT has these for dynamic inputs only."""
        shape = tuple(self._engine.get_tensor_shape(name))
        ranges = self._engine.get_tensor_profile_shape(name, index) if -1 in shape else [shape] * 3
        return [tuple(shape) for shape in ranges]

    def most(self, name: str) -> int:
        """The largest leading size of an input."""
        return max(shapes[name][0] for shapes in self.profiles)

    def run(self, feeds: Mapping[str, Tensor], rows: int, scratch: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Returns the first `rows` of the output as `dtype` (None: the plan's), from inputs that fit a profile."""
        with self._lane.turn() as stream, torch.inference_mode():
            index = self._fitting(feeds)
            slot = self._slots.get(index) or self._open(index, scratch, stream)
            slot.take(feeds)
            self._enqueue(slot, stream)
            answer = slot.output[:rows].clone()
        return answer.to(dtype or answer.dtype)

    def _fitting(self, feeds: Mapping[str, Tensor]) -> int:
        fits = [
            (sum(shapes[name][0] for name in feeds if name not in self._ranged), i)
            for i, shapes in enumerate(self.profiles)
            if all(len(tensor) <= shapes[name][0] for name, tensor in feeds.items())
        ]
        if not fits:
            sizes = ", ".join(f"{name} {len(tensor)} (at most {self.most(name)})" for name, tensor in feeds.items())
            raise InputError(f"{self._where}: no profile takes {sizes}; call with fewer, or {AGAIN} with more rows")
        return min(fits)[1]

    def _open(self, index: int, scratch: Tensor, stream: int) -> Slot:
        """Makes context and buffers of a profile; addresses and shapes are set once, as they never change."""
        strategy = self._module.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None or not context.set_optimization_profile_async(index, stream):
            raise DiveError(f"{self._where}: TensorRT cannot open profile {index}; {AGAIN}")
        context.set_device_memory(scratch.data_ptr(), scratch.numel())
        shapes = self.profiles[index]
        for name in self._ranged:  # its largest: the output's shape needs every input's
            context.set_input_shape(name, shapes[name])
        slot = Slot(context, self._where)
        for name in shapes.keys() - self._ranged:
            slot.buffers[name] = torch.zeros(shapes[name], dtype=self.dtypes[name], device=self._device)
            slot.bind(name, slot.buffers[name])
        name = self._output
        shape = tuple(context.get_tensor_shape(name))
        slot.output = torch.empty(shape, dtype=self.dtypes[name], device=self._device)
        slot.bind(name, slot.output, shape=False)
        self._slots[index] = slot
        return slot

    def _enqueue(self, slot: Slot, stream: int) -> None:
        if slot.replay is not None:
            slot.replay()
            return

        def call() -> None:
            if not slot.context.execute_async_v3(stream):
                raise DiveError(f"{self._where}: TensorRT could not enqueue the call; open the engine again")

        call()  # before a capture too: deferred shape updates and allocations cannot be captured
        if self._graphs:
            slot.replay = self._lane.capture(call)


class Slot:
    """One profile in use: its context, its buffers, and the replay of its captured call."""

    def __init__(self, context: Any, where: str) -> None:
        self.context, self._where = context, where
        self.buffers: dict[str, Tensor] = {}
        self.output = torch.empty(0)
        self.replay: Callable[[], None] | None = None
        self._outside: dict[str, Tensor] = {}

    def bind(self, name: str, tensor: Tensor, shape: bool = True) -> None:
        """Sets a tensor's address and, of an input, its shape."""
        if shape and not self.context.set_input_shape(name, tuple(tensor.shape)):
            raise DiveError(f"{self._where}: TensorRT refuses {name} {list(tensor.shape)}; {AGAIN}")
        if not self.context.set_tensor_address(name, tensor.data_ptr()):
            raise DiveError(f"{self._where}: TensorRT refuses the address of {name}; {AGAIN}")

    def take(self, feeds: Mapping[str, Tensor]) -> None:
        """Copies inputs to their buffers, from any device, and binds the others in place."""
        for name, tensor in feeds.items():
            if name in self.buffers:
                buffer = self.buffers[name]
                buffer[: len(tensor)].copy_(tensor, non_blocking=True)
                buffer[len(tensor) :].zero_()  # a stale index could reach outside a shorter cache
            elif self._outside.get(name) is not tensor:
                self._outside[name] = tensor  # TensorRT holds its address only
                self.bind(name, tensor)
                self.replay = None
