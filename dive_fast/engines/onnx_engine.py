"""An engine folder, or an export by optimum, run by onnxruntime."""

from __future__ import annotations

import importlib.util
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from dive_fast.engines.base import Conditioning, Engine
from dive_fast.engines.engine_folder import (
    AGAIN,
    EngineFiles,
    FolderEngine,
    fit_reasons,
    parts,
    read_engine,
    read_spec,
    signatures,
)
from dive_fast.engines.onnx_session import PROVIDERS, Network, Place, Provider, default_cache, place
from dive_fast.engines.registry import EXPORTED, OPTIMUM, Choice
from dive_fast.io import POINTER, is_pointer
from dive_fast.types import DiveError, EngineSpec, InputError, shown

Networks = Mapping[str, Network]
_LOOP = b"\x22\x04Loop"  # NodeProto's op_type in a graph's bytes


def open_onnx(folder: Path, choice: Choice) -> Engine:
    """Opens `folder` on the provider that `choice` asks for; where auto chose a GPU that fails, on the CPU."""
    if choice.kind == OPTIMUM:
        from dive_fast.engines.optimum_folder import read_optimum, settled

        reasons = []
        if choice.backend.name == "onnxruntime-tensorrt":
            reasons.append(
                "backend onnxruntime-tensorrt: it reads the precision from an engine.json, and the folder has none"
            )
        kind, because = _provider(folder, choice, reasons)
        files = read_optimum(folder)
        return _on_provider(
            files, lambda networks: settled(files, networks, choice.precision, choice.size), choice, kind, because
        )
    spec = read_spec(folder)
    kind, because = _provider(folder, choice, _spec_reasons(spec, choice))
    resized = read_engine(folder, spec).resized(choice.size)
    return _on_provider(resized, lambda networks: resized, choice, kind, because)


def why_not(name: str, device: str) -> list[str]:
    """Every reason why the backend `name` does not run on `device` here."""
    return [] if device == "cpu" else _missing("cuda" if name == "onnxruntime" else "tensorrt")


def _missing(kind: Provider) -> list[str]:
    if importlib.util.find_spec("onnxruntime") is None:
        return ["onnxruntime is not installed: pip install 'dive-fast[gpu]'"]
    import onnxruntime

    listed, reasons = onnxruntime.get_available_providers(), []
    if PROVIDERS[kind] not in listed:
        reasons.append(
            f"this onnxruntime has no {PROVIDERS[kind]}, only {', '.join(listed)}; pip uninstall it and "
            "pip install 'dive-fast[gpu]'"
        )
    if kind == "cuda" and importlib.util.find_spec("onnx") is None:
        reasons.append("it needs onnx, which is not installed: pip install 'dive-fast[gpu]'")
    if not torch.cuda.is_available():  # whose tensors the provider reads and writes
        reasons.append(f"torch {torch.__version__} sees no CUDA GPU")
    return reasons


def _provider(folder: Path, choice: Choice, reasons: list[str]) -> tuple[Provider, str]:
    """Returns the provider and why it was chosen; raises `DiveError` with all `reasons` if there is one."""
    if choice.graphs:
        reasons.append("graphs: onnxruntime is run without, use --backend torch-compiled or build the engine")
    if importlib.util.find_spec("onnxruntime") is None:
        choice.refuse(folder, [*reasons, "onnxruntime is not installed: pip install 'dive-fast[cpu]'"])
    tensorrt = choice.backend.name == "onnxruntime-tensorrt"
    kind: Provider = "tensorrt" if tensorrt else "cuda"
    missing = _missing(kind)
    if choice.device == "cuda" or (tensorrt and choice.device == "auto"):
        reasons += [f"device cuda: {reason}" for reason in missing]
    choice.refuse(folder, reasons)
    if choice.device != "auto":
        return kind if choice.device == "cuda" else "cpu", "asked for"
    if missing:
        return "cpu", "; ".join(missing)
    return kind, "a CUDA GPU is there"


def _on_provider(
    files: EngineFiles, settle: Callable[[Networks], EngineFiles], choice: Choice, kind: Provider, because: str
) -> Engine:
    """Opens the engine on `kind`; if device auto chose a GPU whose provider fails, on the CPU with that reason.

    `settle` completes `files` from the opened graphs.
    """
    where = place(kind, files.spec.precision, choice.cache or default_cache(files.fingerprint))
    try:
        networks = open_networks(files, where, choice.threads)
    except InputError:
        raise
    except DiveError as error:  # listed, but its libraries are not there
        if choice.device != "auto" or kind != "cuda":
            raise
        return _on_provider(files, settle, choice, "cpu", str(error))
    return OnnxEngine(settle(networks), networks, f"{choice.why}, device: {because}", choice.check_finite)


