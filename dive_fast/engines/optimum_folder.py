"""Reads an export by optimum (the layout of ORTStableDiffusionPipeline) as an engine.

model_index.json  tokenizer/  scheduler/  text_encoder/model.onnx  unet/model.onnx  vae_decoder/model.onnx
vae_encoder/model.onnx      and a config.json beside each graph
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dive_fast.engines.base import ROWS_MAX
from dive_fast.engines.engine_folder import FOLDERS, PARTS, EngineFiles, read_metadata, signatures
from dive_fast.engines.onnx_session import PRECISIONS, Network
from dive_fast.io import canonical_json, sha256_bytes, sha256_file
from dive_fast.json_files import read_json
from dive_fast.models.prompts import DEFAULT_TEMPLATE, PromptTable
from dive_fast.types import DiveError, EngineSpec, InputError, Profile, shown

INDEX = "model_index.json"
AGAIN = "export it again (optimum-cli export onnx --task text-to-image)"
OTHERS = ("text_encoder_2", "text_encoder_3", "transformer", "controlnet")  # networks that no engine here calls


def read_optimum(folder: Path) -> EngineFiles:
    """Reads an export by optimum but for what only its graphs show (`settled`).

    It knows the empty prompt only, unless the folder has a `prompts.json`, whose words the tokenizer must have. Its
    fingerprint is that of its files. Raises `InputError` for another layout.
    """
    _check_layout(folder)
    read = [path for name in FOLDERS for path in sorted((folder / name).rglob("[!.]*")) if path.is_file()]
    read += [path for name in (INDEX, "prompts.json") if (path := folder / name).is_file()]
    hashes = {path.relative_to(folder).as_posix(): sha256_file(path) for path in read}
    model = sha256_bytes(canonical_json(hashes).encode())
    spec = EngineSpec(
        backend="onnxruntime",
        precision="fp32",
        profile=Profile(1, 32, ROWS_MAX, 0, 0),
        model_fingerprint=model,
        files={part: f"{part}/model.onnx" for part in PARTS},
        versions={},
        sha256=hashes,
        any_size=True,
    )
    known = (folder / "prompts.json").is_file()
    table = PromptTable.read(folder / "prompts.json") if known else PromptTable((), (), DEFAULT_TEMPLATE, model, "")
    files = read_metadata(folder, spec, table, AGAIN)
    own = read_json(folder / "unet" / "config.json", "engine").get("sample_size")
    height, width = own if isinstance(own, list) and len(own) == 2 else (own, own)
    if type(height) is not int or type(width) is not int:
        raise InputError(f"engine {folder}: the UNet's sample_size is {shown(own)}, not one number or two; {AGAIN}")
    scale = files.geometry.vae_scale
    return files.resized((scale * height, scale * width))


def settled(
    files: EngineFiles, networks: Mapping[str, Network], precision: str, size: tuple[int, int] | None
) -> EngineFiles:
    """Completes `files` with the precision and the image size of the graphs.

    Graphs of any size get `size` (height, width), by default the UNet's own. Raises `DiveError` with every reason why the
    graphs do not fit `precision` and `size`.
    """
    unet = networks["unet"]
    unet.require(*signatures(files.spec)["unet"], files.remedy)
    sample = unet.inputs["sample"]
    found = PRECISIONS[sample.dtype]
    fixed = [files.geometry.vae_scale * side for side in sample.dimensions[2:] if isinstance(side, int)]
    reasons = [f"precision {precision}: the graphs are {found}"] if precision not in ("auto", found) else []
    if size is not None and fixed and list(size) != fixed:
        reasons.append(f"size {size[0]}x{size[1]}: the graphs are for {fixed[0]}x{fixed[-1]} (height x width) alone")
    if reasons:
        raise DiveError(f"engine {files.folder} cannot run as asked: {'; '.join(reasons)}")
    resized = files.resized((fixed[0], fixed[-1]) if fixed else size)
    return replace(resized, spec=replace(resized.spec, precision=found, any_size=not fixed))


def _check_layout(folder: Path) -> None:
    """Raises `InputError` with everything missing from, or unsupported in, an export of Stable Diffusion."""
    index = read_json(folder / INDEX, "engine")
    if not isinstance(index, dict):
        raise InputError(f"engine {folder}: {INDEX} must hold a JSON object, got {type(index).__name__}; {AGAIN}")
    more = [name for name in OTHERS if (folder / name).is_dir() or index.get(name) not in (None, [None, None])]
    if more:
        raise InputError(
            f"engine {folder} has {', '.join(more)}: only Stable Diffusion 1 and 2 have an engine here "
            "(one text encoder, a UNet, a VAE)"
        )
    needed = [f"{part}/{name}" for part in PARTS for name in ("model.onnx", "config.json")]
    missing = [name for name in (*needed, "scheduler/scheduler_config.json") if not (folder / name).is_file()]
    if missing:
        raise InputError(f"engine {folder} is an export by optimum that lacks {', '.join(missing)}; {AGAIN}")
