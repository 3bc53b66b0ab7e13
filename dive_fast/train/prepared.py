"""A prepared set's latents: made beside its images, a file a shard, and loaded without the raw tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.data.prepare import PreparePlan
from dive_fast.data.prepared import (
    LatentFile,
    Prepared,
    latents_path,
    latents_record_path,
    open_prepared,
    packed_images,
    read_latents_record,
)
from dive_fast.data.shards import PackedShard, read_shard
from dive_fast.io import atomic_path, sha256_file, write_json
from dive_fast.models.files import fingerprint_of, write_tensors
from dive_fast.train.photos import LatentPhotos, encode_photos, image_size, teaching
from dive_fast.types import InputError, Sample, to_dict

if TYPE_CHECKING:
    import torch

    from dive_fast.models.bundle import ModelBundle

_NAME = "latents"
_BLOCK = 256  # photos handed to the encoder at a time, which is how often progress is told
_HEADERS = 2_048  # bytes of a file's header and its record, at most
# What changes an encoder's numbers and does not show in the shapes of its tensors.
_ENCODER_CONFIG = ("act_fn", "block_out_channels", "down_block_types", "norm_num_groups", "scaling_factor")


def encoder_fingerprint(bundle: ModelBundle) -> str:
    """Names what decides a photo's latents: the VAE's encoder, its scaling, and the size that photos are brought to.

    Decoder, UNet and text encoder have no part in it, so latents stay good while those are trained.
    """
    config = {name: bundle.vae.config[name] for name in _ENCODER_CONFIG}
    tensors = {
        name: tensor for name, tensor in bundle.vae.state_dict().items() if name.startswith(("encoder.", "quant_conv."))
    }
    return fingerprint_of([list(image_size(bundle)), config], tensors)


def latent_shape(bundle: ModelBundle) -> tuple[int, int, int, int]:
    """What one photo becomes: itself and its mirror image, (2, C, h, w)."""
    height, width = image_size(bundle)
    factor = 2 ** (len(bundle.vae.config.block_out_channels) - 1)
    return 2, int(bundle.vae.config.latent_channels), height // factor, width // factor


def missing_latents(plan: PreparePlan, out: Path, packed: set[int], encoder: str) -> set[int]:
    """The shards whose latents are to be made; only those in `packed` can have theirs.

    Raises `InputError` when the folder has latents by another encoder: they are not replaced, but may be deleted.
    """
    missing = set(range(plan.shards))
    for number in range(plan.shards):
        if not latents_record_path(out, number).is_file():
            continue
        record = read_latents_record(out, number)
        if record.encoder != encoder:
            raise InputError(
                f"{out} has latents by another VAE or image size; choose another --out, or delete {out / 'latents'}"
            )
        if number in packed and _is_whole(out, number, record, read_shard(out, number)):
            missing.discard(number)
    return missing


def latent_space(plan: PreparePlan, shards: set[int], bundle: ModelBundle) -> int:
    """Bytes that the latents of `shards` will take at most."""
    photos = sum(len(plan.shard(number)) for number in shards)
    return photos * prod(latent_shape(bundle)) * 4 + len(shards) * _HEADERS


def encode_shards(
    plan: PreparePlan, out: Path, shards: set[int], bundle: ModelBundle, progress: Callable[[int], object]
) -> None:
    """Encodes the packed images of `shards`, in order, one shard in memory at a time; `progress` is told of images done.

    Photos are read from the raw tree. The VAE computes where it is.
    """
    encoder = encoder_fingerprint(bundle)
    for number in sorted(shards):
        shard = read_shard(out, number)
        packed = {(image.set, image.path) for image in shard.images}
        samples = [source.sample for source in plan.shard(number) if (source.set, source.path) in packed]
        path = latents_path(out, number)
        with atomic_path(path) as temporary:
            write_tensors(temporary, {_NAME: _encoded(bundle, samples, progress)})
            record = LatentFile(
                temporary.stat().st_size, sha256_file(temporary), encoder, list(latent_shape(bundle)), shard.sha256
            )
        write_json(latents_record_path(out, number), to_dict(record))


def load_prepared(folder: Path | str, bundle: ModelBundle) -> LatentPhotos:
    """The set's latents, float32, with its samples: what `encode_photos` makes of the raw tree, without decoding anything.

    Samples have paths that are the same on every machine and lead to no file; `prepared_images` gives the images. All
    latents lie in memory: 64 KiB a photo for Stable Diffusion 1.5 at 512 x 256. Raises `InputError` for a set that is not
    finished, has no latents or those of another VAE, and for files that are missing or damaged.
    """
    import torch

    prepared = open_prepared(folder)
    _check_encoder(prepared, bundle)
    numbers = range(len(prepared.shards))
    samples = [image.sample() for number in numbers for image in packed_images(prepared, number)]
    latents = torch.empty((len(samples), *latent_shape(bundle)))
    first = 0
    for number in numbers:
        count = prepared.shards[number].images
        latents[first : first + count] = _read(prepared, number)
        first += count
    return LatentPhotos(latents, tuple(samples), teaching(samples))


def _is_whole(out: Path, number: int, record: LatentFile, shard: PackedShard) -> bool:
    path = latents_path(out, number)
    return path.is_file() and path.stat().st_size == record.bytes and record.tar == shard.sha256


def _encoded(bundle: ModelBundle, samples: Sequence[Sample], progress: Callable[[int], object]) -> torch.Tensor:
    """Latents [N, 2, C, h, w] of the samples' files."""
    import torch

    latents = torch.empty((len(samples), *latent_shape(bundle)))
    for i in range(0, len(samples), _BLOCK):
        block = samples[i : i + _BLOCK]
        latents[i : i + _BLOCK] = encode_photos(bundle, block, progress=False).latents
        progress(len(block))
    return latents


def _check_encoder(prepared: Prepared, bundle: ModelBundle) -> None:
    if not prepared.latents:
        raise InputError(
            f"{prepared.folder} has no latents; run the same dive-fast prepare with --model, which adds them"
        )
    made_by, ours = prepared.latents[0].encoder, encoder_fingerprint(bundle)
    if made_by != ours:
        raise InputError(
            f"{prepared.folder}: its latents are by encoder {made_by[:12]}, this model's is {ours[:12]} (another VAE or "
            "image size); give the model that it was prepared with, or prepare the set for this one"
        )


def _read(prepared: Prepared, number: int) -> torch.Tensor:
    """The latents of one shard, read only if they are the very bytes that were written."""
    from safetensors.torch import load_file

    path = latents_path(prepared.folder, number)
    if not path.is_file():
        raise InputError(f"{path} is missing; run dive-fast prepare again")
    if sha256_file(path) != prepared.latents[number].sha256:
        raise InputError(f"{path} is damaged; delete it and run dive-fast prepare again")
    return load_file(path)[_NAME]