def foreign(spec: EngineSpec) -> list[str]:
    """Every reason why `spec` is not that of an export."""
    reasons = []
    if spec.backend != EXPORTED:
        reasons.append(f"engine.json has the unknown backend {shown(spec.backend)}")
    if spec.gpu is not None:
        reasons.append(f"it was built for the GPU {shown(spec.gpu)}, onnxruntime engines are for any machine")
    return reasons


def _spec_reasons(spec: EngineSpec, choice: Choice) -> list[str]:
    reasons = foreign(spec)
    if spec.precision not in choice.backend.precisions:
        reasons.append(f"precision {spec.precision}: {choice.backend.name} has none, build it (dive-fast build)")
    return reasons + fit_reasons(spec, choice)


def open_networks(files: EngineFiles, where: Place, threads: int | None) -> dict[str, Network]:
    """Opens the graphs on `where`; `threads` limits an operator's CPU threads, by default to torch's number."""
    count = threads or torch.get_num_threads()
    for part in parts(files.spec):
        check_graph(files, files.folder / files.spec.files[part])
    return {part: Network.open(files.folder / files.spec.files[part], where, count) for part in parts(files.spec)}


def check_graph(files: EngineFiles, path: Path) -> None:
    """Raises `InputError` for a graph that names a file beside it whose hash is not recorded, or that may never end."""
    with open(path, "rb") as stream:
        if is_pointer(stream.read(100)):
            raise InputError(f"{path} {POINTER}")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as graph:
            for file in sorted(path.parent.rglob("*")):  # weights may lie in any of them, hidden ones too
                name = file.relative_to(files.folder).as_posix()
                if name not in files.spec.sha256 and file.is_file() and graph.find(os.fsencode(file.name)) >= 0:
                    raise InputError(f"{path} reads {name}, of which no hash is recorded; {files.remedy}")
            if graph.find(_LOOP) >= 0:
                raise InputError(f"{path} has a Loop, which may never end and which no engine needs; {files.remedy}")


class OnnxEngine(FolderEngine):
    """Graphs with free rows, of either variant and any precision, on one provider; tensors stay on its device."""

    def __init__(self, files: EngineFiles, networks: Networks, chosen: str, check_finite: bool = False) -> None:
        """Raises `InputError` when the graphs are not those that `files` describes."""
        where = networks["unet"].place
        super().__init__(files, where.device, PROVIDERS[where.kind], chosen, check_finite)
        self._networks = networks
        self._text_width = files.text_width
        self._last: dict[str, dict[str, Tensor]] = {}  # inputs of each network's last call, for check_finite only
        self._check_graphs(files)

    def _check_graphs(self, files: EngineFiles) -> None:
        """Raises `InputError` unless the graphs have the names of `signatures` and the sizes of the profile."""
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
        if self.spec.variant == "plain":
            return Conditioning(
                embeddings.to(self.device, self._networks["unet"].inputs["encoder_hidden_states"].dtype)
            )
        columns = self._networks["prompt_bank"].outputs["kv_bank"].dimensions[-1]
        if not isinstance(columns, int):
            raise InputError(f"{self._networks['prompt_bank'].path} leaves the last dimension of kv_bank open; {AGAIN}")
        caches = []
        for part in self.by_prompts(embeddings):
            shape = (len(part), 2, part.shape[1], columns)
            cache = self._run("prompt_bank", "kv_bank", shape, encoder_hidden_states=part)
            caches.append(self._checked("prompt_bank", cache, part))
        return Conditioning(torch.cat(caches))

    def _text(self, token_ids: Tensor) -> Tensor:
        shape = (*token_ids.shape, self._text_width)
        return self._run("text_encoder", "last_hidden_state", shape, input_ids=token_ids).float()

    def _unet(self, latents: Tensor, timestep: int, states: Tensor, prompt_index: Tensor) -> Tensor:
        given = self.unet_inputs(latents, timestep, states, prompt_index)
        if not self._networks["unet"].inputs["timestep"].dimensions:  # as some exports by optimum have it
            given["timestep"] = given["timestep"].squeeze(0)
        return self._run("unet", "out_sample", (len(prompt_index), *self.latent_shape), **given).float()

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
        if self.check_finite:
            self._last[part] = inputs
        return self._networks[part].run(output, shape, **inputs)

    def _first_bad_layer(self, network: str) -> str | None:
        try:
            from dive_fast.engines.nan_trace import first_bad_layer
        except ImportError:
            return "to name the layer, pip install 'dive-fast[export]'"
        inputs = self._last[network]
        arrays = {name: (x.float() if x.is_floating_point() else x).cpu().numpy() for name, x in inputs.items()}
        try:
            layer = first_bad_layer(self._networks[network].path, arrays)
        except DiveError as error:  # the caller still reports that the output is bad
            return str(error)
        return None if layer is None else layer.describe()
