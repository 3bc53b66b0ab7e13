"""An engine folder run by onnxruntime. The folder is untrusted: it is checked before a session opens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from dive_fast.engines.base import Conditioning, EngineBase, Geometry, Kept, by_row, on_device
from dive_fast.engines.onnx_session import PROVIDERS, Network, Place
from dive_fast.io import canonical_json, read_json, sha256_bytes, sha256_file
from dive_fast.models.prompts import PromptEncoder, PromptTable
from dive_fast.types import DiveError, EngineSpec, InputError, Profile, from_dict, to_dict

PARTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
FOLDERS = (*PARTS, "unet_short", "prompt_bank", "tokenizer", "scheduler")
AGAIN = "make the engine again"
UNETS = ("unet", "unet_short")
NETWORKS = {"unet_short": "unet"}  # a part of which network, where their names differ


def read_spec(folder: Path) -> EngineSpec:
    """`engine.json` of an engine folder; missing, broken or of another shape -> `InputError` with the remedy."""
    where = str(folder / "engine.json")
    data = read_json(where, "engine")
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(data).__name__}; {AGAIN}")
    profile = from_dict(Profile, data.get("profile"), where)
    lists = {name: _tuple(data[name]) for name in ("removed", "row_counts") if name in data}
    spec = from_dict(EngineSpec, {**data, "profile": profile, **lists}, where)
    problems = [
        f"{name} must be text"
        for name in ("backend", "precision", "model_fingerprint")
        if not isinstance(getattr(spec, name), str)
    ]
    for name in ("files", "sha256", "versions"):
        table = getattr(spec, name)
        if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
            problems.append(f"{name} must map names to text")
    if not all(type(size) is int and size > 0 for size in to_dict(profile).values()):
        problems.append("profile must hold whole numbers > 0")
    if not isinstance(spec.gpu, (str, type(None))):
        problems.append("gpu must be text or null")
    if spec.form not in ("plain", "bank"):
        problems.append(f"form must be plain or bank, not {spec.form!r}")
    if not isinstance(spec.removed, tuple) or not all(isinstance(name, str) for name in spec.removed):
        problems.append("removed must be a list of names")
    counts = spec.row_counts
    if not isinstance(counts, tuple) or not all(type(count) is int and count > 0 for count in counts):
        problems.append("row_counts must be a list of whole numbers > 0")
    if not isinstance(spec.any_size, bool):
        problems.append("any_size must be true or false")
    if type(spec.reuse_depth) is not int or spec.reuse_depth < 0 or (spec.reuse_depth and spec.form != "bank"):
        problems.append("reuse_depth must be a whole number, above 0 with form bank only")
    if problems:
        raise InputError(f"{where}: {', '.join(problems)}; {AGAIN}")
    return spec


def _tuple(value: object) -> object:
    """JSON has lists where records have tuples; anything else is left for the checks to name."""
    return tuple(value) if isinstance(value, list) else value


def parts(spec: EngineSpec) -> tuple[str, ...]:
    """The networks of an engine of this form."""
    short = ("unet_short",) if spec.reuse_depth else ()
    return (*PARTS, "prompt_bank", *short) if spec.form == "bank" else PARTS


def check_files(folder: Path, spec: EngineSpec) -> None:
    """Raises `InputError` unless the recorded files are inside the folder, present, unchanged, and all that is read."""
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
            raise InputError(f"engine {folder}: engine.json names {name!r}, which is outside the folder; {AGAIN}")
        if not (folder / path).is_file():
            raise InputError(f"engine {folder}: {name} is missing; copy the folder again, or {AGAIN}")
        if sha256_file(folder / path) != recorded:
            raise InputError(f"engine {folder}: {name} differs from its hash in engine.json; copy it again, or {AGAIN}")


@dataclass(frozen=True)
class EngineFiles:
    """All of an engine but its networks, read and checked. `remedy` ends a sentence about what is wrong with it."""

    folder: Path
    spec: EngineSpec
    prompts: PromptEncoder
    scheduler_config: dict[str, Any]
    geometry: Geometry
    text_width: int
    fingerprint: str
    remedy: str = AGAIN

    def resized(self, size: tuple[int, int] | None) -> EngineFiles:
        """For images of `size` (height, width); `InputError` when it does not pass through the UNet's levels."""
        if size is None:
            return self
        misfits = self.geometry.misfits(*size)
        if misfits or min(size) < 1:
            raise InputError(f"engine {self.folder}: {'; '.join(misfits) or 'a size is > 0'}; choose another size")
        profile = replace(self.spec.profile, height=size[0], width=size[1])
        return replace(self, spec=replace(self.spec, profile=profile))


