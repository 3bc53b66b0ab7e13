"""An exported engine folder run by onnxruntime. The folder is untrusted: it is checked before a session opens."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from dive_fast.engines.base import EngineBase, Geometry, by_row
from dive_fast.io import canonical_json, read_json, sha256_bytes, sha256_file
from dive_fast.models.prompts import PromptBank, PromptTable
from dive_fast.types import DiveError, EngineSpec, InputError, Profile, from_dict, to_dict

PARTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
FOLDERS = (*PARTS, "tokenizer", "scheduler")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
AGAIN = "export the engine again"


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
    if problems:
        raise InputError(f"{where}: {', '.join(problems)}; {AGAIN}")
    return spec


def _tuple(value: object) -> object:
    """JSON has lists where records have tuples; anything else is left for the checks to name."""
    return tuple(value) if isinstance(value, list) else value


def check_files(folder: Path, spec: EngineSpec) -> None:
    """Raises `InputError` unless the recorded files are inside the folder, present, unchanged, and all that is read."""
    missing = [part for part in PARTS if spec.files.get(part) not in spec.sha256]
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


class OnnxEngine(EngineBase):
    """Float32 graphs with static image size and free rows. Tensors cross to numpy without a copy on a CPU."""

    def __init__(self, folder: Path, spec: EngineSpec, provider: str, threads: int | None, chosen: str) -> None:
        """`provider` is "cpu" or "cuda"; `threads` limits one operator's threads, by default to torch's own number.

        Raises `InputError` for a folder that is not whole, `DiveError` when the provider does not come up.
        """
        check_files(folder, spec)
        unet, vae = (read_json(folder / part / "config.json", "engine") for part in ("unet", "vae_decoder"))
        super().__init__(
            spec=spec,
            prompts=PromptBank(folder / "tokenizer", PromptTable.read(folder / "prompts.json")),
            scheduler_config=read_json(folder / "scheduler" / "scheduler_config.json", "engine"),
            device=torch.device("cpu"),  # where tensors are handed over, whichever provider computes
            fingerprint=sha256_bytes(canonical_json(to_dict(spec)).encode()),
            geometry=Geometry.from_configs(unet, vae, f"engine {folder}"),
            runs_on=PROVIDERS[provider],
            chosen=chosen,
        )
        self._sessions = {
            part: open_session(folder / spec.files[part], PROVIDERS[provider], threads or torch.get_num_threads())
            for part in PARTS
        }
        self._check_shapes(folder)

    def _check_shapes(self, folder: Path) -> None:
        """The graphs' sizes are fixed; engine.json and the configs must tell the same ones."""
        image = (3, self.spec.profile.height, self.spec.profile.width)
        for part, sizes in (("unet", self.latent_shape), ("vae_decoder", self.latent_shape), ("vae_encoder", image)):
            found = tuple(self._sessions[part].get_inputs()[0].shape[1:])
            if found != sizes:
                raise InputError(f"engine {folder}: {part} takes rows of {found}, engine.json says {sizes}; {AGAIN}")

    def _text(self, token_ids: Tensor) -> Tensor:
        return self._run("text_encoder", input_ids=token_ids)

    def _unet(self, latents: Tensor, timestep: int, bank: Tensor, prompt_index: Tensor) -> Tensor:
        sample, hidden = by_row(latents.float(), bank, prompt_index)
        steps = torch.tensor([timestep], dtype=torch.int64)
        return self._run("unet", sample=sample, timestep=steps, encoder_hidden_states=hidden)

    def _decoder(self, latents: Tensor) -> Tensor:
        return self._run("vae_decoder", latent_sample=latents.float())

    def _encoder(self, pixels: Tensor) -> Tensor:
        return self._run("vae_encoder", sample=pixels)[:, : self.geometry.channels]  # the rest is the log variance

    def _run(self, part: str, **inputs: Tensor) -> Tensor:
        arrays = {name: tensor.detach().contiguous().numpy() for name, tensor in inputs.items()}
        try:
            return torch.from_numpy(self._sessions[part].run(None, arrays)[0])
        except Exception as error:  # onnxruntime's own exceptions share no base class but this
            raise DiveError(f"engine part {part} failed in onnxruntime: {_brief(error)}") from error


def open_session(path: Path, provider: str, threads: int) -> Any:
    """An onnxruntime session that really runs on `provider`; `DiveError` when it does not, `InputError` when broken."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # as above; the graph passed its hash, so it was written broken
        raise InputError(f"{path} is not a graph that onnxruntime can open ({_brief(error)}); {AGAIN}") from error
    # onnxruntime takes a provider that fails to load (a missing CUDA library, say) for the CPU's with a mere warning.
    if session.get_providers()[0] != provider:
        raise DiveError(
            f"onnxruntime did not bring up {provider} and offers {session.get_providers()[0]}; "
            "install the libraries it asks for, or choose device 'cpu'"
        )
    return session


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
