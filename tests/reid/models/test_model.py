"""Networks: modality routing, pooling, the BNNeck, half precision, and what each backbone makes of a config."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dive_fast.reid.evaluation.evaluate import evaluate_reid
from dive_fast.reid.models import convolutional, vit
from dive_fast.reid.models.backbones import BACKBONES, Backbone
from dive_fast.reid.models.config import ModelConfig
from dive_fast.reid.models.convolutional import NonLocal
from dive_fast.reid.models.model import Pool, ReidModel, TokenPool
from dive_fast.reid.training.checkpoint import load_model
from dive_fast.reid.training.recipes import recipe
from dive_fast.reid.training.train import train_reid
from tests.support.refusals import refused

SMALL = {
    "pocket": ModelConfig(height=64, width=32, stripes=2),
    "pocket with non-local": ModelConfig(height=64, width=32, stripes=1, nonlocal_blocks=True),
    "pocket-vit by token": ModelConfig("pocket-vit", 64, 32, "cls", stripes=1),
    "pocket-vit by patches": ModelConfig("pocket-vit", 64, 32, "avg", stripes=2),
}


def batch(size=6, height=64, width=32):
    torch.manual_seed(0)
    return torch.randn(size, 3, height, width), torch.arange(size) % 3 == 1


@pytest.fixture(params=SMALL.values(), ids=SMALL.keys())
def model(request):
    torch.manual_seed(0)
    return ReidModel(request.param, classes=5).eval()


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL.keys())
def test_shapes_and_unit_embeddings(config):
    model = ReidModel(config, classes=5).eval()
    images, infrared = batch()
    features, logits = model(images, infrared)
    assert features.shape == (6, 96 * config.stripes) and logits.shape == (6, 5)
    embeddings = model.embed(images, infrared)
    assert embeddings.shape == features.shape
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(6))


def test_each_image_takes_its_own_stem_and_keeps_its_row(model):
    for parameter in model.infrared.parameters():  # a transformer's stems start equal
        nn.init.normal_(parameter, std=0.05)
    images, infrared = batch()
    together = model.embed(images, infrared)
    for row in range(6):
        alone = model.embed(images[row : row + 1], infrared[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-4)
    other = model.embed(images, ~infrared)
    assert ((other - together).abs().amax(1) > 1e-3).all()


def test_gradients_reach_the_stems_of_the_modalities_that_are_there(model):
    images, infrared = batch()
    model.train()
    for rows, absent in ((~infrared, "infrared"), (infrared, "visible"), (infrared | True, "neither")):
        model.zero_grad()
        features, logits = model(images[rows], infrared[rows])
        (features.square().sum() + F.cross_entropy(logits, torch.arange(len(logits)) % 5)).backward()
        for name, parameter in model.named_parameters():
            part = name.split(".")[0]
            assert (parameter.grad is None) == (part == absent or not parameter.requires_grad), name
            assert part not in ("visible", "infrared") or part == absent or parameter.grad.abs().max() > 0, name


@pytest.mark.slow
def test_small_models_learn_eight_people(model):
    """Colours in visible and brightness in infrared of 8 people: a model with a broken path does not fit them."""
    generator = torch.Generator().manual_seed(0)
    people = torch.rand(8, 3, 3, 1, generator=generator) * 4 - 2  # a colour for each of three bands
    colour = people.repeat_interleave(torch.tensor([22, 21, 21]), 2).expand(8, 3, 64, 32)
    images = torch.cat([colour, colour.mean(1, keepdim=True).expand(-1, 3, -1, -1)])
    infrared, labels = torch.arange(16) >= 8, torch.arange(16) % 8
    torch.manual_seed(0)
    model.classifier = nn.Linear(model.neck.num_features, 8, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(30):
        noisy = images + 0.2 * torch.randn(images.shape, generator=generator)
        loss = F.cross_entropy(model(noisy, infrared)[1], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2  # from log 8 = 2.08
    for block in model.modules():
        if isinstance(block, NonLocal):
            assert block.out[1].weight.abs().max() > 1e-3


def test_pooling_by_definition():
    torch.manual_seed(0)
    maps = torch.rand(2, 3, 4, 5)
    gem, average = Pool("gem", 2)(maps), Pool("avg", 1)(maps)
    torch.testing.assert_close(average, maps.mean((2, 3)))
    halves = torch.stack([(maps[:, :, :2] ** 3).mean((2, 3)), (maps[:, :, 2:] ** 3).mean((2, 3))], -1) ** (1 / 3)
    torch.testing.assert_close(gem, halves.flatten(1))
    tokens = torch.rand(2, 1 + 4 * 5, 3)
    assert torch.equal(TokenPool("cls", 1, (4, 5))(tokens), tokens[:, 0])
    bands = torch.stack([tokens[:, 1:11].mean(1), tokens[:, 11:].mean(1)], -1)  # the first two rows of five patches
    torch.testing.assert_close(TokenPool("avg", 2, (4, 5))(tokens), bands.flatten(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_stay_finite_and_float32_under_autocast(model, dtype):
    images, infrared = batch()
    last = [m for m in model.trunk.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm) and m.weight.any()][-1]
    nn.init.constant_(last.weight, 3000.0)  # the cube of such maps is beyond float16's 65504
    plain = model(images, infrared)[0]
    assert plain.max() > 65504 ** (1 / 3)
    with torch.autocast("cpu", dtype):
        features, logits = model(images, infrared)
        embeddings = model.embed(images, infrared)
    assert features.dtype == logits.dtype == embeddings.dtype == torch.float32
    assert (features - plain).norm() < 0.05 * plain.norm()
    (features.mean() + logits.mean()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_pocket_keeps_its_names_and_its_draws():
    """Committed results rest on this net: what it is called in checkpoints, and which random numbers go where."""
    torch.manual_seed(3)
    state = ReidModel(ModelConfig(), classes=7).state_dict()
    torch.manual_seed(3)
    layers = (
        "visible.0 infrared.0 trunk.0.0 trunk.1.first.0 trunk.1.second.0 trunk.2.0 trunk.3.first.0 trunk.3.second.0"
    )
    channels = (3, 24), (3, 24), (24, 48), (48, 48), (48, 48), (48, 96), (96, 96), (96, 96)
    sizes = dict(zip(layers.split(), channels, strict=True))
    expected = {f"{name}.weight": nn.Conv2d(*size, 3, bias=False).weight for name, size in sizes.items()}
    expected["classifier.weight"] = nn.Linear(288, 7, bias=False).weight
    nn.init.normal_(expected["classifier.weight"], std=0.001)
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
    norms = [name[:-1] + str(int(name[-1]) + 1) for name in sizes] + ["neck"]
    leaves = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert set(state) == {*expected, "pool.exponent", *(f"{norm}.{leaf}" for norm in norms for leaf in leaves)}


def test_agw_in_detail():
    torch.manual_seed(0)
    model = ReidModel(ModelConfig("resnet50", 64, 32, stripes=1, nonlocal_blocks=True), classes=300).eval()
    images, infrared = batch(2)
    maps = model.trunk(model.visible(images))
    assert maps.shape == (2, 2048, 4, 2)  # 64 / 16: the last stride is 1
    assert model(images, infrared)[1].shape == (2, 300)
    stems = [
        next(m for m in stem.modules() if isinstance(m, nn.Conv2d)).weight for stem in (model.visible, model.infrared)
    ]
    assert stems[0] is not stems[1] and torch.equal(*stems)
    assert model.pool.exponent.item() == 3 and model.pool.exponent.requires_grad
    assert not model.neck.bias.requires_grad and not model.neck.bias.any() and model.neck.weight.requires_grad
    assert model.classifier.bias is None
    assert model.classifier.weight.std().item() == pytest.approx(0.001, rel=0.01)  # of 614,400 draws


@pytest.mark.slow
@pytest.mark.parametrize(("name", "extra"), [("vit-b16", 0), ("clip-vit-b16", 2 * 768)])
def test_base_transformers_have_their_published_size(name, extra):
    """85,798,656 parameters at 224 x 224 in a ViT-B/16 without its head; CLIP has a norm more ahead of its layers."""
    model = ReidModel(ModelConfig(name, 256, 128, "cls", stripes=1), classes=2).eval()
    counted = sum(p.numel() for part in (model.visible, model.trunk) for p in part.parameters())
    assert counted == 85_798_656 - (14 * 14 - 16 * 8) * 768 + extra
    images, infrared = batch(2, 256, 128)
    with torch.inference_mode():
        assert model.embed(images, infrared).shape == (2, 768)


def test_resnet50_from_local_weights(tmp_path):
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(1)
    saved = ResNetModel(ResNetConfig())
    saved.save_pretrained(tmp_path / "net")
    model = ReidModel(ModelConfig("resnet50", 64, 32, weights=str(tmp_path / "net")), classes=3)
    name = "embedder.convolution.weight"
    for stem in (model.visible, model.infrared):
        assert torch.equal(stem.state_dict()[name], saved.embedder.state_dict()[name])
    refused("nothing", ReidModel, ModelConfig("resnet50", weights=str(tmp_path / "nothing")), classes=3)
    shallow = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4))
    shallow.save_pretrained(tmp_path / "shallow")
    refused("not a ResNet-50", ReidModel, ModelConfig("resnet50", weights=str(tmp_path / "shallow")), classes=3)


def test_a_checkpoint_needs_its_pretrained_folder_no_more(tmp_path, monkeypatch):
    """Positions and normalisation of the folder have become part of the weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    tiny = dict(zip(vit.SIZES, (24, 2, 3, 40, 16), strict=True))
    monkeypatch.setattr(vit, "clip_vit_b16", partial(vit.clip, sizes=tiny))
    # Another image size and another epsilon than the default.
    CLIPVisionModel(CLIPVisionConfig(**tiny, image_size=96, layer_norm_eps=1e-3)).save_pretrained(tmp_path)
    config = ModelConfig("clip-vit-b16", 64, 32, "avg", stripes=2, weights=str(tmp_path))
    trained, again = (ReidModel(c, 3).eval() for c in (config, replace(config, weights=None)))
    again.load_state_dict(trained.state_dict())
    assert torch.equal(again.embed(*batch()), trained.embed(*batch()))


def twice_pocket(config):
    """A backbone of a test: its stems and trunk, and the channels of the maps."""
    stems = (nn.Conv2d(3, 8, 3, 4, 1) for _ in range(2))
    return *stems, nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU()), 12


def test_a_row_is_all_that_a_new_backbone_needs(city, tiny, tmp_path, monkeypatch):
    """It is a choice of the config and its help, it trains, and its checkpoint embeds."""
    monkeypatch.setattr(convolutional, "twice_pocket", twice_pocket, raising=False)
    monkeypatch.setitem(BACKBONES, "twice-pocket", Backbone(f"{convolutional.__name__}:twice_pocket"))
    config = recipe(
        "pocket", backbone="twice-pocket", height=64, width=32, stripes=2, steps=2, identities=4, per_modality=2
    )
    out = train_reid(city["train"], config, tmp_path / "run", progress=False)
    loaded, found, _ = load_model(out)
    assert found == config and loaded.neck.num_features == 24
    result = evaluate_reid(out, city["query"], city["gallery"], progress=False)
    assert result.valid_queries == 24
    refused("twice-pocket", ModelConfig, "twice")
