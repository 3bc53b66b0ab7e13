"""LoRA and embeddings of other tools: taken in as adapters, and given back in their layouts."""

from dive_fast.models.interop.dive import parse_camera
from dive_fast.models.interop.exporter import export_adapter
from dive_fast.models.interop.importer import Imported, import_adapter

__all__ = ["Imported", "export_adapter", "import_adapter", "parse_camera"]
