"""A TensorRT engine folder on a GPU: static profiles, fixed buffers, one stream, no synchronisation within a step.

Not run on a GPU yet, but for `make gpu-test`. Tests run it against a stand-in for the `tensorrt` module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dive_fast.engines import tensorrt_api as trt
from dive_fast.engines.base import Conditioning, Engine
from dive_fast.engines.engine_folder import EngineFiles, FolderEngine, fit_reasons, parts, read_engine, read_spec
from dive_fast.engines.registry import Choice
from dive_fast.engines.tensorrt_net import AGAIN, Lane, Net
from dive_fast.json_files import read_json
from dive_fast.types import DiveError, EngineSpec, InputError


def open_tensorrt(folder: Path, choice: Choice) -> Engine:
    """Opens the engine in `folder` on this machine's first GPU.

    `choice.threads` limits torch's CPU threads in the whole process. `choice.graphs` replays UNet calls as CUDA graphs: off
    by default, as no GPU has shown that it gains anything. Raises every reason why the engine does not run here as one
    `DiveError`, as `InputError` when the folder is not whole.
    """
    spec = read_spec(folder)
    found, files = refusals(folder, spec)
    found += fit_reasons(spec, choice) + choice.backend.misfits(choice.device, choice.precision)
    if files is None or found:
        raise (DiveError if files else InputError)(f"engine {folder} cannot run as asked: {'; '.join(found)}")
    if choice.threads is not None:
        torch.set_num_threads(choice.threads)
    module, cuda = trt.load(trt.FLAVOURS[spec.backend]), torch.device("cuda", 0)
    why = f"{choice.why}, device: the GPU it was built for"
    return TensorRTEngine(files, module, cuda, Lane(cuda), why, choice.check_finite, choice.graphs)


def refusals(folder: Path, spec: EngineSpec) -> tuple[list[str], EngineFiles | None]:
    """Every reason why this machine cannot run the engine, and the folder's metadata (None when it is not whole)."""
    kind = trt.FLAVOURS[spec.backend]
    found, files = [], None
    try:
        files = read_engine(folder, spec)
    except InputError as error:
        found.append(str(error))
    built, here = spec.versions.get(kind.name, "an unknown version"), trt.version(kind)
    others = [] if built == here else [f"its plans are {kind.name} {built}'s, here is {here}; {AGAIN}"]
    found += trt.reasons(kind) or others
    gpu, no_gpu = trt.find_gpu()
    if gpu is None:
        found.append(f"it was built for {spec.gpu}, and {no_gpu}")
    else:
        found += trt.misfits(kind, spec.gpu, gpu)
        if not torch.cuda.is_available():
            found.append(f"torch {torch.__version__} has no CUDA, install a CUDA build of it")
    return found, files


class TensorRTEngine(FolderEngine):
    """Plans on one GPU. More prompts or VAE images than the largest profile holds run in parts."""

    def __init__(
        self,
        files: EngineFiles,
        module: Any,
        device: torch.device,
        lane: Lane,
        chosen: str,
        check_finite: bool = False,
        use_graphs: bool = False,
    ) -> None:
        """`module` is tensorrt or tensorrt_rtx. Raises for a plan that does not load or does not fit `engine.json`."""
        super().__init__(files, device, f"{device} ({files.spec.gpu})", chosen, check_finite)
        without_weights, self._nets = _refittable(files.folder), {}
        for part in parts(files.spec):
            path, graph = files.folder / files.spec.files[part], files.folder / part / "model.onnx"
            plan = trt.open_plan(module, path.read_bytes(), str(path), graph, without_weights.get(part, []))
            where = f"engine {files.folder}: {part}"
            self._nets[part] = Net(module, plan, device, lane, where, use_graphs and part == "unet")
        self._check(files.folder)
        # One scratch for all plans: calls are in order on one stream.
        size = max(net.scratch for net in self._nets.values())
        self._scratch = torch.empty(max(size, 1), dtype=torch.uint8, device=device)

    def condition(self, embeddings: Tensor) -> Conditioning:
        unet = self._nets["unet"]
        if self.spec.variant == "plain":
            return Conditioning(embeddings.to(self.device, unet.dtypes["encoder_hidden_states"]))
        if len(embeddings) > unet.most("kv_bank"):
            raise InputError(
                f"{len(embeddings)} prompts exceed the engine's {unet.most('kv_bank')}; condition fewer at a time, or build "
                "with a larger --prompts-max"
            )
        dtype = unet.dtypes["kv_bank"]
        cache = self._in_parts("prompt_bank", "encoder_hidden_states", embeddings, dtype)
        return Conditioning(self._checked("prompt_bank", cache, embeddings))

    def _text(self, token_ids: Tensor) -> Tensor:
        return self._in_parts("text_encoder", "input_ids", token_ids)

    def _unet(self, latents: Tensor, timestep: int, states: Tensor, prompt_index: Tensor) -> Tensor:
        feeds = self.unet_inputs(latents, timestep, states, prompt_index)
        return self._nets["unet"].run(feeds, len(prompt_index), self._scratch, torch.float32)

    def _decoder(self, latents: Tensor) -> Tensor:
        return self._in_parts("vae_decoder", "latent_sample", latents)

    def _encoder(self, pixels: Tensor) -> Tensor:
        return self._in_parts("vae_encoder", "sample", pixels)[:, : self.geometry.channels]  # the rest is log variance

    def _in_parts(self, part: str, name: str, rows: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        net = self._nets[part]
        pieces = torch.split(rows, net.most(name))
        return torch.cat([net.run({name: piece}, len(piece), self._scratch, dtype) for piece in pieces])

    def _check(self, folder: Path) -> None:
        """Raises `InputError` unless the plans' fixed sizes are those of engine.json and the configs."""
        profile = self.spec.profile
        image = (3, profile.height, profile.width)
        rows = "prompt_index" if self.spec.variant == "kv-cache" else "sample"
        latents = {"unet": "sample", "vae_decoder": "latent_sample"}
        wrong = []
        for part, name, sizes in (
            *((p, n, self.latent_shape) for p, n in latents.items()),
            ("vae_encoder", "sample", image),
        ):
            found = self._nets[part].profiles[0][name][1:]
            if found != sizes:
                wrong.append(f"{part} takes rows of {found}, engine.json has {sizes}")
        most = self._nets["unet"].most(rows)
        if most < profile.rows_max:
            wrong.append(f"unet takes up to {most} rows, engine.json has {profile.rows_max}")
        if wrong:
            raise InputError(f"engine {folder}: {'; '.join(wrong)}; {AGAIN}")


def _refittable(folder: Path) -> dict[str, list[str]]:
    """Reads from `build.json` which weights each plan lacks."""
    data = read_json(folder / "build.json", "engine")
    table = data.get("refittable") if isinstance(data, dict) else None
    if not isinstance(table, dict) or not all(isinstance(names, list) for names in table.values()):
        raise InputError(f"engine {folder}: build.json has no table of refittable weights; {AGAIN}")
    return table