def read_engine(folder: Path, spec: EngineSpec) -> EngineFiles:
    """The folder that `dive-fast export` wrote, whose `engine.json` is `spec`; not whole -> `InputError`."""
    check_files(folder, spec)
    return read_facts(folder, spec, PromptTable.read(folder / "prompts.json"), AGAIN)


def read_facts(folder: Path, spec: EngineSpec, table: PromptTable, remedy: str) -> EngineFiles:
    """What stands beside the graphs: configs, vocabulary and noise schedule."""
    unet, vae = (read_json(folder / part / "config.json", "engine") for part in ("unet", "vae_decoder"))
    geometry = Geometry.from_configs(unet, vae, f"engine {folder}")
    width = unet.get("cross_attention_dim")
    if type(width) is not int:
        raise InputError(f"engine {folder}: the UNet's cross_attention_dim is {width!r}, not one number; {remedy}")
    return EngineFiles(
        folder=folder,
        spec=spec,
        prompts=PromptEncoder(folder / "tokenizer", table),
        scheduler_config=read_json(folder / "scheduler" / "scheduler_config.json", "engine"),
        geometry=geometry,
        text_width=width,
        fingerprint=sha256_bytes(canonical_json(to_dict(spec)).encode()),
        remedy=remedy,
    )


def signatures(spec: EngineSpec) -> dict[str, tuple[tuple[str, ...], str]]:
    """The inputs that each graph reads, and the output that is asked of it, by part."""
    hidden = "encoder_hidden_states"
    by_image = ("image_index",) if "shared_prefix" in spec.removed else ()
    prompts = (hidden,) if spec.form == "plain" else ("kv_bank", "prompt_index", *by_image)
    bank = {} if spec.form == "plain" else {"prompt_bank": ((hidden,), "kv_bank")}
    if spec.reuse_depth:
        bank["unet_short"] = (("sample", "timestep", *prompts, "deep"), "out_sample")
    return {
        "text_encoder": (("input_ids",), "last_hidden_state"),
        "unet": (("sample", "timestep", *prompts), "out_sample"),
        "vae_decoder": (("latent_sample",), "sample"),
        "vae_encoder": (("sample",), "latent_parameters"),
        **bank,
    }


def open_networks(files: EngineFiles, where: Place, threads: int | None) -> dict[str, Network]:
    """The graphs on `where`; `threads` limits one operator's CPU threads, by default to torch's own number."""
    count = threads or torch.get_num_threads()
    return {part: Network.open(files.folder / files.spec.files[part], where, count) for part in parts(files.spec)}


