"""Stable Diffusion 1.5's size, without memory: shapes of a training step's parts, and how small the mapper is."""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from dive_fast.bench.sd15 import sd15
from dive_fast.encoder.config import EncoderConfig
from dive_fast.encoder.features import DEPTHS, STRIPES
from dive_fast.encoder.model import EncoderModel
from dive_fast.encoder.references import References
from dive_fast.models.phrase import Phrase
from dive_fast.train.model import IdentityPrompts
from dive_fast.types import Sample
from tests.support.encoders import draw

pytestmark = pytest.mark.slow

CLIP = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=224,
    patch_size=14,
)


def test_a_step_has_stable_diffusions_shapes(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which meta tensors lack
    monkeypatch.setattr(sys.modules["dive_fast.models.fuse"], "check_rows", lambda *_: None)  # meta tensors hold none
    features = CLIP.hidden_size * (1 + DEPTHS * STRIPES)
    with torch.device("meta"):
        output = CLIPVisionModel(CLIP)(torch.zeros(2, 3, 224, 224), output_hidden_states=True)
    assert len(output.hidden_states) == 25 and output.hidden_states[0].shape == (2, 1 + 16 * 16, 1024)
    bundle = sd15(real=())
    bundle.__dict__["fingerprint"] = "random"
    words = len(bundle.tokenizer)  # the pocket tokenizer has fewer words than Stable Diffusion's text encoder
    bundle.text_encoder.set_input_embeddings(torch.nn.Embedding(words, 768, device="meta"))
    config = EncoderConfig()
    phrase = Phrase(config.training.phrase)
    prompts = IdentityPrompts((phrase.identity("a", "person_a"),), phrase, ("a {cam} photo of a {token} person",))
    with torch.device("meta"):
        model = EncoderModel(bundle, prompts, config, None, SimpleNamespace(dims=features, phrase=None), None)
    assert sum(p.numel() for p in model.mapper.parameters()) < 10e6  # a hundredth of the UNet
    samples = [Sample(draw(tmp_path / f"{n}.png", 1, n), "a", f"cam{n}") for n in range(3)]
    model.references = References(tuple(samples), torch.zeros(3, features, dtype=torch.float16), config.pooled, 0)
    ids = torch.full((2, 77), 5)
    ids[:, 3:7] = model._old_words + torch.arange(4)
    spoken = model.spoken(0, samples[:2], ids, slice(0, 2))
    assert spoken[1, 3:7].tolist() == [model._old_words + 4 + word for word in range(4)]
    text = model.embed(spoken, torch.ones(2, dtype=torch.bool))
    noise = bundle.unet(torch.zeros(2, 4, 64, 32, device="meta"), torch.zeros(2, device="meta"), text).sample
    assert model.rows.current.shape == (8, 768) and text.shape == (2, 77, 768) and noise.shape == (2, 4, 64, 32)
