"""Networks, tensors and folders on disk: read with errors that name the file, written whole or not at all, hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.io import brief, canonical_json, clear_disk_errors, read_json
from dive_fast.types import DiveError, InputError

if TYPE_CHECKING:
    import torch

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
ASSETS = Path(__file__).resolve().parents[1] / "assets"


def resolve(path: Path | str, shipped: str) -> Path:
    """Returns the folder that `path` names; "pocket" is the one shipped with the package."""
    return ASSETS / shipped if str(path) == "pocket" else Path(path)


def config_file(folder: Path, part: str) -> Path:
    """The file in a model folder with the configuration of a network or of the scheduler."""
    return folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")


def read_config(path: Path, part: str) -> dict[str, Any]:
    """Reads a configuration of diffusers or transformers; anything else raises `InputError`."""
    config = read_json(path, part)
    if not isinstance(config, dict) or (part == "scheduler" and not isinstance(config.get("_class_name"), str)):
        raise InputError(f"{part}: {path} is no configuration of diffusers; copy it again")
    return config


def has_vocabulary(folder: Path) -> bool:
    """Whether `folder` is one of a tokenizer."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))


def load_tokenizer(folder: Path) -> Any:
    """Loads the CLIP tokenizer in `folder` with its added tokens; missing or broken files raise `InputError`."""
    from transformers import CLIPTokenizer

    if not has_vocabulary(folder):
        raise InputError(f"tokenizer {folder} holds neither tokenizer.json nor vocab.json; copy the folder again")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception for a broken file
        raise InputError(f"tokenizer {folder} cannot be read ({error}); copy the folder again") from error
    if tokenizer.model_max_length > 1_000_000:
        raise InputError(f"tokenizer {folder} gives no model_max_length; add it to tokenizer_config.json (SD 1.5: 77)")
    return tokenizer


def load_network(folder: Path, part: str) -> Any:
    """Loads one network of a model folder in float32; missing tensors or other shapes raise, and never start random."""
    from diffusers.utils import is_accelerate_available

    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    options["variant"] = _weights_variant(folder / part, part)
    if part != "text_encoder":  # without it, diffusers warns each time
        options["low_cpu_mem_usage"] = bool(is_accelerate_available())
    with _quiet_transformers():
        try:
            module, info = network_class(part).from_pretrained(str(folder / part), **options)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise InputError(
                f"model {folder}: {part} cannot be loaded ({brief(error)}); copy the folder again"
            ) from error
    wrong = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in info[kind])
    if wrong:
        raise InputError(
            f"model {folder}: {part} lacks {len(wrong)} tensors or holds them in other shapes, first {wrong[0]};"
            " its config.json and its weights do not belong together"
        )
    return module.float().eval().requires_grad_(False)


def network_class(part: str) -> Any:
    """Returns the class of a network in diffusers or transformers."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    return {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}[part]


def _weights_variant(folder: Path, part: str) -> str | None:
    """Returns None for the plain file name, "fp16" if only that one is there; opens every weights file to check it."""
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        check_safetensors(file)
    plain, stem = WEIGHTS[part], WEIGHTS[part].removesuffix(".safetensors")
    if (folder / plain).is_file() or (folder / f"{plain}.index.json").is_file():
        return None
    if (folder / f"{stem}.fp16.safetensors").is_file():
        return "fp16"
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
    raise InputError(f"model part {folder} has no {plain} (found {found}); convert its weights to safetensors first")


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Turns off transformers' progress bar of each load; the commands here draw their own."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def check_safetensors(path: Path) -> None:
    """Raises `InputError` if `path` is missing, truncated or no safetensors file; reads the header only."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            return
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; copy the folder again") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}); copy it again") from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads all tensors of a safetensors file as float32 on the CPU; a missing or broken file raises `InputError`."""
    from safetensors.torch import load_file

    check_safetensors(path)
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise InputError(f"{path}: tensor {name!r} is {tensor.dtype}, expected floating point; make the file again")
    return {name: tensor.float() for name, tensor in tensors.items()}


def write_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes `tensors` as safetensors, floating-point ones cast to `dtype` if given (fp16 halves shipped files).

    Equal tensors and metadata give equal bytes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def ready(tensor: torch.Tensor) -> torch.Tensor:
        cast = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to("cpu", cast).contiguous()

    with clear_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(
                {name: ready(t) for name, t in tensors.items()}, path, metadata={"format": "pt", **(metadata or {})}
            )
        except SafetensorError as error:  # its writer wraps the operating system's errors, a full disk included
            raise DiveError(f"cannot write {path}: {error}; free space or choose another folder, then rerun") from error
        if metadata:
            _sort_metadata(path)
        path.chmod(0o644)  # safetensors leaves its files readable by their owner only


def _sort_metadata(path: Path) -> None:
    """Puts the metadata of a safetensors file in order; its writer draws a new order each time."""
    with path.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        data = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        stream.seek(8)
        stream.write(data.ljust(size))


def fingerprint_of(metadata: Any, tensors: Mapping[str, torch.Tensor]) -> str:
    """Hex SHA-256 over JSON `metadata` and tensors as float32: the same on every machine and for every storage order."""

    def digest(tensor: torch.Tensor) -> str:
        array = tensor.detach().float().cpu().contiguous().numpy().astype("<f4", copy=False)
        return hashlib.sha256(array.tobytes()).hexdigest()

    hashes = {name: [list(tensor.shape), digest(tensor)] for name, tensor in tensors.items()}
    return hashlib.sha256(canonical_json([metadata, hashes]).encode()).hexdigest()
