"""The pocket base model: Stable Diffusion 1.5's classes and scheduler at a size that a laptop can sample.

Latents are 16 x 8 with 16 channels: as many numbers as 4 channels at twice the resolution, with a quarter of the positions;
one UNet row takes 0.6 GFLOP.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.world.base.config import BaseShape
from dive_fast.world.cameras import IMAGE_HEIGHT, IMAGE_WIDTH
from dive_fast.world.captions import caption_words

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
# Words of the personalization templates; in the vocabulary they shorten a prompt from fifty tokens to a dozen.
TEMPLATE_WORDS = (
    "an the one this image picture snapshot frame shot view photograph still capture cropped full body surveillance "
    "camera cam street pedestrian walking standing seen by from in on at with of to taken recorded"
)


def build_tokenizer(folder: Path, shape: BaseShape) -> CLIPTokenizer:
    """Trains a CLIP-style byte-level BPE on the closed vocabulary of captions and saves it to `folder`.

    Every caption word becomes one token; other words (camera codes) become characters. Every process numbers them alike,
    so a resumed run and the other ranks read captions by the same ids.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    words = sorted({*caption_words(), *TEMPLATE_WORDS.split()})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    last = [f"{letter}</w>" for letter in alphabet]
    # Named first, these have ids that no process shuffles, and ids break the ties of merges.
    trainer = trainers.BpeTrainer(
        vocab_size=8192, initial_alphabet=alphabet, special_tokens=last, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(words * 10, trainer)
    trained = json.loads(bpe.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in trained["merges"]]
    tokens = [*alphabet, *last, *(m.replace(" ", "") for m in merges), BOS, EOS]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        bos_token=BOS,
        eos_token=EOS,
        unk_token=EOS,
        pad_token=EOS,
        model_max_length=shape.tokens,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def new_vae(shape: BaseShape) -> AutoencoderKL:
    """Returns an untrained autoencoder, [B, 3, H, W] in -1..1 to latents [B, latent_channels, H / factor, W / factor]."""
    from diffusers import AutoencoderKL

    levels = len(shape.vae_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=shape.vae_channels,
        layers_per_block=1,
        latent_channels=shape.latent_channels,
        norm_num_groups=8,
        sample_size=IMAGE_HEIGHT,
        mid_block_add_attention=False,
    )


def new_text_encoder(shape: BaseShape, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Returns CLIP's text transformer, untrained, from token ids [P, tokens] to embeddings [P, tokens, text_width]."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.text_width,
        intermediate_size=4 * shape.text_width,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.tokens,
        projection_dim=shape.text_width,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def new_unet(shape: BaseShape) -> UNet2DConditionModel:
    """Returns an untrained UNet; as in Stable Diffusion 1.5, its coarsest level has no attention."""
    from diffusers import UNet2DConditionModel

    levels = len(shape.unet_channels)
    return UNet2DConditionModel(
        sample_size=(IMAGE_HEIGHT // shape.factor, IMAGE_WIDTH // shape.factor),
        in_channels=shape.latent_channels,
        out_channels=shape.latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        block_out_channels=shape.unet_channels,
        layers_per_block=1,
        cross_attention_dim=shape.text_width,
        attention_head_dim=shape.heads,  # the number of heads, as in SD 1.5's config
        norm_num_groups=16,
    )


# Stable Diffusion 1.5's scheduler with two changes for 16 x 8 latents. A beta_end of 0.012 would leave the mean colour
# readable at the last timestep, and sampling would take it from the noise (arXiv 2305.08891). Nearer to pure noise, the
# error of a predicted epsilon is multiplied by a hundred, so the UNet predicts v (arXiv 2202.00512).
SCHEDULER_CONFIG: dict[str, object] = {
    "beta_start": 0.00085,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
