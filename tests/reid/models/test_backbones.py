"""Backbones: non-local blocks, vision transformers against transformers' own forward, and pretrained weights from files."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dive_fast.reid.data.augment import normalise
from dive_fast.reid.models import convolutional as backbones_conv
from dive_fast.reid.models.backbones import BACKBONES
from dive_fast.reid.models.config import ModelConfig
from dive_fast.reid.models.convolutional import NonLocal
from dive_fast.reid.models.vit import CLIP, HALF, SIZES, clip, resize_positions, vit
from dive_fast.reid.models.weights import read_state, resnet50_state
from dive_fast.types import DiveError
from tests.support.checkpoints import torchvision_state
from tests.support.refusals import refused

TINY = dict(zip(SIZES, (24, 2, 3, 40, 16), strict=True))
IMAGE = (64, 32)


@pytest.mark.parametrize("shape", [(2, 8, 3, 1), (2, 6, 5, 4)], ids=["3 positions, 4 inner", "20 positions, 3 inner"])
def test_nonlocal_is_what_the_paper_says(shape):
    torch.manual_seed(0)
    block = NonLocal(shape[1]).double().eval()
    nn.init.normal_(block.out[1].weight)
    nn.init.normal_(block.out[1].bias)
    maps = torch.randn(shape, dtype=torch.float64)

    def project(conv, x):  # a 1 x 1 convolution of [positions, channels]
        return x @ conv.weight.detach().numpy()[:, :, 0, 0].T + conv.bias.detach().numpy()

    expected = np.empty(shape)
    for b in range(shape[0]):
        x = maps[b].flatten(1).T.numpy()
        query, key, value = (project(conv, x) for conv in (block.query, block.key, block.value))
        mixed = np.zeros_like(value)
        for i in range(len(x)):
            for j in range(len(x)):
                mixed[i] += query[i] @ key[j] * value[j] / len(x)
        scale = block.out[1].weight.detach().numpy() / np.sqrt(1 + block.out[1].eps)  # running mean 0, variance 1
        y = project(block.out[0], mixed) * scale + block.out[1].bias.detach().numpy()
        expected[b] = (x + y).T.reshape(shape[1:])
    np.testing.assert_allclose(block(maps).detach().numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pocket", "resnet50"])
def test_new_nonlocal_blocks_change_nothing(name):
    maps = []
    images = torch.randn(2, 3, *IMAGE, generator=torch.Generator().manual_seed(1))
    for blocks in (False, True):
        torch.manual_seed(0)
        visible, _, trunk, _ = BACKBONES[name].build(ModelConfig(name, *IMAGE, stripes=1, nonlocal_blocks=blocks))
        assert any(isinstance(layer, NonLocal) for layer in trunk) == blocks
        with torch.inference_mode():
            maps.append(trunk.eval()(visible.eval()(images)))
    assert torch.equal(*maps)


def test_agw_has_2_blocks_in_the_second_stage_and_3_in_the_third():
    trunk = BACKBONES["resnet50"].build(ModelConfig("resnet50", *IMAGE, stripes=1, nonlocal_blocks=True))[2]
    marks = "".join("n" if isinstance(layer, NonLocal) else "r" for layer in trunk)
    assert marks == "rrr" + "rrrnrn" + "rrrrnrnrn" + "rrr"
    assert [m.query.in_channels for m in trunk if isinstance(m, NonLocal)] == [512] * 2 + [1024] * 3


def functional_resnet50(images: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """Maps ahead of the pooling, in evaluation mode: stride 2 in the 3 x 3 convolutions of stages 2 and 3, 1 in stage 4."""

    def unit(x, conv, norm, stride=1):
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
        return F.batch_norm(x, *(state[f"{norm}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")))

    x = F.max_pool2d(F.relu(unit(images, "conv1", "bn1", 2)), 3, 2, 1)
    for stage, depth in enumerate((3, 4, 6, 3), start=1):
        for block in range(depth):
            where, stride = f"layer{stage}.{block}", 2 if block == 0 and stage in (2, 3) else 1
            y = F.relu(unit(x, f"{where}.conv1", f"{where}.bn1"))
            y = F.relu(unit(y, f"{where}.conv2", f"{where}.bn2", stride))
            y = unit(y, f"{where}.conv3", f"{where}.bn3")
            if block == 0:
                x = unit(x, f"{where}.downsample.0", f"{where}.downsample.1", stride)
            x = F.relu(x + y)
    return x


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "old"), [(".safetensors", False), (".pth", True)])
def test_torchvision_weights_land(tmp_path, suffix, old):
    state, file = torchvision_state(old), tmp_path / f"resnet50{suffix}"
    if suffix == ".pth":
        torch.save(state, file)
    else:
        from safetensors.torch import save_file

        save_file(state, file)
    visible, infrared, trunk, channels = BACKBONES["resnet50"].build(
        ModelConfig("resnet50", *IMAGE, stripes=1, weights=str(file), nonlocal_blocks=True)
    )
    assert channels == 2048
    images = torch.randn(2, 3, *IMAGE, generator=torch.Generator().manual_seed(0))
    expected = functional_resnet50(images, state)
    assert expected.shape == (2, 2048, 4, 2)
    for stem in (visible.eval(), infrared.eval()):
        with torch.no_grad():
            maps = trunk.eval()(stem(images))
        torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda s: s.pop("layer3.5.conv2.weight"),
            r"lacks .?encoder\.stages\.2\.layers\.5\.layer\.1\.convolution\.weight",
        ),
        (lambda s: s.update({"layer3.6.conv1.weight": torch.zeros(1)}), r"unknown .?encoder\.stages\.2\.layers\.6"),
        (lambda s: s.update({"conv1.weight": torch.zeros(64, 1, 7, 7)}), "another shape of .?embedder"),
    ],
    ids=["missing", "left over", "shape"],
)
def test_another_state_dict_is_refused(spoil, message):
    from transformers import ResNetConfig, ResNetModel

    with torch.device("meta"):
        wanted = ResNetModel(ResNetConfig()).state_dict()

    state = torchvision_state()
    spoil(state)
    refused(message, resnet50_state, state, wanted, "net.pth")


def test_pickles_are_not_run_and_damaged_files_are_named(tmp_path):
    class Runs:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"conv1.weight": Runs()}, tmp_path / "evil.pth")
    (tmp_path / "half.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    torch.save({"conv1.weight": torch.zeros(1), "epoch": 3}, tmp_path / "more.pth")
    for name in ("evil.pth", "half.safetensors", "more.pth"):
        refused(name, read_state, tmp_path / name)
    assert not (tmp_path / "ran").exists()


def save_vit(folder: Path, whole: bool = False, **changes):
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    torch.manual_seed(5)
    config = ViTConfig(**{**TINY, "image_size": 64, **changes})
    saved = ViTForImageClassification(config) if whole else ViTModel(config, add_pooling_layer=False)
    net = saved.vit if whole else saved
    nn.init.normal_(net.embeddings.patch_embeddings.projection.bias)
    saved.save_pretrained(folder)
    return net.eval()


def save_clip(folder: Path, whole: bool = False, **changes):
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(5)
    vision = {**TINY, "image_size": 64, **changes}
    if not whole:
        net = CLIPVisionModel(CLIPVisionConfig(**vision))
        net.save_pretrained(folder)
        return net.eval()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text = {**sizes, "num_attention_heads": 2, "vocab_size": 9}
    both = CLIPModel(CLIPConfig(vision_config=vision, text_config=text))
    both.save_pretrained(folder)
    return both.vision_model.eval()


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, *IMAGE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def tokens_of(build, name: str, folder: Path) -> torch.Tensor:
    torch.manual_seed(0)
    visible, infrared, trunk, channels = build(ModelConfig(name, *IMAGE, "cls", 1, str(folder)), TINY)
    assert channels == TINY["hidden_size"]
    images = normalise(pixels())
    with torch.no_grad():
        ways = [trunk.eval()(stem.eval()(images)) for stem in (visible, infrared)]
    assert visible.projection.weight is not infrared.projection.weight and torch.equal(*ways)
    return ways[0]


def as_expected(mean, std) -> torch.Tensor:
    return (pixels() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@pytest.mark.parametrize("whole", [False, True], ids=["ViT", "with its classifier"])
@pytest.mark.parametrize("size", [64, [32, 96]], ids=["square", "wide"])
def test_vit_equals_transformers(tmp_path, whole, size):
    net = save_vit(tmp_path, whole, image_size=size)
    if size != 64:  # transformers interpolates from squares only
        grid, target = (2, 6), (IMAGE[0] // TINY["patch_size"], IMAGE[1] // TINY["patch_size"])
        positions = resize_positions(net.embeddings.position_embeddings[0], grid, target)
        net.embeddings.interpolate_pos_encoding = lambda *_: positions[None]
    with torch.no_grad():
        expected = net(as_expected(*HALF), interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(tokens_of(vit, "vit-b16", tmp_path), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("whole", [False, True], ids=["vision model", "whole CLIP"])
def test_clip_equals_transformers(tmp_path, whole):
    net = save_clip(tmp_path, whole)
    with torch.no_grad():
        output = net(as_expected(*CLIP), interpolate_pos_encoding=True)
    tokens = tokens_of(clip, "clip-vit-b16", tmp_path)
    torch.testing.assert_close(tokens[:, 0], output.pooler_output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens, net.post_layernorm(output.last_hidden_state).detach(), rtol=1e-4, atol=1e-5)


def test_the_folder_says_how_its_images_are_normalised(tmp_path):
    net = save_vit(tmp_path)
    own = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(own))
    with torch.no_grad():
        expected = net(as_expected(*own.values()), interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(tokens_of(vit, "vit-b16", tmp_path), expected, rtol=1e-4, atol=1e-5)
    for wrong in ({}, {"image_mean": [0.5], "image_std": [0.5]}, {**own, "image_std": [0.4, 0, 0.6]}, []):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(wrong))
        refused("preprocessor_config.json.*image_mean", tokens_of, vit, "vit-b16", tmp_path)


def test_half_precision_weights_are_loaded_in_float32(tmp_path):
    net = save_vit(tmp_path)
    net.half().save_pretrained(tmp_path)
    assert tokens_of(vit, "vit-b16", tmp_path).dtype == torch.float32


def cubic(x: float) -> float:
    """Keys' kernel with a = -0.75, torch's."""
    x, a = abs(x), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def test_positions_are_resized_bicubically():
    (h, w), (rows, columns) = (4, 3), (6, 2)
    positions = torch.randn(1 + h * w, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    resized = resize_positions(positions, (h, w), (rows, columns))
    assert torch.equal(resized[0], positions[0])
    assert torch.equal(resize_positions(positions, (h, w), (h, w)), positions)
    for r in range(rows):
        for c in range(columns):
            y, x = (r + 0.5) * h / rows - 0.5, (c + 0.5) * w / columns - 0.5
            total = torch.zeros(5, dtype=torch.float64)
            for i in range(int(np.floor(y)) - 1, int(np.floor(y)) + 3):
                for j in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
                    at = min(max(i, 0), h - 1) * w + min(max(j, 0), w - 1)
                    total += cubic(y - i) * cubic(x - j) * positions[1 + at]
            torch.testing.assert_close(resized[1 + r * columns + c], total)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 48}, "hidden_size is 48, expected 24"),
        ({"patch_size": 32}, "patch_size is 32, expected 16"),
        ({"hidden_act": "relu", "qkv_bias": False}, "hidden_act is relu, expected gelu; its qkv_bias is False"),
    ],
)
def test_another_vit_is_refused(tmp_path, changes, message):
    save_vit(tmp_path, **changes)
    refused(message, tokens_of, vit, "vit-b16", tmp_path)


def test_other_folders_are_refused(tmp_path):
    from transformers import ResNetConfig, ResNetModel

    save_clip(tmp_path / "clip")
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4)).save_pretrained(tmp_path / "net")
    (tmp_path / "empty").mkdir()
    for folder, message in (
        ("clip", "'clip_vision_model', expected 'vit'"),
        ("net", "'resnet'"),
        ("empty", "config.json"),
    ):
        refused(message, tokens_of, vit, "vit-b16", tmp_path / folder)
    save_vit(tmp_path / "vit")
    for config, message in (
        ("[]", "model_type None"),
        ("{", "not valid JSON"),
        ('{"model_type": "vit", "hidden_size": "wide"}', "cannot be read as a ViT"),
    ):
        (tmp_path / "empty" / "config.json").write_text(config)
        refused(message, tokens_of, vit, "vit-b16", tmp_path / "empty")
    refused("'vit', expected 'clip_vision_model' or 'clip'", tokens_of, clip, "clip-vit-b16", tmp_path / "vit")


def test_damaged_weights_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    save_vit(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    name = next(n for n in sorted(state) if "layernorm_after" in n)
    save_file({n: t for n, t in state.items() if n != name}, file, metadata={"format": "pt"})
    refused("lacks 1 tensors .*layernorm_after", tokens_of, vit, "vit-b16", tmp_path)
    save_file({**state, name: torch.zeros(7)}, file, metadata={"format": "pt"})
    refused(tmp_path.name, tokens_of, vit, "vit-b16", tmp_path)
    file.write_bytes(file.read_bytes()[:1000])
    refused(tmp_path.name, tokens_of, vit, "vit-b16", tmp_path)
    file.unlink()
    refused(tmp_path.name, tokens_of, vit, "vit-b16", tmp_path)


def test_a_pipe_in_the_place_of_weights_is_not_waited_for(tmp_path):
    save_vit(tmp_path)
    for name in ("model.safetensors", "weights.pt"):
        (tmp_path / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name)
    refused("model.safetensors", tokens_of, vit, "vit-b16", tmp_path)
    refused("weights.pt", read_state, tmp_path / "weights.pt")
    refused("missing.pt does not exist", read_state, tmp_path / "missing.pt")


def test_a_state_dict_has_names(tmp_path):
    torch.save({5: torch.zeros(2)}, tmp_path / "weights.pt")
    refused("weights.pt", read_state, tmp_path / "weights.pt")


def test_missing_transformers_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    message, config = re.escape("pip install 'dive-fast[torch]'"), ModelConfig("resnet50", *IMAGE)
    refused(message, backbones_conv.resnet50, config, error=DiveError)
