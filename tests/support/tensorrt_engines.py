"""Engine folders built, and engines opened, by the stand-in for TensorRT's module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dive_export.tensorrt import BuildConfig, build_engine
from dive_fast.engines import tensorrt_api as trt
from dive_fast.engines.engine_folder import read_engine, read_spec
from dive_fast.engines.tensorrt_engine import TensorRTEngine
from tests.support.tensorrt_double import Double, LaneDouble


def quiet(line: str) -> None:
    pass


def built(source: Path, out: Path, **options: Any) -> Path:
    config = {"rows": (2, 5, 8), "vae_rows": (1, 3), "text_rows": (2,), "cache": out.parent / "cache", **options}
    build_engine(source, out, BuildConfig(**config), quiet)
    return out


def opened(folder: Path, module: Double, lane: LaneDouble | None = None, **options: Any) -> TensorRTEngine:
    files = read_engine(folder, read_spec(folder))
    return TensorRTEngine(files, module, torch.device("cpu"), lane or LaneDouble(), "a test", **options)


def rtx_parser(rtx: Any) -> tuple[Any, Any, Any, Any]:
    """Of the real tensorrt_rtx: log, builder, network and the parser that fills it."""
    log = trt.logger(rtx)
    builder = rtx.Builder(log)
    network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    return log, builder, network, rtx.OnnxParser(network, log)
