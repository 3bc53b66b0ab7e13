"""An engine folder's files: read, checked and described, for every backend that runs its graphs or plans."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from dive_fast.engines.base import EngineBase, Geometry, on_device, row_inputs
from dive_fast.engines.registry import Choice
from dive_fast.io import canonical_json, sha256_bytes, sha256_file
from dive_fast.json_files import read_json
from dive_fast.models.prompts import PromptEncoder, PromptTable
from dive_fast.sampling import repeated
from dive_fast.sampling.schedule import check_scheduler
from dive_fast.settings import PositiveInt, type_hints, violation
from dive_fast.types import EngineSpec, InputError, Profile, from_dict, shown, to_dict

PARTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
FOLDERS = (*PARTS, "prompt_bank", "tokenizer", "scheduler")
AGAIN = "make the engine again"


def read_spec(folder: Path) -> EngineSpec:
    """Reads `engine.json` of an engine folder; raises `InputError` if it is missing, broken or of another version."""
    where = str(folder / "engine.json")
    data = read_json(where, "engine")
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(data).__name__}; {AGAIN}")
    try:
        profile = from_dict(Profile, data.get("profile"), where)
        lists = {
            name: tuple(value) for name in ("optimizations", "row_counts") if isinstance(value := data.get(name), list)
        }
        spec = from_dict(EngineSpec, {**data, "profile": profile, **lists}, where)
    except InputError as error:  # of another version of dive-fast
        raise InputError(f"{error}; {AGAIN}") from error
    found = {name: violation(kind, getattr(spec, name)) for name, kind in type_hints(EngineSpec).items()}
    found |= {f"profile.{name}": violation(PositiveInt, count) for name, count in to_dict(profile).items()}
    problems = [f"{name} {problem}" for name, problem in found.items() if problem]
    if not problems:  # the types are right, which leaves what they hold
        tables = {"files": spec.files, "versions": spec.versions, "sha256": spec.sha256}
        values: list[tuple[str, Any, Any]] = [(name, str, x) for name, table in tables.items() for x in table.values()]
        values += [("row_counts", PositiveInt, count) for count in spec.row_counts]
        problems = [f"{name} {problem}" for name, kind, value in values if (problem := violation(kind, value))]
    if problems:
        raise InputError(f"{where}: {', '.join(problems)}; {AGAIN}")
    return spec


def parts(spec: EngineSpec) -> tuple[str, ...]:
    """Returns the names of the engine's graphs."""
    return (*PARTS, "prompt_bank") if spec.variant == "kv-cache" else PARTS


def check_files(folder: Path, spec: EngineSpec) -> None:
    """Raises `InputError` unless every file to be read is recorded, inside the folder, present and unchanged."""
    missing = [part for part in parts(spec) if spec.files.get(part) not in spec.sha256]
    if missing:
        raise InputError(f"engine {folder}: engine.json names no file with a hash for {', '.join(missing)}; {AGAIN}")
    read = [path for name in FOLDERS for path in sorted((folder / name).rglob("[!.]*")) if path.is_file()]
    names = ["prompts.json", *(path.relative_to(folder).as_posix() for path in read)]
    unknown = [name for name in names if name not in spec.sha256]
    if unknown:
        raise InputError(f"engine {folder}: engine.json has no hash of {', '.join(unknown[:3])}; {AGAIN}")
    for name, recorded in spec.sha256.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"engine {folder}: engine.json names {shown(name)}, which is outside the folder; {AGAIN}")
        if not (folder / path).is_file():
            raise InputError(f"engine {folder}: {name} is missing; copy the folder again, or {AGAIN}")
        if sha256_file(folder / path) != recorded:
            raise InputError(f"engine {folder}: {name} differs from its hash in engine.json; copy it again, or {AGAIN}")


@dataclass(frozen=True)
class EngineFiles:
    """All of an engine but its networks, read and checked. `remedy` ends the errors about its graphs."""

    folder: Path
    spec: EngineSpec
    prompts: PromptEncoder
    scheduler_config: dict[str, Any]
    geometry: Geometry
    text_width: int
    fingerprint: str
    remedy: str = AGAIN

    def resized(self, size: tuple[int, int] | None) -> EngineFiles:
        """Returns these files for images of `size` (height, width); raises `InputError` if the UNet cannot halve it."""
        if size is None:
            return self
        misfits = self.geometry.misfits(*size)
        if misfits or min(size) < 1:
            raise InputError(f"engine {self.folder}: {'; '.join(misfits) or 'a size is > 0'}; choose another size")
        profile = replace(self.spec.profile, height=size[0], width=size[1])
        return replace(self, spec=replace(self.spec, profile=profile))


