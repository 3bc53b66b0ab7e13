"""The parity report: every block is there, and a fault planted in one block shows there and not before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from dive_export.graphs import Graph, graphs
from dive_export.probe import block_parity, graph_parity, table
from dive_fast.engines.node_runner import SCOPES
from dive_fast.models import load_bundle
from dive_fast.types import to_dict
from tests.support.graphs import named, reweigh
from tests.support.tiny import ENGINE_ROWS

# The blocks of the tiny UNet in the order in which they run.
BLOCKS = [
    "conv_in",
    "down_blocks.0.resnets.0",
    "down_blocks.0.attentions.0",
    "down_blocks.0.downsamplers.0",
    "down_blocks.1.resnets.0",
    "mid_block.resnets.0",
    "mid_block.attentions.0",
    "mid_block.resnets.1",
    "up_blocks.0.resnets.0",
    "up_blocks.0.resnets.1",
    "up_blocks.0.upsamplers.0",
    "up_blocks.1.resnets.0",
    "up_blocks.1.attentions.0",
    "up_blocks.1.resnets.1",
    "up_blocks.1.attentions.1",
    "conv_out",
    "output",
]
FLOAT32 = 1e-5  # relative; the worst block of the tiny UNet was measured at 1e-6, a wrong one is off by 1e-2 and more


@pytest.fixture(scope="module")
def parts(tiny_fused: Path) -> dict[str, Graph]:
    return {graph.part: graph for graph in graphs(load_bundle(tiny_fused), None, ENGINE_ROWS)[0]}


def test_every_block_of_the_unet_is_within_float32_of_torch(tiny_engine: Path, parts: dict[str, Graph]) -> None:
    rows = graph_parity(parts["unet"], tiny_engine / "unet" / "model.onnx", rows=3)
    found = [row for row in rows if row.block != "time_embedding"]  # which the time table has in place of it
    assert [row.block for row in found] == BLOCKS
    assert all(row.rms is not None and 0 < row.rms < FLOAT32 and row.largest >= row.rms for row in found)  # type: ignore[operator]
    assert json.loads(json.dumps([to_dict(row) for row in rows], allow_nan=False))[1]["block"] == rows[1].block
    lines = table(rows).splitlines()
    assert len(lines) == len(rows) + 1 and lines[-1].split()[0] == "output"


@pytest.mark.parametrize("part", ["text_encoder", "vae_decoder", "vae_encoder"])
def test_the_other_networks_have_blocks_too(part: str, tiny_engine: Path, parts: dict[str, Graph]) -> None:
    rows = graph_parity(parts[part], tiny_engine / part / "model.onnx", rows=1)
    found = [row for row in rows if row.rms is not None]
    assert len(found) >= 4 and found[-1].block == "output"
    assert all(row.rms < FLOAT32 for row in found)  # type: ignore[operator]


def test_a_fault_shows_in_its_block_and_not_before(tiny_engine: Path, parts: dict[str, Graph], tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_engine / "unet", tmp_path / "unet")) / "model.onnx"
    weight = named("mid_block.resnets.1.conv2.weight")
    reweigh(path, weight, lambda values: values * 1.2)
    rows = {row.block: row.rms for row in graph_parity(parts["unet"], path)}
    before, after = BLOCKS[: BLOCKS.index("mid_block.resnets.1")], BLOCKS[BLOCKS.index("mid_block.resnets.1") :]
    assert max(rows[block] for block in before) < FLOAT32  # type: ignore[type-var, operator]
    assert min(rows[block] for block in after) > 1e-3  # type: ignore[type-var, operator]

    reweigh(path, weight, lambda values: values * np.nan)
    broken = graph_parity(parts["unet"], path)
    assert [row.block for row in broken if "values are not finite" in row.why] == after


def test_a_block_that_the_graph_took_apart_is_listed_without_numbers(
    tiny_engine: Path, parts: dict[str, Graph], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_engine / "unet", tmp_path / "unet")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    gone, parted = (
        [node for node in model.graph.node if any(f"unet.{block}" in entry.value for entry in node.metadata_props)]
        for block in ("mid_block.resnets.0", "up_blocks.0.resnets.0.norm2")
    )
    assert len(gone) > 5 and len(parted) == 1  # a whole block, and one node in the middle of another
    for node in [*gone, *parted]:
        del node.metadata_props[:]
        node.metadata_props.add(key=SCOPES, value="['', 'unet', 'something']")
    onnx.save(model, folder / "model.onnx")
    graph = parts["unet"]
    examples = graph.examples(2)
    arrays = {name: tensor.numpy() for name, tensor in graph.feeds(examples).items()}
    rows = block_parity(folder / "model.onnx", graph.reference, arrays)
    lost = [row for row in rows if row.rms is None and row.block != "time_embedding"]
    assert [(row.block, row.tensor, row.largest) for row in lost] == [
        ("mid_block.resnets.0", None, None),
        ("up_blocks.0.resnets.0", None, None),
    ]
    assert "not in the graph as one block" in table(rows)
