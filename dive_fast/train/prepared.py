"""Latents of a prepared set: one file per shard, written beside its images and read without the raw tree."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.data.images import image_problem
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
from dive_fast.data.shards import read_shard
from dive_fast.io import atomic_path, sha256_file, write_json
from dive_fast.models.files import fingerprint_of, write_tensors
from dive_fast.train.photos import LatentPhotos, encode_photos, image_size, latent_shape, teaching
from dive_fast.types import InputError, to_dict

if TYPE_CHECKING:
    import torch

    from dive_fast.models.bundle import ModelBundle

_NAME = "latents"
_BLOCK = 256  # photos between two reports of progress
_TIMED = 8  # photos that a dry run encodes
_HEADERS = 2_048  # bytes of a file's header and its record, at most
# Settings that change an encoder's output and show in no tensor's shape.
_ENCODER_CONFIG = ("act_fn", "block_out_channels", "down_block_types", "norm_num_groups", "scaling_factor")


def encoder_fingerprint(bundle: ModelBundle) -> str:
    """Returns the id of a photo's latents: of the VAE's encoder, its scaling and the image size.

    It does not depend on decoder, UNet and text encoder, so latents stay valid while those are trained.
    """
    config = {name: bundle.vae.config[name] for name in _ENCODER_CONFIG}
    tensors = {
        name: tensor for name, tensor in bundle.vae.state_dict().items() if name.startswith(("encoder.", "quant_conv."))
    }
    return fingerprint_of([list(image_size(bundle)), config], tensors)


def missing_latents(plan: PreparePlan, out: Path, packed: set[int], encoder: str) -> set[int]:
    """Returns the shards whose latents are missing; shards outside `packed` always are.

    Raises `InputError` when the folder has latents of another encoder, which are never replaced.
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
        path = latents_path(out, number)
        whole = path.is_file() and path.stat().st_size == record.bytes
        if number in packed and whole and record.tar == read_shard(out, number).sha256:
            missing.discard(number)
    return missing


def latent_space(plan: PreparePlan, shards: set[int], bundle: ModelBundle) -> int:
    """Returns the bytes that the latents of `shards` take at most."""
    photos = sum(len(plan.shard(number)) for number in shards)
    return photos * 2 * prod(latent_shape(bundle)) * 4 + len(shards) * _HEADERS


def encode_shards(
    plan: PreparePlan, out: Path, shards: set[int], bundle: ModelBundle, progress: Callable[[int], object]
) -> None:
    """Encodes the packed images of `shards` in order on the VAE's device, one shard in memory at a time.

    Photos are read from the raw tree. `progress` is called with numbers of images done.
    """
    import torch

    encoder = encoder_fingerprint(bundle)
    for number in sorted(shards):
        shard = read_shard(out, number)
        packed = {(image.set, image.path) for image in shard.images}
        samples = [source.sample for source in plan.shard(number) if (source.set, source.path) in packed]
        latents = torch.empty((len(samples), 2, *latent_shape(bundle)))
        for i in range(0, len(samples), _BLOCK):
            block = samples[i : i + _BLOCK]
            latents[i : i + _BLOCK] = encode_photos(bundle, block, progress=False).latents
            progress(len(block))
        with atomic_path(latents_path(out, number)) as temporary:
            write_tensors(temporary, {_NAME: latents})
            record = LatentFile(
                temporary.stat().st_size, sha256_file(temporary), encoder, [2, *latent_shape(bundle)], shard.sha256
            )
        write_json(latents_record_path(out, number), to_dict(record))


def encode_seconds(plan: PreparePlan, bundle: ModelBundle) -> float | None:
    """Forecasts the seconds that encoding every image takes, from a few spread over the sets; None if none can be read."""
    few = plan.images[:: -(-len(plan.images) // _TIMED)]
    samples = [image.sample for image in few if image_problem(image.sample.path) is None]
    if not samples:
        return None
    encode_photos(bundle, samples[:1], progress=False)  # the first call takes longer
    begun = time.perf_counter()
    encode_photos(bundle, samples, progress=False)
    return (time.perf_counter() - begun) / len(samples) * len(plan.images)


def load_prepared(folder: Path | str, bundle: ModelBundle) -> LatentPhotos:
    """Reads the set's latents, float32, and samples; they equal the result of `encode_photos` on the raw tree.

    The samples' paths are equal on every machine and lead to no file. All latents are in memory: 64 KiB per photo for
    Stable Diffusion 1.5 at 512 x 256. Raises `InputError` for an unfinished set, one without latents or with those of
    another VAE, and for missing or damaged files.
    """
    import torch

    prepared = open_prepared(folder)
    if not prepared.latents:
        raise InputError(f"{folder} has no latents; run the same dive-fast prepare with --model, which adds them")
    made_by, ours = prepared.latents[0].encoder, encoder_fingerprint(bundle)
    if made_by != ours:
        raise InputError(
            f"{folder}: its latents are by encoder {made_by[:12]}, this model's is {ours[:12]} (another VAE or image size);"
            " give the model that it was prepared with, or prepare the set for this one"
        )
    numbers = range(len(prepared.shards))
    samples = [image.sample() for number in numbers for image in packed_images(prepared, number)]
    latents = torch.empty((len(samples), 2, *latent_shape(bundle)))
    first = 0
    for number in numbers:
        count = prepared.shards[number].images
        latents[first : first + count] = _read(prepared, number, tuple(latents[first : first + count].shape))
        first += count
    return LatentPhotos(latents, tuple(samples), teaching(samples))


def _read(prepared: Prepared, number: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Reads the latents of one shard; raises `InputError` unless hash and shape are right."""
    from dive_fast.models.files import read_tensors

    path = latents_path(prepared.folder, number)
    if not path.is_file():
        raise InputError(f"{path} is missing; run dive-fast prepare again")
    if sha256_file(path) != prepared.latents[number].sha256:
        raise InputError(f"{path} is damaged; delete it and run dive-fast prepare again")
    latents = read_tensors(path).get(_NAME)
    if latents is None or tuple(latents.shape) != shape:
        raise InputError(f"{path} does not hold latents of {shape[0]:,} images; delete it and run dive-fast prepare")
    return latents