class OnnxEngine(EngineBase):
    """Graphs with free rows, of either UNet form and any precision, on one provider; tensors stay on its device."""

    def __init__(self, files: EngineFiles, networks: Mapping[str, Network], chosen: str, guard: bool = False) -> None:
        """Raises `InputError` when the graphs are not those that `files` tells of."""
        where = networks["unet"].place
        super().__init__(
            spec=files.spec,
            prompts=files.prompts,
            scheduler_config=files.scheduler_config,
            device=where.device,
            fingerprint=files.fingerprint,
            geometry=files.geometry,
            runs_on=PROVIDERS[where.kind],
            chosen=chosen,
            guard=guard,
        )
        self._networks = networks
        self._text_width = files.text_width
        # What each network ran last, and what it was given: kept for the guard alone.
        self._last: dict[str, tuple[str, dict[str, Tensor]]] = {}
        self._check_graphs(files)

    def _check_graphs(self, files: EngineFiles) -> None:
        """Names as form and savings want them; sizes, where a graph fixes them, as the profile has them."""
        image, latent = (3, self.spec.profile.height, self.spec.profile.width), self.latent_shape
        sizes = {"unet": ("sample", latent), "vae_decoder": ("latent_sample", latent), "vae_encoder": ("sample", image)}
        for part, (inputs, output) in signatures(self.spec).items():
            network = self._networks[part]
            network.require(inputs, output, files.remedy)
            name, wanted = sizes.get(part, (inputs[0], ()))
            rows, *found = network.inputs[name].dimensions
            if isinstance(rows, int) and rows != self.spec.profile.rows_max:
                raise InputError(f"{network.path} takes {rows} rows and no other number; {files.remedy}")
            if any(isinstance(f, int) and f != w for f, w in zip_longest(found, wanted or found, fillvalue=0)):
                raise InputError(
                    f"engine {files.folder}: {part} takes rows of {tuple(found)}, where {wanted} is needed; {files.remedy}"
                )

    def condition(self, embeddings: Tensor) -> Conditioning:
        if self.spec.form == "plain":
            return Conditioning(
                embeddings.to(self.device, self._networks["unet"].inputs["encoder_hidden_states"].dtype)
            )
        columns = self._networks["prompt_bank"].outputs["kv_bank"].dimensions[-1]
        if not isinstance(columns, int):
            raise InputError(f"{self._networks['prompt_bank'].path} leaves the last dimension of kv_bank open; {AGAIN}")
        banks = []
        for part in self.by_prompts(embeddings):
            shape = (len(part), 2, part.shape[1], columns)
            bank = self._run("prompt_bank", "kv_bank", shape, encoder_hidden_states=part)
            banks.append(self._guarded("prompt_bank", bank, part))
        return Conditioning(torch.cat(banks))

    def _text(self, token_ids: Tensor) -> Tensor:
        shape = (*token_ids.shape, self._text_width)
        return self._run("text_encoder", "last_hidden_state", shape, input_ids=token_ids).float()

    def _unet(self, latents: Tensor, timestep: int, bank: Tensor, prompt_index: Tensor) -> Tensor:
        given = self._unet_inputs(latents, timestep, bank, prompt_index)
        return self._run("unet", "out_sample", (len(prompt_index), *self.latent_shape), **given).float()

    def _unet_kept(self, latents: Tensor, timestep: int, bank: Tensor, prompt_index: Tensor, kept: Kept) -> Tensor:
        given = self._unet_inputs(latents, timestep, bank, prompt_index)
        shape = (len(prompt_index), *self.latent_shape)
        if kept.deep is not None:
            return self._run("unet_short", "out_sample", shape, deep=kept.deep, **given).float()
        channels = self._networks["unet_short"].inputs["deep"].dimensions[1]
        if not isinstance(channels, int):
            raise InputError(f"{self._networks['unet_short'].path} leaves the channels of deep open; {AGAIN}")
        deep = (len(prompt_index), channels, *self.latent_shape[1:])
        out, kept.deep = self._run_for("unet", {"out_sample": shape, "deep": deep}, **given).values()
        return out.float()

    def _unet_inputs(self, latents: Tensor, timestep: int, bank: Tensor, prompt_index: Tensor) -> dict[str, Tensor]:
        network, rows = self._networks["unet"], len(prompt_index)
        steps = torch.full([1] * len(network.inputs["timestep"].dimensions), timestep, device=self.device)
        if self.spec.form == "plain":
            sample, hidden = by_row(latents, bank, prompt_index)
            given = {"sample": sample, "encoder_hidden_states": hidden}
        else:
            image = torch.arange(rows, device=self.device) % len(latents)
            shared = "shared_prefix" in self.spec.removed
            given = {"sample": latents if shared else latents.index_select(0, image), "kv_bank": bank}
            given |= {"prompt_index": on_device(prompt_index, self.device)} | ({"image_index": image} if shared else {})
        return {"timestep": steps, **given}

    def _decoder(self, latents: Tensor) -> Tensor:
        shape = (len(latents), 3, self.spec.profile.height, self.spec.profile.width)
        return self._run("vae_decoder", "sample", shape, latent_sample=latents).float()

    def _encoder(self, pixels: Tensor) -> Tensor:
        channels, height, width = self.latent_shape
        parameters = self._run(
            "vae_encoder", "latent_parameters", (len(pixels), 2 * channels, height, width), sample=pixels
        )
        return parameters[:, :channels].float()  # the rest is the log variance

    def _run(self, part: str, output: str, shape: Sequence[int], **inputs: Tensor) -> Tensor:
        return self._run_for(part, {output: shape}, **inputs)[output]

    def _run_for(self, part: str, shapes: Mapping[str, Sequence[int]], **inputs: Tensor) -> dict[str, Tensor]:
        if self.guard:
            self._last[NETWORKS.get(part, part)] = part, inputs
        return self._networks[part].run_for(shapes, **inputs)

    def _first_bad_layer(self, network: str) -> str | None:
        from dive_fast.engines.nan_trace import first_bad_layer

        part, inputs = self._last[network]
        arrays = {name: (x.float() if x.is_floating_point() else x).cpu().numpy() for name, x in inputs.items()}
        try:
            layer = first_bad_layer(self._networks[part].path, arrays)
        except DiveError as error:  # that it cannot be told is no reason to hide that the answer is bad
            return str(error)
        return None if layer is None else layer.sentence()
