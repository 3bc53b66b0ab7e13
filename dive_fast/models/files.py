"""Networks, tensors and folders on disk: read with errors that name the file, written whole or not at all, hashed."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.io import POINTER, atomic_path, brief, canonical_json, clear_disk_errors, decode_text, is_pointer
from dive_fast.json_files import read_json
from dive_fast.types import DiveError, InputError, shown

if TYPE_CHECKING:
    import torch

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
TEXT_PREFIX = "text_model."  # of the text encoder's tensors: older transformers need it, newer ones read both forms
_FIRST_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_MISMATCH = "its config.json and its weights do not belong together"
_WORD = {"id": 0, "content": "", **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)}
ASSETS = Path(__file__).resolve().parents[1] / "assets"


def resolve(path: Path | str, shipped: str) -> Path:
    """Returns the folder that `path` names; "pocket" is the one shipped with the package."""
    return ASSETS / shipped if str(path) == "pocket" else Path(path)


def config_file(folder: Path, part: str) -> Path:
    """The file in a model folder with the configuration of a network or of the scheduler."""
    return folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")


def read_config(path: Path, part: str) -> dict[str, Any]:
    """Reads a configuration of diffusers or transformers; anything else raises `InputError`."""
    config = read_json(path, part, infinite=part == "scheduler")  # DPM-Solver's, which `check_scheduler` looks at
    if not isinstance(config, dict) or (part == "scheduler" and not isinstance(config.get("_class_name"), str)):
        raise InputError(f"{part}: {path} is no configuration of diffusers; copy it again")
    return config


@contextmanager
def library_errors(where: str, remedy: str) -> Iterator[None]:
    """Turns what a library raises for another's file into an `InputError`: of a broken one, it may raise anything."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = brief(error, 200) or type(error).__name__
        raise InputError(f"{where} cannot be read ({reason}); {remedy}") from error


