"""Networks: modality routing, pooling, the BNNeck, and ResNet-50 with its last stride removed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dive_fast.reid.model import ModelConfig, Pool, ReidModel
from dive_fast.types import InputError


def batch(size=6, height=64, width=32):
    torch.manual_seed(0)
    return torch.randn(size, 3, height, width), torch.arange(size) % 3 == 1


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ReidModel(ModelConfig(height=64, width=32, stripes=2), classes=5).eval()


def test_shapes_and_unit_embeddings(model):
    images, infrared = batch()
    features, logits = model(images, infrared)
    assert features.shape[0] == 6 and logits.shape == (6, 5)
    embeddings = model.embed(images, infrared)
    assert embeddings.shape == features.shape
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(6))


def test_each_image_takes_its_own_stem_and_keeps_its_row(model):
    images, infrared = batch()
    together = model.embed(images, infrared)
    for row in range(6):
        alone = model.embed(images[row : row + 1], infrared[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-4)
    other = model.embed(images, ~infrared)
    assert ((other - together).abs().amax(1) > 1e-3).all()


def test_gem_and_average_pooling_by_definition():
    torch.manual_seed(0)
    maps = torch.rand(2, 3, 4, 5)
    gem, average = Pool("gem", 2)(maps), Pool("avg", 1)(maps)
    torch.testing.assert_close(average, maps.mean((2, 3)))
    halves = torch.stack([(maps[:, :, :2] ** 3).mean((2, 3)), (maps[:, :, 2:] ** 3).mean((2, 3))], -1) ** (1 / 3)
    torch.testing.assert_close(gem, halves.flatten(1))


def test_resnet50_keeps_fine_maps_and_has_two_stems():
    torch.manual_seed(0)
    model = ReidModel(ModelConfig("resnet50", 64, 32, stripes=1), classes=3).eval()
    images, infrared = batch(2)
    maps = model.trunk(model.visible(images))
    assert maps.shape == (2, 2048, 4, 2)  # 64 / 16: the last stride is 1
    assert model(images, infrared)[1].shape == (2, 3)
    stems = [
        next(m for m in stem.modules() if isinstance(m, nn.Conv2d)).weight for stem in (model.visible, model.infrared)
    ]
    assert stems[0] is not stems[1] and torch.equal(*stems)


def test_resnet50_from_local_weights(tmp_path):
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(1)
    saved = ResNetModel(ResNetConfig())
    saved.save_pretrained(tmp_path / "net")
    model = ReidModel(ModelConfig("resnet50", 64, 32, weights=str(tmp_path / "net")), classes=3)
    name = "embedder.convolution.weight"
    for stem in (model.visible, model.infrared):
        assert torch.equal(stem.state_dict()[name], saved.embedder.state_dict()[name])
    with pytest.raises(InputError, match="nothing"):
        ReidModel(ModelConfig("resnet50", weights=str(tmp_path / "nothing")), classes=3)
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])).save_pretrained(
        tmp_path / "shallow"
    )
    with pytest.raises(InputError, match="not a ResNet-50"):
        ReidModel(ModelConfig("resnet50", weights=str(tmp_path / "shallow")), classes=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "vit"}, "vit"),
        ({"pooling": "max"}, "max"),
        ({"height": 16}, "32x32"),
        ({"stripes": 0}, "stripes"),
        ({"height": 64, "stripes": 5}, "stripes"),
        ({"weights": "somewhere"}, "resnet50"),
    ],
)
def test_bad_config(change, message):
    with pytest.raises(InputError, match=message):
        ModelConfig(**change)
