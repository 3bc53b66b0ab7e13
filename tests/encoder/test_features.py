"""Features of photos: what a network's own layers give, pooled by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dive_fast.encoder.features import STRIPES, evenly, open_features
from dive_fast.io import write_json
from dive_fast.reid.data.augment import normalise
from dive_fast.reid.models.config import ModelConfig
from dive_fast.types import Sample
from tests.support.checkpoints import write_net
from tests.support.models import truncate
from tests.support.refusals import refused


def stripes_by_hand(maps: torch.Tensor) -> torch.Tensor:
    """Means of a map [C, h, w] over six bands of its rows, which may share a row, by loops in float64."""
    channels, height, _ = maps.shape
    bands = [(n * height // STRIPES, -(-(n + 1) * height // STRIPES)) for n in range(STRIPES)]
    means = [[maps[c, top:end].double().mean() for top, end in bands] for c in range(channels)]
    return torch.tensor(means, dtype=torch.float64).flatten()


def test_reid_features_are_the_embedding_and_three_maps_in_stripes(source):
    images = torch.randint(0, 255, (2, 3, 64, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = source.network
    with torch.no_grad():
        pixels, visible = normalise(images), torch.zeros(2, dtype=torch.bool)
        stem = model.visible(pixels)
        first = model.trunk[1](model.trunk[0](stem))
        last = model.trunk[3](model.trunk[2](first))
        expected = [
            torch.cat([model.embed(pixels, visible)[n].double(), *(stripes_by_hand(m[n]) for m in (stem, first, last))])
            for n in range(2)
        ]
    found = source(images)
    assert found.dtype == torch.float16 and source.dims == found.shape[1]
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=2**-10, atol=1e-5)  # of float16


def test_tagger_features_are_its_words_and_three_maps_in_stripes(tagger):
    """The layers of every block by hand: convolution, norm, activation; words from the places' read-out."""
    source = open_features(tagger)
    images = torch.randint(0, 255, (2, 3, 32, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    net, maps = source.network, []
    with torch.no_grad():
        x = images.double() / 127.5 - 1
        for conv, norm in zip(net.body[::3], net.body[1::3], strict=True):
            x = F.conv2d(x, conv.weight.double(), stride=conv.stride, padding=conv.padding)
            x = F.silu(F.group_norm(x, norm.num_groups, norm.weight.double(), norm.bias.double()))
            maps.append(x)
        places = F.adaptive_avg_pool2d(x, (8, 2)).flatten(1)
        scores = F.linear(places, net.readout.weight.double(), net.readout.bias.double())
        words = torch.cat([part.log_softmax(dim=1) for part in scores.split(net.choices, dim=1)], dim=1)
        chosen = (maps[0], maps[2], maps[5])  # the first, the middle one that rounds to even, the last
        expected = [torch.cat([words[n], *(stripes_by_hand(m[n]) for m in chosen)]) for n in range(2)]
    found = source(images)
    assert found.dtype == torch.float16 and source.dims == found.shape[1] and source.people == ()
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=2**-10, atol=1e-4)  # of float16 and float32


def test_a_transformers_tokens_lie_where_its_patches_do(tmp_path):
    """A ViT whose layers pass patches on: the bands then follow the rows of patches."""
    config = ModelConfig(backbone="pocket-vit", height=64, width=32, pooling="avg", stripes=1)
    source = open_features(write_net(tmp_path / "vit", config))
    tokens = torch.arange(1 + 8 * 4, dtype=torch.float32)[None, :, None]
    grid = torch.arange(1, 33, dtype=torch.float32).view(1, 1, 8, 4)
    from dive_fast.encoder.features import _grid

    assert torch.equal(_grid(tokens, source.network.pool.grid), grid)
    features = source(torch.randint(0, 255, (1, 3, 64, 32), dtype=torch.uint8))
    width = source.network.neck.num_features
    assert features.shape == (1, width + 3 * STRIPES * width) and features.isfinite().all()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    folder = tmp_path_factory.mktemp("clip")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=24, patch_size=4)).save_pretrained(folder)
    CLIPImageProcessor(image_mean=[0.3, 0.4, 0.5], image_std=[0.2, 0.3, 0.4]).save_pretrained(folder)
    return folder


def test_clip_features_are_its_pooled_output_and_hidden_states_in_stripes(clip, tmp_path):
    from transformers import CLIPImageProcessor, CLIPVisionModel

    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    model = CLIPVisionModel.from_pretrained(clip).eval()
    processor = CLIPImageProcessor.from_pretrained(clip, do_resize=False, do_center_crop=False)
    with torch.no_grad():
        output = model(**processor(Image.fromarray(pixels), return_tensors="pt"), output_hidden_states=True)
    states = [output.hidden_states[n][0, 1:].T.unflatten(1, (6, 6)) for n in (0, 2, 4)]
    expected = torch.cat([output.pooler_output[0].double(), *map(stripes_by_hand, states)])
    source = open_features(clip)
    found = source.features([Sample(tmp_path / "photo.png", "1", "cam1")])
    assert (source.kind, source.height, source.width, source.people) == ("clip", 24, 24, ())
    torch.testing.assert_close(found[0].double(), expected, rtol=2**-9, atol=1e-4)


def test_one_fingerprint_for_one_network(clip, net, tmp_path):
    from transformers import CLIPVisionModel

    assert open_features(clip).fingerprint == open_features(clip).fingerprint
    model = CLIPVisionModel.from_pretrained(clip)
    model.save_pretrained(tmp_path / "same")
    (tmp_path / "same" / "preprocessor_config.json").write_bytes((clip / "preprocessor_config.json").read_bytes())
    assert open_features(tmp_path / "same").fingerprint == open_features(clip).fingerprint
    next(model.parameters()).data += 1
    model.save_pretrained(tmp_path / "same")
    assert open_features(tmp_path / "same").fingerprint != open_features(clip).fingerprint
    assert open_features(net).fingerprint != open_features(write_net(tmp_path / "other", seed=1)).fingerprint


def test_depths_are_the_first_the_last_and_between():
    assert (
        evenly("abcde") == ["a", "c", "e"]
        and evenly("abcdefghijklmnopq") == ["a", "i", "q"]
        and evenly("ab") == ["a", "b"]
    )


def test_no_network_and_a_broken_one_are_refused(clip, net, tmp_path):
    refused("empty", open_features, tmp_path / "empty")
    for folder, name in ((clip, "model.safetensors"), (net, "model.safetensors")):
        copy = tmp_path / folder.name
        copy.mkdir()
        for file in folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        truncate(copy / name)
        refused(str(copy), open_features, copy)
    write_json(tmp_path / "config.json", {"model_type": "bert"})
    refused("bert", open_features, tmp_path)


def test_photos_of_any_size_are_read_and_a_damaged_one_is_named(source, photos, tmp_path):
    for number, size in enumerate([(1, 1), (3, 400), (2000, 5)]):
        Image.new("RGB", size, (200, 30, 60)).save(tmp_path / f"{number}.png")
    odd = [Sample(tmp_path / f"{number}.png", "1", "cam1") for number in range(3)]
    features = source.features([*odd, photos[0]])
    assert features.isfinite().all()
    # one colour is that colour at any size
    assert torch.equal(features[0], features[1]) and torch.equal(features[0], features[2])
    (tmp_path / "broken.png").write_bytes(photos[0].path.read_bytes()[:80])
    refused(r"broken\.png", source.features, [Sample(tmp_path / "broken.png", "1", "cam1")])
