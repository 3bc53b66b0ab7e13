"""What a plan depends on as one hash, plans kept under it, and timings that later builds take up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dive_fast.engines import tensorrt_api as trt
from dive_fast.engines.node_runner import read_graph
from dive_fast.io import atomic_write, canonical_json, read_json, sha256_bytes, write_json
from dive_fast.types import InputError

FLOATS = (1, 10, 11, 16)  # onnx.TensorProto FLOAT, FLOAT16, DOUBLE, BFLOAT16: the types that weights have


def constant(tensor: Any, folder: Path) -> bytes:
    """The value of an initializer as bytes, be it inside the graph or in a file of `folder`."""
    from onnx import numpy_helper

    return bytes(numpy_helper.to_array(tensor, str(folder)).tobytes())


def is_weight(tensor: Any) -> bool:
    """Whether a refit may change an initializer: whole numbers are shapes and indices, which are built into a plan."""
    return tensor.data_type in FLOATS


def graph_hash(path: Path, weights: dict[str, str] | None) -> str:
    """Hash of what a graph computes: nodes, names, shapes, constants; and of its weights, unless they are left out.

    `weights` maps the graph's external files to their hashes; None leaves the values of all weights out. What the
    exporter notes about itself (source lines with paths) is left out, so that two machines agree.
    """
    model = read_graph(path)
    values: list[Any] = []
    for tensor in model.graph.initializer:
        values.append([tensor.name, tensor.data_type, list(tensor.dims)])
        inside = not tensor.external_data
        if not is_weight(tensor) or (inside and weights is not None):
            values.append(sha256_bytes(constant(tensor, path.parent)))
    pieces = [[sha256_bytes(bare(message)) for message in messages] for messages in structure(model).values()]
    return sha256_bytes(canonical_json([pieces, values, weights]).encode())


def structure(model: Any) -> dict[str, list[Any]]:
    """All of a model that its numbers depend on but for its initializers: messages by what they are."""
    graph = model.graph
    return {
        "opset": list(model.opset_import),
        "function": list(model.functions),
        "input": list(graph.input),
        "output": list(graph.output),
        "node": list(graph.node),
    }


def bare(message: Any) -> bytes:
    """A message as bytes, without what the exporter notes about its origin."""
    copy = type(message)()
    copy.CopyFrom(message)
    for field in ("doc_string", "metadata_props"):
        if field in copy.DESCRIPTOR.fields_by_name:
            copy.ClearField(field)
    return bytes(copy.SerializeToString(deterministic=True))


def fixed_hash(path: Path, refittable: list[str]) -> str:
    """Hash of the values that a refit cannot change: those of all initializers but the `refittable` ones."""
    names = set(refittable)
    return sha256_bytes(
        b"".join(
            constant(tensor, path.parent) for tensor in read_graph(path).graph.initializer if tensor.name not in names
        )
    )


@dataclass(frozen=True)
class Plan:
    """A serialized engine of one part; `refittable` names the weights that it was built without ([]: it has its own)."""

    data: bytes
    refittable: list[str]
    fixed: str = ""


class PlanCache:
    """Plans in a folder, each beside a record with its hash. Safe for several builds at once: files appear whole."""

    def __init__(self, folder: Path, progress: Callable[[str], None]) -> None:
        self.folder, self.progress = folder, progress

    def path(self, key: str) -> Path:
        return self.folder / "plans" / f"{key}.plan"

    def has(self, key: str) -> bool:
        """Whether a plan is there; it is verified when it is taken."""
        return self.path(key).with_suffix(".json").is_file()

    def get(self, key: str, graph: Path) -> Plan | None:
        """The plan, or None: there is none, it is damaged (which is told), or `graph` has other built-in constants."""
        path = self.path(key)
        if not self.has(key):
            return None
        try:
            record = read_json(path.with_suffix(".json"), "build cache")
            plan = Plan(path.read_bytes(), record["refittable"], record["fixed"])
            damaged = sha256_bytes(plan.data) != record["sha256"]
        except (InputError, OSError, KeyError, TypeError):
            damaged = True
        if damaged:
            self.progress(f"build cache: {path} is damaged, that part is built again")
            path.with_suffix(".json").unlink()
            return None
        return plan if not plan.refittable or plan.fixed == fixed_hash(graph, plan.refittable) else None

    def put(self, key: str, plan: Plan) -> None:
        """Keeps a plan: its file first, so that a record never stands for half a plan."""
        path = self.path(key)
        atomic_write(path, plan.data)
        record = {"sha256": sha256_bytes(plan.data), "refittable": plan.refittable, "fixed": plan.fixed}
        write_json(path.with_suffix(".json"), record)


@contextmanager
def timings(kind: trt.Flavour, config: Any, path: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Lets a build take up the timings kept in `path`, and keeps its own there when it succeeds.

    They hold for one GPU and version, which belong into the file's name. Broken ones are dropped with a word. A flavour
    without a timing cache gets none. Of two builds at once the later one's file stays.
    """
    if not kind.timing_cache:
        yield
        return
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        progress(f"timing cache: {path} does not fit this machine, tactics are timed anew")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    yield
    data = bytes(cache.serialize())
    if data != known:
        atomic_write(path, data)
