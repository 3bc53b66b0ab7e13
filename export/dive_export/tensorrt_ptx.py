"""Rewrites the parameters of PTX from Triton for TensorRT's ahead-of-time plugins.

TensorRT passes the inputs' addresses, 32-bit integers and the outputs' addresses. Triton appends addresses of scratch
memory, and the kernel takes views into a tensor. So parameters are reordered and dropped, and a view's address is computed
from its tensor's and a number of elements. PTX ISA: https://docs.nvidia.com/cuda/parallel-thread-execution
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ENTRY = re.compile(r"\.entry\s+(\w+)\s*\(([^)]*)\)")
PARAMETER = re.compile(r"\.param\s+(\.[bsu]\d+)\b.*?(\w+)\s*$", re.DOTALL)
ELEMENTS = {"*fp32": 4, "*fp16": 2, "*bf16": 2}  # bytes


@dataclass(frozen=True)
class View:
    """A kernel's pointer argument into a tensor; `start` names the parameter with its offset in elements."""

    tensor: str
    start: str


def repassed(ptx: str, arguments: Sequence[tuple[str, str]], views: Mapping[str, View], passed: Sequence[str]) -> str:
    """Returns `ptx`, one kernel with `arguments` (name, Triton's type), with the parameters `passed`, in order.

    `passed` names the arguments; each of `views` becomes its tensor and its start. Raises `ValueError` if the PTX is not as
    Triton writes it, or reads a parameter that is dropped.
    """
    entry = ENTRY.search(ptx)
    if entry is None or len(ENTRY.findall(ptx)) != 1:
        raise ValueError("the PTX holds not exactly one kernel")
    function, written = entry[1], [text.strip() for text in entry[2].split(",")]
    parameters = [_parameter(text) for text in written]
    if len(parameters) < len(arguments):
        raise ValueError(f"{function} has {len(parameters)} parameters, its arguments are {len(arguments)}")
    symbols = {}
    for (name, kind), (symbol, width) in zip(arguments, parameters, strict=False):
        if kind not in ELEMENTS and kind not in ("*i64", "i32"):
            raise ValueError(f"{function} takes {name} as {kind}; TensorRT passes addresses and 32-bit integers only")
        if width != ("32" if kind == "i32" else "64"):
            raise ValueError(f"{function}'s parameter {symbol} has {width} bits, which {name}, {kind}, has not")
        symbols[name] = symbol
    body = ptx[entry.end() :]
    for symbol, _ in parameters[len(arguments) :]:
        if re.search(rf"\b{symbol}\b", body):
            raise ValueError(f"{function} reads {symbol}, the scratch memory that TensorRT does not give")
    declared = {name: text for (name, _), text in zip(arguments, written, strict=False) if name not in views}
    for name, view in views.items():
        tensor, start = f"{function}_{view.tensor}", f"{function}_{view.start}"
        declared |= {view.tensor: f".param .u64 {tensor}", view.start: f".param .u32 {start}"}
        body = _from_view(body, symbols[name], tensor, start, dict(arguments)[name])
    if sorted(passed) != sorted(declared):
        raise ValueError(f"{function} is to be passed {', '.join(passed)}; it takes {', '.join(declared)}")
    lines = ",\n\t".join(declared[name] for name in passed)
    return f"{ptx[: entry.start(2)]}\n\t{lines}\n{ptx[entry.end(2) : entry.end()]}{body}"


def _parameter(text: str) -> tuple[str, str]:
    found = PARAMETER.search(text)
    if found is None:
        raise ValueError(f"{text.strip()!r} is no parameter of a form that Triton writes")
    return found[2], found[1][2:]


def _from_view(body: str, symbol: str, tensor: str, start: str, kind: str) -> str:
    """Replaces the load of `symbol` in `body` by the address `tensor` plus `start` elements."""
    load = re.compile(rf"^[ \t]*ld\.param\.[bu]64[ \t]+(%\w+),[ \t]*\[{symbol}\];", re.MULTILINE)
    moved = load.sub(
        "\t{\n"
        "\t.reg .b32 %view_start;\n"
        "\t.reg .b64 %view_bytes;\n"
        f"\tld.param.b32 %view_start, [{start}];\n"
        f"\tmul.wide.s32 %view_bytes, %view_start, {ELEMENTS[kind]};\n"
        rf"\tld.param.b64 \1, [{tensor}];"
        "\n"
        r"\tadd.s64 \1, \1, %view_bytes;"
        "\n\t}",
        body,
    )
    if moved == body or re.search(rf"\b{symbol}\b", moved):
        raise ValueError(f"{symbol} is read otherwise than as one address; this form of PTX is not known")
    return moved
