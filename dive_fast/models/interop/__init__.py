"""LoRA and embeddings of other tools: imported as adapters, and adapters exported in other tools' layouts."""

from dive_fast.models.interop.cameras import parse_camera
from dive_fast.models.interop.exporter import Layout, export_adapter
from dive_fast.models.interop.importer import Imported, import_adapter

__all__ = ["Imported", "Layout", "export_adapter", "import_adapter", "parse_camera"]
