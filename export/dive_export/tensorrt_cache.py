"""The cache of plans under a hash of what they depend on, and the timing cache of TensorRT."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx.numpy_helper import to_array

from dive_fast.engines import tensorrt_api as trt
from dive_fast.engines.node_runner import read_graph
from dive_fast.io import atomic_write, canonical_json, sha256_bytes, write_json
from dive_fast.json_files import read_json
from dive_fast.types import InputError

FLOATS = (1, 10, 11, 16)  # onnx.TensorProto FLOAT, FLOAT16, DOUBLE, BFLOAT16: the types that weights have


def constant(tensor: Any, folder: Path) -> bytes:
    """Returns the value of an initializer as bytes, from the graph or from its file in `folder`."""
    return bytes(to_array(tensor, str(folder)).tobytes())


def is_weight(tensor: Any) -> bool:
    """Whether a refit may change an initializer: integers are shapes and indices, which a plan has built in."""
    return tensor.data_type in FLOATS


def graph_hash(path: Path, weights: dict[str, str] | None) -> str:
    """Hashes a graph's nodes, names, shapes and constants, and its weights unless `weights` is None.

    `weights` maps the graph's external files to their hashes. The exporter's metadata (source lines with paths) is left
    out: two machines get the same hash.
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
    """Returns the messages, by kind, that a model's numbers depend on, without its initializers."""
    graph = model.graph
    return {
        "opset": list(model.opset_import),
        "function": list(model.functions),
        "input": list(graph.input),
        "output": list(graph.output),
        "node": list(graph.node),
    }


def bare(message: Any) -> bytes:
    """Serializes a message without the exporter's metadata."""
    copy = type(message)()
    copy.CopyFrom(message)
    for field in ("doc_string", "metadata_props"):
        if field in copy.DESCRIPTOR.fields_by_name:
            copy.ClearField(field)
    return bytes(copy.SerializeToString(deterministic=True))


def fixed_hash(path: Path, refittable: list[str]) -> str:
    """Hashes the initializers that a refit cannot change, all but the `refittable` ones."""
    names = set(refittable)
    return sha256_bytes(
        b"".join(
            constant(tensor, path.parent) for tensor in read_graph(path).graph.initializer if tensor.name not in names
        )
    )


@dataclass(frozen=True)
class Plan:
    """A serialized engine of one part; `refittable` names the weights that it lacks, none if it is not stripped."""

    data: bytes
    refittable: list[str]
    fixed: str = ""


class PlanCache:
    """A folder of plans, each with a record of its hash. Several builds may share it: files are written atomically."""

    def __init__(self, folder: Path, progress: Callable[[str], None]) -> None:
        self.folder, self.progress = folder, progress

    def path(self, key: str) -> Path:
        return self.folder / "plans" / f"{key}.plan"

    def has(self, key: str) -> bool:
        """Whether a plan is there; `get` verifies it."""
        return self.path(key).with_suffix(".json").is_file()

    def get(self, key: str, graph: Path) -> Plan | None:
        """Returns the plan; None if there is none, it is damaged, or `graph` has other built-in constants."""
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
            self.progress(f"build cache: {path} is damaged, the part is built again")
            path.with_suffix(".json").unlink()
            return None
        return plan if not plan.refittable or plan.fixed == fixed_hash(graph, plan.refittable) else None

    def put(self, key: str, plan: Plan) -> None:
        """Stores a plan, its record last."""
        path = self.path(key)
        atomic_write(path, plan.data)
        record = {"sha256": sha256_bytes(plan.data), "refittable": plan.refittable, "fixed": plan.fixed}
        write_json(path.with_suffix(".json"), record)


@contextmanager
def timings(kind: trt.Flavour, config: Any, path: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Loads the timing cache from `path` for a build, and saves it there when the build succeeds.

    It holds for one GPU and version, which belong into the file's name. A broken one is dropped with a message. Flavours
    without a timing cache skip this. Of two builds at once, the later one's file stays.
    """
    if not kind.timing_cache:
        yield
        return
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        progress(f"timing cache: {path} is for another machine, tactics are timed again")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    yield
    data = bytes(cache.serialize())
    if data != known:
        atomic_write(path, data)