def has_vocabulary(folder: Path) -> bool:
    """Whether `folder` is one of a tokenizer."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))


def load_tokenizer(folder: Path) -> Any:
    """Loads the CLIP tokenizer in `folder` with its added tokens; missing or broken files raise `InputError`."""
    from transformers import CLIPTokenizer

    if not has_vocabulary(folder):
        raise InputError(f"tokenizer {folder} holds neither tokenizer.json nor vocab.json; copy the folder again")
    for file in _texts(folder):
        if not file.is_file() or is_pointer(file.read_bytes()):
            read_json(file, "tokenizer")  # which says what it is; the library knows what may be in it
    with library_errors(f"tokenizer {folder}", "copy the folder again"), _without_words(folder) as (plain, words):
        tokenizer = CLIPTokenizer.from_pretrained(str(plain), local_files_only=True)
        if max(tokenizer.get_vocab().values()) > 10 * len(tokenizer):  # a copy counts up to it
            raise InputError(f"tokenizer {folder} has token ids far beyond its {len(tokenizer)} tokens; copy it again")
        copy.deepcopy(tokenizer)  # raises, as saving would, where merges need a token that the vocabulary lacks
        add_words(tokenizer, list(words))
        misplaced = [word for word, number in words.items() if tokenizer.convert_tokens_to_ids(word) != number]
        if misplaced:
            raise InputError(
                f"tokenizer {folder} does not number {len(misplaced)} of its words in order, first"
                f" {shown(misplaced[0])}; copy it again"
            )
    length = tokenizer.model_max_length
    if type(length) is not int or not 2 <= length <= 1_000_000:
        raise InputError(f"tokenizer {folder} gives no model_max_length; add it to tokenizer_config.json (SD 1.5: 77)")
    return tokenizer


def _texts(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("[!.]*") if file.suffix in (".json", ".txt"))


def add_words(tokenizer: Any, words: Sequence[str]) -> None:
    """Adds learned words, which the tokenizer then finds in the raw text, each as one token: no lower-casing, no splits."""
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])


@contextmanager
def _without_words(folder: Path) -> Iterator[tuple[Path, dict[str, int]]]:
    """Yields a copy of `folder` without its learned words, and these with their ids.

    transformers copies every added token of a file several times, which takes 12 s for 200,000. The copy also lacks the
    byte-order marks at which the tokenizers library stops. A folder with neither is yielded itself.
    """
    texts = {file.name: file.read_bytes() for file in _texts(folder)}
    plain = {name: decode_text(text).encode() for name, text in texts.items()}
    words = _take_words(plain)
    if plain == texts:
        yield folder, words
        return
    with tempfile.TemporaryDirectory() as copied:
        for name, text in plain.items():
            Path(copied, name).write_bytes(text)
        yield Path(copied), words


def _take_words(texts: dict[str, bytes]) -> dict[str, int]:
    """Takes the learned words, which come last, out of tokenizer.json's text; returns their ids, in order.

    Takes none from a folder of an older library, which lists added tokens in a second file too.
    """
    listed = "added_tokens.json" in texts or b"added_tokens_decoder" in texts.get("tokenizer_config.json", b"")
    if listed or "tokenizer.json" not in texts:
        return {}
    data = json.loads(texts["tokenizer.json"])
    added = sorted(data["added_tokens"], key=lambda token: token["id"])  # transformers adds them in this order
    first = next((n for n in range(len(added), 0, -1) if not _is_word(added[n - 1])), 0)
    if first < len(added):
        texts["tokenizer.json"] = json.dumps({**data, "added_tokens": added[:first]}).encode()
    return {token["content"]: token["id"] for token in added[first:]}


def _is_word(token: dict[str, Any]) -> bool:
    """Whether an added token is as `add_words` makes it."""
    return {**token, "id": 0, "content": ""} == _WORD


def load_network(folder: Path, part: str) -> Any:
    """Loads one network of a model folder in float32; missing tensors or other shapes raise, and never start random."""
    from safetensors.torch import load_file

    where = f"model {folder}: {part}"
    config = read_config(config_file(folder, part), part)
    tensors: dict[str, torch.Tensor] = {}
    for file in _weights(folder / part, part):
        check_safetensors(file)
        tensors |= load_file(file)
    module = empty_network(part, config, len(tensors), where)
    if part == "text_encoder":
        plain = {name.removeprefix(TEXT_PREFIX): tensor for name, tensor in tensors.items()}
        named = {name: plain.get(name.removeprefix(TEXT_PREFIX)) for name in module.state_dict()}
        return filled(module, named, where, _MISMATCH)
    return filled(module, {_current_name(name): tensor for name, tensor in tensors.items()}, where, _MISMATCH)


def _current_name(name: str) -> str:
    """diffusers' name of a tensor; the first files call the linears of the VAE's attention differently."""
    return re.sub(
        r"(\.attentions\.\d+)\.(query|key|value|proj_attn)\.", lambda m: f"{m[1]}.{_FIRST_NAMES[m[2]]}.", name
    )


def empty_network(part: str, config: dict[str, Any], tensors: int, where: str) -> Any:
    """Makes a network of its configuration, without weights, for a file of so many tensors.

    A configuration of which nothing, or far more layers than tensors, would be made raises `InputError`.
    """
    import torch

    layers = prod(abs(x) for name, value in config.items() if "layers" in name for x in _numbers(value) if x)
    largest = max((abs(x) for value in config.values() for x in _numbers(value)), default=0)
    longest = max((len(value) for value in config.values() if isinstance(value, list)), default=0)
    if max(layers, longest) > max(tensors, 100) or largest > 1e9:  # making it would not end
        raise InputError(f"{where}: its config.json describes a network far larger than its weights; copy it again")
    cls = network_class(part)
    if part != "text_encoder":
        known = inspect.signature(cls.__init__).parameters
        unknown = [name for name in config if name not in known and not name.startswith("_")]
        config = {name: value for name, value in config.items() if name not in unknown}
        if unknown:
            warnings.warn(
                f"{where}: diffusers knows no {brief(', '.join(unknown), 80)}, which is ignored", stacklevel=2
            )
    # on "meta" no memory is taken and no random numbers are drawn; the tensors of files take the parameters' places
    with library_errors(f"{where}: its config.json", "copy it again"), torch.device("meta"):
        return cls(cls.config_class.from_dict(config)) if part == "text_encoder" else cls.from_config(config)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)


def filled(module: Any, found: Mapping[str, torch.Tensor | None], where: str, remedy: str) -> Any:
    """Returns the empty network with its tensors of `found` as float32, in eval mode, gradients off.

    Missing tensors, and those of other shapes or that hold no finite numbers, raise `InputError`.
    """
    import torch

    expected = module.state_dict()
    wrong = [name for name, tensor in expected.items() if getattr(found.get(name), "shape", None) != tensor.shape]
    if wrong:
        tensor = found.get(wrong[0])
        raise InputError(
            f"{where} lacks {len(wrong)} of {len(expected)} tensors or holds them in other shapes, first {wrong[0]}"
            f" {list(expected[wrong[0]].shape)} ({'missing' if tensor is None else list(tensor.shape)}); {remedy}"
        )
    module.load_state_dict(as_floats({name: found[name] for name in expected}, where), assign=True)
    for name, buffer in module.named_buffers():
        if buffer.is_meta:  # the positions 0, 1, ... of the text encoder, which no file holds
            holder, _, last = name.rpartition(".")
            module.get_submodule(holder).register_buffer(last, torch.arange(buffer.shape[-1])[None], persistent=False)
    return module.eval().requires_grad_(False)


def as_floats(tensors: Mapping[str, Any], where: str) -> dict[str, torch.Tensor]:
    """Returns the tensors as float32; one of another kind, or with NaN or infinity, raises `InputError`."""
    floats = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise InputError(
                f"{where}: tensor {shown(name)} is {tensor.dtype}, expected floating point; make the file again"
            )
        floats[name] = tensor.float()
        if tensor.numel() and not all(bound.isfinite() for bound in floats[name].aminmax()):
            raise InputError(f"{where}: tensor {shown(name)} holds NaN or infinity; make the file again")
    return floats


def network_class(part: str) -> Any:
    """Returns the class of a network in diffusers or transformers."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    return {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}[part]


