"""Random-weight models in Stable Diffusion 1.5's layout, small enough that a test takes milliseconds.

Sizes differ from SD 1.5 on purpose (8 latent channels, 32 tokens a prompt, width 32), so code that writes in
4, 77 or 768 fails here. Images are 64x32 pixels, latents [8, 8, 4].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.io import write_json

if TYPE_CHECKING:
    from dive_fast.models import Adapter, ModelBundle
    from dive_fast.models.tones import Tones

HEIGHT, WIDTH = 64, 32
LATENT_SHAPE = (8, 8, 4)
MAX_TOKENS = 32
TEXT_WIDTH = 32
ENGINE_ROWS = 16  # of the engine folders that tests/conftest.py exports
MERGED_WORDS = ("a", "of", "photo", "person")

MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.6.0",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SCHEDULER_CONFIG = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def tiny_bundle_folder(path: Path | str, seed: int = 0) -> Path:
    """Writes a random Stable Diffusion folder to `path`; equal seeds give equal weights."""
    import torch

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "model_index.json", MODEL_INDEX)
    write_json(path / "scheduler" / "scheduler_config.json", SCHEDULER_CONFIG)
    vocab_size = _write_tokenizer(path / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _unet().save_pretrained(path / "unet")
        _vae().save_pretrained(path / "vae")
        _text_encoder(vocab_size).save_pretrained(path / "text_encoder")
    return path


def tiny_adapter(bundle: ModelBundle, pids: Sequence[str] = ("0001", "0002", "0003"), seed: int = 0) -> Adapter:
    """A random adapter for `bundle`: LoRA with non-zero B, a row per pid, cameras cam1 and cam7 (rgb), cam3 (ir)."""
    import torch

    from dive_fast.models import DEFAULT_TEMPLATE, Adapter, lora_shapes
    from dive_fast.types import Camera, Identity

    rank = 4
    generator = torch.Generator().manual_seed(seed)
    lora = {key: torch.randn(shape, generator=generator) * 0.2 for key, shape in lora_shapes(bundle.unet, rank).items()}
    width = bundle.text_encoder.get_input_embeddings().weight.shape[1]
    return Adapter(
        base_fingerprint=bundle.fingerprint,
        identities=tuple(Identity(pid, f"<class_{i}>") for i, pid in enumerate(pids)),
        cameras=(Camera("cam1", "rgb", "q7dk"), Camera("cam3", "ir", "w2vx"), Camera("cam7", "rgb", "zj5m")),
        template=DEFAULT_TEMPLATE,
        rank=rank,
        alpha=float(rank),
        metadata={"steps": 0, "seed": seed},
        embeddings=torch.randn(len(pids), width, generator=generator),
        lora=lora,
    )


TONED_PHRASE = "{person} , {~red|blue} {~blue|red} {wool} , {~red}"


def tiny_tones(seed: int = 0) -> Tones:
    """Random tones of `TONED_PHRASE`, of five words of brightness."""
    import torch

    from dive_fast.models.tones import Tones

    draw = torch.Generator().manual_seed(seed)
    shapes = ((5, TEXT_WIDTH), (TEXT_WIDTH,), (TEXT_WIDTH,), (3,))
    return Tones(*(torch.randn(*shape, generator=draw) for shape in shapes))


def with_toned_people(adapter: Adapter) -> Adapter:
    """The adapter with tones, and two further people, p and q, of their phrase."""
    import torch

    from dive_fast.models import merge_identities
    from dive_fast.models.phrase import Phrase

    phrase = Phrase(TONED_PHRASE)
    rows = torch.randn(2 * 5, TEXT_WIDTH, generator=torch.Generator().manual_seed(1)) * 0.3
    toned = replace(adapter, tones=tiny_tones(), phrase=phrase.text)
    return merge_identities(toned, [phrase.identity(pid, pid) for pid in ("p", "q")], rows)


def _write_tokenizer(folder: Path) -> int:
    """A byte-level CLIP vocabulary without any downloaded file; returns its size."""
    symbols = [*_byte_characters(), *(c + "</w>" for c in _byte_characters())]
    merges: list[tuple[str, str]] = []
    for word in MERGED_WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
    symbols += [left + right for left, right in merges]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {symbol: i for i, symbol in enumerate(symbols)}
    assert len(vocab) == len(symbols)
    write_json(folder / "vocab.json", vocab)
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special["pad_token"] = "<|endoftext|>"
    write_json(folder / "special_tokens_map.json", special)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS, "do_lower_case": True, **special}
    write_json(folder / "tokenizer_config.json", config)
    return len(vocab)


def _byte_characters() -> list[str]:
    """CLIP's printable stand-ins for the 256 bytes: printable bytes as they are, the others from U+0100 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(others))]


def _unet():  # type: ignore[no-untyped-def]
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT_SHAPE[1:],
        in_channels=LATENT_SHAPE[0],
        out_channels=LATENT_SHAPE[0],
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # as in SD 1.5, this is the number of heads
        norm_num_groups=8,
    )


def _vae():  # type: ignore[no-untyped-def]
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT_SHAPE[0],
        norm_num_groups=8,
        sample_size=HEIGHT,
        scaling_factor=0.3,
    )


def _text_encoder(vocab_size: int):  # type: ignore[no-untyped-def]
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=TEXT_WIDTH,
            intermediate_size=64,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=0,  # SD 1.5's text encoder says so too, whatever its tokenizer's ids are
            eos_token_id=2,
            pad_token_id=1,
        )
    )
