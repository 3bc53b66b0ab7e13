"""What tests of models share: diffusers' own pipeline, comparisons, and files to break."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dive_fast.models import Adapter, ModelBundle
from dive_fast.models.adapter import tones_of
from tests.support.tiny import LATENT_SHAPE, MAX_TOKENS, TEXT_WIDTH


def run_unet(unet: Any, seed: int = 0) -> torch.Tensor:
    """The UNet's output for three random rows, in its own dtype."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(unet.parameters()).dtype
    latents = torch.randn(3, *LATENT_SHAPE, generator=generator).to(dtype)
    text = torch.randn(3, MAX_TOKENS, TEXT_WIDTH, generator=generator).to(dtype)
    with torch.no_grad():
        output: torch.Tensor = unet(latents, 500, encoder_hidden_states=text).sample
        return output


def diffusers_pipeline(bundle: ModelBundle) -> Any:
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline(
        vae=bundle.vae,
        text_encoder=bundle.text_encoder,
        tokenizer=bundle.tokenizer,
        unet=bundle.unet,
        scheduler=PNDMScheduler.from_config(bundle.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def assert_same_adapter(one: Adapter, other: Adapter) -> None:
    plain = ("base_fingerprint", "identities", "cameras", "template", "phrase", "rank", "alpha", "metadata")
    assert all(getattr(one, name) == getattr(other, name) for name in plain)
    assert torch.equal(one.embeddings, other.embeddings)
    assert_same_tensors(one.lora, other.lora)
    assert_same_tensors(tones_of(one), tones_of(other))


def assert_same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


class CallsWhenOpened:
    """Pickled, it makes whoever opens the file carelessly run `call(*arguments)`."""

    def __init__(self, call: Callable[..., object], *arguments: str) -> None:
        self.reduced = call, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return self.reduced


def json_edit(name: str, **changes: object) -> Callable[[Path], object]:
    """Changes values in the file `name` of a folder."""
    return lambda folder: (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **changes}))


def tensor_edit(name: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[..., None]:
    """Changes the tensors in the file `name` of a folder."""

    def edit(folder: Path) -> None:
        tensors = {key: tensor.clone() for key, tensor in load_file(folder / name).items()}
        save_file(change(tensors), folder / name, metadata={"format": "pt"})

    return edit


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
