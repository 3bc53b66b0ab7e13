"""One graph to one file: names, free rows, opset, parity."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from dive_export.graphs import Axis, Graph, graphs
from dive_export.onnx import AS_EXPORTED, _check_weights, export_graph, measure_parity
from dive_fast.io import clear_disk_errors
from dive_fast.models import load_bundle
from dive_fast.types import DiveError, InputError
from tests.support.graphs import dimensions
from tests.support.tiny import ENGINE_ROWS, HEIGHT, LATENT_SHAPE, MAX_TOKENS, TEXT_WIDTH, WIDTH

pytestmark = pytest.mark.slow


class Toy(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(5, width)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        out: Tensor = self.linear(sample) * timestep.to(sample.dtype)
        return out


class NotExportable(Toy):
    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        print("about to branch on data")
        return sample if float(sample.sum()) > 0 else -sample


def toy(module: nn.Module | None = None, rows: int = 4) -> Graph:
    module = (module or Toy()).eval()
    inputs: dict[str, tuple[int | Axis, ...]] = {"sample": (Axis("rows", 0), 7, 5), "timestep": (1,)}
    return Graph("toy", module, inputs, "out_sample", 0, rows, module)


@pytest.mark.parametrize("rows_max", [1, 8])
def test_rows_are_free_up_to_the_limit_and_the_exporter_is_quiet(
    tmp_path: Path, rows_max: int, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = toy(rows=rows_max)
    export_graph(graph, tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    assert dimensions(model.graph.input[0]) == ["rows", 7, 5]
    parity = measure_parity(graph, tmp_path / "model.onnx")
    assert sorted(parity.errors, key=int) == [str(n) for n in sorted({1, min(3, rows_max), rows_max})]
    assert parity.worst <= parity.budget < 1e-2


def test_a_failing_export_names_the_part_and_the_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DiveError, match="export toy: .*Could not guard on data-dependent"):
        export_graph(toy(NotExportable()), tmp_path / "model.onnx")
    assert "about to branch on data" in capsys.readouterr().err


def test_examples_are_random_but_repeatable() -> None:
    sample, timestep = toy().examples(3).values()
    assert sample.shape == (3, 7, 5) and sample.std() > 0.5
    assert timestep.dtype == torch.int64 and timestep.shape == (1,)
    assert torch.equal(sample, toy().examples(3)["sample"])
    assert not torch.equal(sample, toy().examples(3, seed=1)["sample"])


def test_graphs_have_the_names_and_shapes_that_optimum_gives_them(tiny_engine: Path) -> None:
    latents, hidden = ["rows", *LATENT_SHAPE], ["rows", MAX_TOKENS, TEXT_WIDTH]
    images, parameters = ["rows", 3, HEIGHT, WIDTH], ["rows", 2 * LATENT_SHAPE[0], *LATENT_SHAPE[1:]]
    expected = {
        "text_encoder": ({"input_ids": ["rows", MAX_TOKENS]}, {"last_hidden_state": hidden}),
        "unet": ({"sample": latents, "timestep": [1], "encoder_hidden_states": hidden}, {"out_sample": latents}),
        "vae_decoder": ({"latent_sample": latents}, {"sample": images}),
        "vae_encoder": ({"sample": images}, {"latent_parameters": parameters}),
    }
    for part, (inputs, outputs) in expected.items():
        model = onnx.load(tiny_engine / part / "model.onnx", load_external_data=False)
        assert {value.name: dimensions(value) for value in model.graph.input} == inputs
        assert {value.name: dimensions(value) for value in model.graph.output} == outputs
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 23)]


def test_only_sizes_that_pass_the_halvings_get_graphs(tiny_fused: Path) -> None:
    bundle = load_bundle(tiny_fused)
    assert graphs(bundle, None, ENGINE_ROWS)[1] == (HEIGHT, WIDTH)
    parts, size = graphs(bundle, (48, 96), ENGINE_ROWS)
    assert size == (48, 96) and parts[1].inputs["sample"][1:] == (8, 6, 12)
    for size in ((40, 32), (64, 0), (-16, 16)):
        with pytest.raises(InputError, match="multiple of 16|> 0"):
            graphs(bundle, size, ENGINE_ROWS)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_within_what_its_roundings_explain(tmp_path: Path, precision: str) -> None:
    """Off by about the operands' roundings (2^-11 or 2^-8 of their size), so neither exact nor far off."""
    graph = toy()
    export_graph(graph, tmp_path / "model.onnx", precision)
    parity = measure_parity(graph, tmp_path / "model.onnx", precision)
    with torch.no_grad():
        size = max(float(graph.reference(*graph.examples(n, seed=n).values()).std()) for n in (1, 3, 4))
    unit = {"fp16": 2.0**-11, "bf16": 2.0**-8}[precision]
    assert 0.1 * unit * size < parity.worst <= parity.budget < 10 * unit * size
    assert (parity.measured == AS_EXPORTED) is (precision == "fp16")
    model = onnx.load(tmp_path / "model.onnx")
    kinds = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
    assert model.graph.output[0].type.tensor_type.elem_type == kinds[precision]


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """As if the disk were full behind `size` bytes of any file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_write_that_stops_short_is_an_error_of_the_disk(tmp_path: Path) -> None:
    """numpy gives no number for it, and io.clear_disk_errors needs one."""
    large = toy(Toy(width=200_000))
    with files_up_to(1_000_000), pytest.raises(DiveError) as raised, clear_disk_errors(tmp_path):
        export_graph(large, tmp_path / "model.onnx")
    assert "the disk is full; free space" in str(raised.value)


def test_weights_that_end_too_early_are_noticed_at_once(tmp_path: Path) -> None:
    export_graph(toy(Toy(width=200_000)), tmp_path / "model.onnx")
    with open(tmp_path / "model.onnx.data", "r+b") as data:
        data.truncate(1_000_000)
    with pytest.raises(DiveError, match="export toy: model.onnx.data"):
        _check_weights("toy", tmp_path / "model.onnx")


def test_a_graph_keeps_the_names_of_torchs_modules_and_no_path_of_the_machine(tiny_engine: Path) -> None:
    model = onnx.load(tiny_engine / "unet" / "model.onnx", load_external_data=False)
    assert {note.key for node in model.graph.node for note in node.metadata_props} == {"pkg.torch.onnx.name_scopes"}
    assert ".py" not in (tiny_engine / "unet" / "model.onnx").read_bytes().decode("latin-1")