def read_engine(folder: Path, spec: EngineSpec) -> EngineFiles:
    """Reads an engine folder whose `engine.json` is `spec`; raises `InputError` if a file is missing or changed."""
    check_files(folder, spec)
    return read_metadata(folder, spec, PromptTable.read(folder / "prompts.json"), AGAIN)


def read_metadata(folder: Path, spec: EngineSpec, table: PromptTable, remedy: str) -> EngineFiles:
    """Reads what lies beside the graphs: configs, vocabulary and noise schedule."""
    unet, vae = (read_json(folder / part / "config.json", "engine") for part in ("unet", "vae_decoder"))
    geometry = Geometry.from_configs(unet, vae, f"engine {folder}")
    noise = folder / "scheduler" / "scheduler_config.json"
    width = unet.get("cross_attention_dim")
    if type(width) is not int:
        raise InputError(f"engine {folder}: the UNet's cross_attention_dim is {shown(width)}, not one number; {remedy}")
    return EngineFiles(
        folder=folder,
        spec=spec,
        prompts=PromptEncoder(folder / "tokenizer", table),
        scheduler_config=check_scheduler(read_json(noise, "engine", infinite=True), f"engine: {noise}"),
        geometry=geometry,
        text_width=width,
        fingerprint=sha256_bytes(canonical_json(to_dict(spec)).encode()),
        remedy=remedy,
    )


def signatures(spec: EngineSpec) -> dict[str, tuple[tuple[str, ...], str]]:
    """Returns the input names and the output name of each graph, by part."""
    hidden = "encoder_hidden_states"
    by_image = ("image_index",) if "shared_prefix" in spec.optimizations else ()
    prompts = (hidden,) if spec.variant == "plain" else ("kv_bank", "prompt_index", *by_image)
    cached = {} if spec.variant == "plain" else {"prompt_bank": ((hidden,), "kv_bank")}
    return {
        "text_encoder": (("input_ids",), "last_hidden_state"),
        "unet": (("sample", "timestep", *prompts), "out_sample"),
        "vae_decoder": (("latent_sample",), "sample"),
        "vae_encoder": (("sample",), "latent_parameters"),
        **cached,
    }


def fit_reasons(spec: EngineSpec, choice: Choice) -> list[str]:
    """Every reason why an engine of this spec has another precision or size than `choice` asks for."""
    reasons = []
    if choice.precision not in ("auto", spec.precision):
        reasons.append(f"precision {choice.precision}: the engine is {spec.precision}")
    own = (spec.profile.height, spec.profile.width)
    if choice.size not in (None, own) and not spec.any_size:
        height, width = choice.size or own
        reasons.append(f"size {height}x{width}: the engine is {own[0]}x{own[1]} (height x width), export another")
    return reasons


class FolderEngine(EngineBase):
    """What every backend of an engine folder shares: the files' metadata, and the UNet's inputs by name."""

    def __init__(
        self, files: EngineFiles, device: torch.device, runs_on: str, chosen: str, check_finite: bool = False
    ) -> None:
        names = ("spec", "prompts", "scheduler_config", "fingerprint", "geometry")
        shared: dict[str, Any] = {name: getattr(files, name) for name in names}
        super().__init__(**shared, device=device, runs_on=runs_on, chosen=chosen, check_finite=check_finite)

    def unet_inputs(self, latents: Tensor, timestep: int, states: Tensor, prompt_index: Tensor) -> dict[str, Tensor]:
        """The inputs of a UNet call, as `signatures` names them, on the engine's device; timestep is [1]."""
        steps = {"timestep": torch.full((1,), timestep, dtype=torch.int64, device=self.device)}
        rows = len(prompt_index)
        if self.spec.variant == "plain":
            sample, hidden = row_inputs(latents, states, prompt_index)
            return {"sample": sample, **steps, "encoder_hidden_states": hidden}
        inputs = {**steps, "kv_bank": states, "prompt_index": on_device(prompt_index, self.device)}
        if "shared_prefix" not in self.spec.optimizations:
            return {"sample": repeated(latents, rows), **inputs}
        image_index = repeated(torch.arange(len(latents), device=self.device), rows)
        return {"sample": latents, **inputs, "image_index": image_index}
