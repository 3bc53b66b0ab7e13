"""Engines of form "bank": keys and values once, indices at each step, another size; on graphs made by hand.

The UNet here is a sum that tells its inputs apart, so a wrong row, prompt or timestep shows as a wrong number.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from dive_fast.engines import Request, load_engine
from dive_fast.engines.base import EngineBase
from dive_fast.io import sha256_file
from dive_fast.types import DiveError, InputError
from tests.support.tiny import LATENT_SHAPE, MAX_TOKENS, TEXT_WIDTH

C, COLUMNS = LATENT_SHAPE[0], 6
SCALING = 0.3  # of the tiny VAE


def _save(path: Path, nodes: list[onnx.NodeProto], inputs: dict, outputs: dict, **constants: np.ndarray) -> None:  # type: ignore[type-arg]
    """Values are (element type, dimensions)."""
    infos = [[helper.make_tensor_value_info(n, *v) for n, v in table.items()] for table in (inputs, outputs)]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "hand-made", *infos, initializer=weights)
    path.parent.mkdir(exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)


def _bank_folder(
    tiny_engine: Path, folder: Path, shared: bool, dtype: type = np.float32, any_size: bool = False
) -> Path:
    """The tiny engine with a hand-made bank UNet in place of its own:

    out_sample[r] = sample[image of r] + timestep + mean over L and columns of (keys - 2 values)[prompt of r]

    With `any_size` its VAE is hand-made too: pixels are the first three latent channels, each 8 x 8 times.
    """
    shutil.copytree(tiny_engine, folder)
    shutil.rmtree(folder / "unet", ignore_errors=True)
    real = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    width = np.arange(TEXT_WIDTH * COLUMNS).reshape(TEXT_WIDTH, COLUMNS).astype(dtype) / 100
    node = helper.make_node
    _save(
        folder / "prompt_bank" / "model.onnx",
        [
            node("MatMul", ["encoder_hidden_states", "w"], ["keys"]),
            node("Mul", ["keys", "keys"], ["values"]),
            node("Unsqueeze", ["keys", "one"], ["k"]),
            node("Unsqueeze", ["values", "one"], ["v"]),
            node("Concat", ["k", "v"], ["kv_bank"], axis=1),
        ],
        {"encoder_hidden_states": (real, ["prompts", MAX_TOKENS, TEXT_WIDTH])},
        {"kv_bank": (real, ["prompts", 2, MAX_TOKENS, COLUMNS])},
        w=width,
        one=np.array([1]),
    )
    image = {"image_index": (TensorProto.INT64, ["rows"])} if shared else {}
    _save(
        folder / "unet" / "model.onnx",
        [
            node("Gather", ["kv_bank", "prompt_index"], ["mine"]),
            node("Mul", ["mine", "sides"], ["weighed"]),
            node("ReduceMean", ["weighed", "axes"], ["prompt"], keepdims=0),
            node("Reshape", ["prompt", "column"], ["p"]),
            node("Cast", ["timestep"], ["t"], to=real),
            node("Gather", ["sample", "image_index"], ["x"]) if shared else node("Identity", ["sample"], ["x"]),
            node("Sum", ["x", "t", "p"], ["out_sample"]),
        ],
        {
            "sample": (real, ["images", C, "height", "width"]),
            "timestep": (TensorProto.INT64, [1]),
            "kv_bank": (real, ["prompts", 2, MAX_TOKENS, COLUMNS]),
            "prompt_index": (TensorProto.INT64, ["rows"]),
            **image,
        },
        {"out_sample": (real, ["rows", C, "height", "width"])},
        sides=np.array([1, -2], dtype=dtype).reshape(1, 2, 1, 1),
        axes=np.array([1, 2, 3]),
        column=np.array([-1, 1, 1, 1]),
    )
    shutil.copyfile(tiny_engine / "unet" / "config.json", folder / "unet" / "config.json")
    if any_size:
        _free_vae(folder)
    spec = json.loads((folder / "engine.json").read_text())
    spec.update(form="bank", removed=["shared_prefix"] if shared else [], any_size=any_size)
    spec["precision"] = "fp32" if dtype is np.float32 else "fp16"
    spec["files"]["prompt_bank"] = "prompt_bank/model.onnx"
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    reports = ("engine.json", "parity.json", "export.json")
    spec["sha256"] = {name: sha256_file(folder / name) for name in names if name not in reports}
    (folder / "engine.json").write_text(json.dumps(spec))
    return folder


def _free_vae(folder: Path) -> None:
    for data in folder.glob("vae_*/model.onnx*"):
        data.unlink()
    node, real = helper.make_node, TensorProto.FLOAT
    _save(
        folder / "vae_decoder" / "model.onnx",
        [
            node("Slice", ["latent_sample", "from", "to", "axis"], ["rgb"]),
            node("Resize", ["rgb", "", "scales"], ["sample"], mode="nearest"),
        ],
        {"latent_sample": (real, ["rows", C, "h", "w"])},
        {"sample": (real, ["rows", 3, "height", "width"])},
        **{"from": np.array([0]), "to": np.array([3]), "axis": np.array([1])},
        scales=np.array([1, 1, 8, 8], dtype=np.float32),
    )
    _save(
        folder / "vae_encoder" / "model.onnx",
        [
            node("AveragePool", ["sample"], ["small"], kernel_shape=[8, 8], strides=[8, 8]),
            node("Concat", ["small"] * 6, ["many"], axis=1),
            node("Slice", ["many", "from", "to", "axis"], ["latent_parameters"]),
        ],
        {"sample": (real, ["rows", 3, "height", "width"])},
        {"latent_parameters": (real, ["rows", 2 * C, "h", "w"])},
        **{"from": np.array([0]), "to": np.array([2 * C]), "axis": np.array([1])},
    )


def _expected(latents: torch.Tensor, timestep: int, embeddings: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    width = torch.arange(TEXT_WIDTH * COLUMNS).reshape(TEXT_WIDTH, COLUMNS).double() / 100
    keys = embeddings.double() @ width
    prompt = (torch.stack([keys, -2 * keys**2], 1)).mean((1, 2, 3))
    rows = torch.arange(len(index)) % len(latents)
    return latents.double()[rows] + timestep + prompt[index].reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("shared", [False, True])
def test_each_row_gets_its_latent_and_its_prompt(tiny_engine: Path, tmp_path: Path, shared: bool) -> None:
    engine = load_engine(_bank_folder(tiny_engine, tmp_path / "engine", shared), device="cpu")
    assert isinstance(engine, EngineBase)
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(70, MAX_TOKENS, TEXT_WIDTH, generator=generator) / 10  # more than go through at once
    bank = engine.condition(embeddings)
    assert bank.states.shape == (70, 2, MAX_TOKENS, COLUMNS)
    latents = torch.randn(3, *LATENT_SHAPE, generator=generator)
    for index in (torch.tensor([69, 0, 12]), torch.tensor([5, 5, 5, 69, 0, 12])):
        noise = engine.eps(latents, 321, bank, index)
        # float32: the largest term is the timestep, and 7 values are added up in any order.
        torch.testing.assert_close(
            noise.double(), _expected(latents, 321, embeddings, index), rtol=0, atol=321 * 2**-21
        )


def test_half_precision_stays_inside_the_engine(tiny_engine: Path, tmp_path: Path) -> None:
    folder = _bank_folder(tiny_engine, tmp_path / "engine", shared=True, dtype=np.float16)
    engine = load_engine(folder, device="cpu")
    embeddings = torch.randn(2, MAX_TOKENS, TEXT_WIDTH, generator=torch.Generator().manual_seed(1)) / 10
    bank = engine.condition(embeddings)
    assert bank.states.dtype == torch.float16 and engine.spec.precision == "fp16"
    latents, index = torch.zeros(1, *LATENT_SHAPE), torch.tensor([0, 1])
    noise = engine.eps(latents, 4, bank, index)
    assert noise.dtype == torch.float32
    expected = _expected(latents, 4, embeddings, index)
    torch.testing.assert_close(noise.double(), expected, rtol=2**-7, atol=2**-7)
    with pytest.raises(DiveError, match="precision fp32: the engine is fp16"):
        load_engine(folder, device="cpu", precision="fp32")


def test_a_graph_of_another_form_than_engine_json_says_is_refused(tiny_engine: Path, tmp_path: Path) -> None:
    folder = _bank_folder(tiny_engine, tmp_path / "engine", shared=True)
    spec = json.loads((folder / "engine.json").read_text())
    (folder / "engine.json").write_text(json.dumps({**spec, "removed": []}))
    with pytest.raises(
        InputError, match="image_index and gives out_sample, where sample, timestep, kv_bank, prompt_index"
    ):
        load_engine(folder)
    spec["files"].pop("prompt_bank")
    (folder / "engine.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match="no file with a hash for prompt_bank"):
        load_engine(folder)


def test_free_graphs_take_any_size_that_passes_the_levels(tiny_engine: Path, tmp_path: Path) -> None:
    folder = _bank_folder(tiny_engine, tmp_path / "engine", shared=True, any_size=True)
    engine, own = load_engine(folder, size=(32, 48)), load_engine(folder)
    assert engine.latent_shape == (8, 4, 6) and own.latent_shape == LATENT_SHAPE
    assert engine.fingerprint == own.fingerprint
    assert engine.unsupported(Request(4, 32, 48)) == [] and engine.unsupported(Request(4, 64, 32))
    embeddings = torch.zeros(1, MAX_TOKENS, TEXT_WIDTH)
    latents = torch.randn(2, 8, 4, 6, generator=torch.Generator().manual_seed(0)) / 10
    noise = engine.eps(latents, 1, engine.condition(embeddings), torch.tensor([0, 0]))
    torch.testing.assert_close(noise, latents + 1, rtol=0, atol=2**-22)
    images = engine.decode(latents)
    assert images.shape == (2, 32, 48, 3)
    again = engine.encode(images)[:, :3]  # to 8 bits and back, where the picture is within -1..1
    inside = (latents[:, :3] / SCALING).clamp(-1, 1) * SCALING
    torch.testing.assert_close(again, inside, rtol=0, atol=SCALING / 255 + 1e-6)
    with pytest.raises(InputError, match="width 40 is not a multiple of 16 = 8 x 2"):
        load_engine(folder, size=(64, 40))
    with pytest.raises(DiveError, match=r"size 32x48: the engine is 64x32 \(height x width\), export another"):
        load_engine(tiny_engine, size=(32, 48))