def _weights(folder: Path, part: str) -> list[Path]:
    """The files that hold a network: one, or the shards that an index names; half precision only if there is no other."""
    plain, stem = WEIGHTS[part], WEIGHTS[part].removesuffix(".safetensors")
    for variant in ("", ".fp16", ".bf16"):
        one = f"{stem}{variant}.safetensors"
        if (folder / one).is_file():
            return [folder / one]
        for index in (f"{plain}.index{variant}.json", f"{one}.index.json"):
            if (folder / index).is_file():
                return _shards(folder / index)
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    raise InputError(f"model part {folder} has no {plain} (found {found}); convert its weights to safetensors first")


def _shards(index: Path) -> list[Path]:
    data = read_json(index, "model")
    names = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(names, dict) or not all(isinstance(n, str) and Path(n).name == n for n in names.values()):
        raise InputError(f"model: {index} must map tensors to files beside it (weight_map); copy the folder again")
    return [index.parent / name for name in sorted(set(names.values()))]


def check_safetensors(path: Path) -> None:
    """Raises `InputError` if `path` is missing, truncated or no safetensors file; reads the header only."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path} does not exist or is no file; copy the folder again")
    try:
        with safe_open(path, framework="pt"):
            return
    except (SafetensorError, OSError) as error:
        with open(path, "rb") as stream:
            pointer = is_pointer(stream.read(100))
        reason = POINTER if pointer else f"is not a whole safetensors file ({brief(error, 80)}); copy it again"
        raise InputError(f"{path} {reason}") from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads all tensors of a safetensors file as float32 on the CPU; a missing or broken file raises `InputError`."""
    from safetensors.torch import load_file

    check_safetensors(path)
    return as_floats(load_file(path), str(path))


def kept_tensors(path: Path, make: Callable[[], Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """As `read_tensors`; a file that is not there is written first, of what `make` returns."""
    if not path.is_file():
        with atomic_path(path) as temporary:
            write_tensors(temporary, make())
    return read_tensors(path)


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
