"""Marks of virtual people through the files of other tools."""

from dataclasses import replace

from dive_fast.models import load_bundle
from dive_fast.models.interop import export_adapter, import_adapter
from tests.support.tiny import tiny_adapter


def test_an_exported_and_imported_virtual_person_stays_one(tiny_base, tmp_path):
    bundle = load_bundle(tiny_base)
    adapter = tiny_adapter(bundle)
    marked = replace(adapter, identities=(*adapter.identities[:2], replace(adapter.identities[2], virtual=True)))
    export_adapter(marked, tmp_path / "out")
    assert import_adapter(bundle, [tmp_path / "out"]).adapter.identities == marked.identities
