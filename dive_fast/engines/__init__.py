"""One interface to the four networks of a fused model; torch and onnxruntime behind it."""

from dive_fast.engines.base import Conditioning, Engine, Request
from dive_fast.engines.load import load_engine

__all__ = ["Conditioning", "Engine", "Request", "load_engine"]
