"""A folder as optimum exports it: the tiny engine's graphs under optimum's names, ranks and extra outputs.

`make interop` does this with optimum itself.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from dive_fast.engines import load_engine
from dive_fast.types import DiveError, InputError
from tests.support.tiny import HEIGHT, MODEL_INDEX, WIDTH


@pytest.fixture
def folder(tiny_engine: Path, tmp_path: Path) -> Path:
    """Scalar timestep of type float, pooled output of the text encoder, no engine.json and no prompts.json."""
    folder = tmp_path / "export"
    reports = shutil.ignore_patterns("engine.json", "parity.json", "export.json", "prompts.json")
    shutil.copytree(tiny_engine, folder, ignore=reports)
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX))
    unet = onnx.load(folder / "unet/model.onnx", load_external_data=False)
    for node in unet.graph.node:
        node.input[:] = ["timestep_1" if name == "timestep" else name for name in node.input]
    [timestep] = [value for value in unet.graph.input if value.name == "timestep"]
    timestep.CopyFrom(helper.make_tensor_value_info("timestep", TensorProto.FLOAT, []))
    unet.graph.initializer.append(helper.make_tensor("one", TensorProto.INT64, [1], [1]))
    unet.graph.node.insert(0, helper.make_node("Cast", ["timestep"], ["timestep_0"], to=TensorProto.INT64))
    unet.graph.node.insert(1, helper.make_node("Reshape", ["timestep_0", "one"], ["timestep_1"]))
    onnx.save(unet, folder / "unet/model.onnx")
    text = onnx.load(folder / "text_encoder/model.onnx", load_external_data=False)
    text.graph.node.append(helper.make_node("ReduceMax", ["last_hidden_state"], ["pooler_output"], keepdims=0))
    text.graph.output.insert(0, helper.make_tensor_value_info("pooler_output", TensorProto.FLOAT, []))
    onnx.save(text, folder / "text_encoder/model.onnx")
    return folder


def test_it_computes_what_our_own_export_computes(folder: Path, tiny_engine: Path) -> None:
    shutil.copyfile(tiny_engine / "prompts.json", folder / "prompts.json")
    ours, theirs = load_engine(tiny_engine, device="cpu"), load_engine(folder, device="cpu")
    assert "backend: the folder holds an export by optimum" in theirs.describe()
    assert theirs.latent_shape == ours.latent_shape and theirs.spec.precision == "fp32"
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, *ours.latent_shape, generator=generator)
    photos = torch.randint(0, 256, (2, HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=generator)
    answers = []
    for engine in (ours, theirs):
        embeddings, index = engine.prompts.encode(engine.encode_text, [None, ("0001", "cam3"), ("0002", "cam1")])
        noise = engine.eps(latents, 700, engine.condition(embeddings), torch.tensor([0, 0, 1, 2]))
        answers.append((embeddings, index, noise, engine.decode(latents), engine.encode(photos)))
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))


def test_without_prompts_it_knows_the_empty_prompt_only(folder: Path) -> None:
    engine = load_engine(folder)
    assert engine.encode_text(engine.prompts.token_ids([None])).shape == (1, 32, 32)
    with pytest.raises(InputError, match="0 cameras"):
        engine.prompts.table.prompt("0001", "cam1")


def test_its_fingerprint_is_that_of_its_files(folder: Path, tmp_path: Path) -> None:
    first = load_engine(folder).fingerprint
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    assert load_engine(moved).fingerprint == first
    config = moved / "scheduler/scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    assert load_engine(moved).fingerprint != first


def test_what_the_graphs_cannot_give_is_refused(folder: Path) -> None:
    with pytest.raises(DiveError, match=r"precision fp16: .* fp32; size 32x48: .* 64x32"):
        load_engine(folder, precision="fp16", size=(32, 48))
    with pytest.raises(InputError, match="backend 'torch'"):
        load_engine(folder, "torch")


def test_other_layouts_are_named(folder: Path) -> None:
    (folder / "vae_encoder/model.onnx").rename(folder / "vae_encoder/other.onnx")
    with pytest.raises(InputError, match=r"vae_encoder/model.onnx; .*optimum-cli export"):
        load_engine(folder)
    (folder / "vae_encoder/other.onnx").rename(folder / "vae_encoder/model.onnx")
    for file in (folder / "text_encoder").glob("model.onnx*"):
        shutil.copyfile(file, folder / "vae_decoder" / file.name)
    with pytest.raises(InputError, match=r"vae_decoder/model.onnx reads input_ids .*latent_sample -> sample"):
        load_engine(folder)
    (folder / "model_index.json").write_text(json.dumps({**MODEL_INDEX, "text_encoder_2": ["transformers", "X"]}))
    with pytest.raises(InputError, match="text_encoder_2"):
        load_engine(folder)
    (folder / "model_index.json").write_text("[]")
    with pytest.raises(InputError, match=r"model_index.json .*list"):
        load_engine(folder)
