"""A fake engine and plans for it: every number is made element by element, so that batches cannot differ at all."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dive_fast.engines import Conditioning, Engine, Request
from dive_fast.models.prompts import DEFAULT_TEMPLATE, PromptEncoder, PromptKey, PromptTable
from dive_fast.sampling import Sampling, repeated
from dive_fast.synth import Summary, SynthesisPlan, load_plan, make_plan, save_plan, synthesize
from dive_fast.synth.layout import shard_pairs
from dive_fast.types import Camera, EngineSpec, Identity, Modality, Profile, Sample

ROOT = Path(__file__).parents[2]
HEIGHT, WIDTH = 32, 16
CAMERAS = (
    Camera("cam1", "rgb", "aaaa"),
    Camera("cam2", "rgb", "bbbb"),
    Camera("cam3", "ir", "cccc"),
    Camera("cam6", "ir", "dddd"),
)
PIDS = tuple(f"{number:04d}" for number in range(1, 6))
SCHEDULER_CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


class FakeBank(PromptEncoder):
    """Token ids are the characters of the prompt."""

    def token_ids(self, keys: Sequence[PromptKey]) -> Tensor:
        texts = ["" if key is None else self.table.prompt(*key) for key in keys]
        return torch.tensor([[ord(c) for c in text.ljust(48)] for text in texts])


class FakeEngine:
    """`eps` is linear in the latents plus a number of prompt and step; `decode` shows three of four channels as pixels."""

    def __init__(self, fingerprint: str = "model-1", delay: float = 0.0) -> None:
        self.spec = EngineSpec("fake", "fp32", Profile(1, 8, 64, HEIGHT, WIDTH), fingerprint, {}, {})
        table = PromptTable(
            tuple(Identity(p, f"<class_{p}>") for p in PIDS), CAMERAS, DEFAULT_TEMPLATE, "base", "adapter"
        )
        self.prompts = FakeBank(None, table)
        self.scheduler_config: dict[str, Any] = SCHEDULER_CONFIG
        self.device = torch.device("cpu")
        self.fingerprint = f"fake-{fingerprint}"
        self.latent_shape = (4, HEIGHT // 8, WIDTH // 8)
        self.delay = delay
        self.text_rows: list[int] = []
        self.eps_rows: list[int] = []
        self.batches: list[int] = []

    def encode_text(self, token_ids: Tensor) -> Tensor:
        self.text_rows.append(len(token_ids))
        weights = torch.arange(1, token_ids.shape[1] + 1)
        return ((token_ids * weights).sum(1) % 997 / 997.0).reshape(-1, 1, 1)

    def condition(self, embeddings: Tensor) -> Conditioning:
        return Conditioning(embeddings)

    def eps(self, latents: Tensor, timestep: int, conditioning: Conditioning, prompt_index: Tensor) -> Tensor:
        self.eps_rows.append(len(prompt_index))
        time.sleep(self.delay)
        prompts = conditioning.states[prompt_index].reshape(-1, 1, 1, 1)
        return repeated(latents, len(prompt_index)) * 0.5 + prompts * (0.2 + timestep / 2000)

    def decode(self, latents: Tensor) -> Tensor:
        pixels = (latents[:, :3] * 15 + 128).clamp(0, 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).repeat_interleave(8, 1).repeat_interleave(8, 2)

    def encode(self, images: Tensor) -> Tensor:
        corners = images[:, ::8, ::8].permute(0, 3, 1, 2).float() / 128 - 1
        return torch.cat([corners, corners[:, :1]], dim=1)

    def unsupported(self, request: Request) -> list[str]:
        return [f"rows {request.rows} > rows_max 64"] if request.rows > 64 else []

    @contextmanager
    def batches_of(self, images: int) -> Iterator[None]:
        self.batches.append(images)
        yield

    def describe(self) -> str:
        return "fake"


def plan_of(mode: str = "synthetic", **changes: Any) -> SynthesisPlan:
    """A small plan for `FakeEngine`: 3 people x 2 IR cameras x 3 = 18 pairs in shards of 4.

    `changes` are arguments of `make_plan`, and fields of `Sampling`.
    """
    settings: dict[str, Any] = {
        "mode": mode,
        "pids": PIDS[:3],
        "cameras": CAMERAS,
        "ir": ["cam3", "cam6"],
        "rgb": ["cam1", "cam2"] if mode == "synthetic" else [],
        "pairs_per_identity": 3,
        "seed": 11,
        "height": HEIGHT,
        "width": WIDTH,
        "model_fingerprint": "model-1",
        "shard_size": 4,
    }
    sampling = {name: changes.pop(name) for name in ("steps", "guidance", "guidance_interval") if name in changes}
    settings["sampling"] = Sampling(**{"steps": 4, "guidance": 3.0, **sampling})
    return make_plan(**{**settings, **changes})


def photo_plan(root: Path, counts: dict[str, int], mode: str = "real-rgb", **changes: Any) -> SynthesisPlan:
    """A plan of these people with so many photos each, which are written to `root`."""
    return plan_of(mode, **{"pids": list(counts), **changes}, photos=write_photos(root, counts), photo_root=root)


def tiny_plan(engine: Engine, mode: str = "synthetic", **changes: Any) -> SynthesisPlan:
    """A small plan for the tiny model: 2 people x 1 IR camera x 2 pairs in shards of 3."""
    profile, rgb = engine.spec.profile, ["cam1"] if mode == "synthetic" else []
    people: dict[str, Any] = {"pids": ["0001", "0003"], "ir": ["cam3"], "rgb": rgb, "pairs_per_identity": 2}
    model = {"model_fingerprint": engine.spec.model_fingerprint, "cameras": engine.prompts.table.cameras}
    size = {"height": profile.height, "width": profile.width, "shard_size": 3}
    return plan_of(mode, **{**people, **model, **size, "sampling": Sampling(3, 5.0), **changes})


def make(plan: SynthesisPlan, out: Path | str, engine: Any = None, **options: Any) -> Summary:
    """`synthesize`, by default with a new `FakeEngine`."""
    return synthesize(plan, engine or FakeEngine(), out, progress=False, **options)


def planned_files(plan: SynthesisPlan) -> list[dict[Modality, str]]:
    """The two files of every pair."""
    return [files for number in range(plan.shards) for _, files in shard_pairs(plan, number)]


def write_photos(root: Path, counts: dict[str, int], camera: str = "cam7") -> list[Sample]:
    """Colourful JPEG photos ROOT/PID/N.jpg, all different, of another size than the plan's."""
    samples = []
    for pid, count in counts.items():
        for number in range(count):
            path = root / pid / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.merge("RGB", [Image.effect_noise((20, 50), 60) for _ in range(3)]).save(path)
            samples.append(Sample(path, pid, camera))
    return samples


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def start_run(plan, out: Path, delay: float) -> subprocess.Popen:
    plan_file = out.parent / "plan.json"
    save_plan(plan, plan_file)
    command = [sys.executable, "-m", "tests.support.fake_engine", str(plan_file), str(out), str(delay)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_for_shards(out: Path, process: subprocess.Popen, count: int) -> None:
    deadline = time.monotonic() + 300  # a busy machine may take a minute to import torch
    while len(list((out / "shards").glob("*.jsonl"))) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


if __name__ == "__main__":  # a run that another process can stop: plan.json, out, delay per step
    plan_file, out, delay = sys.argv[1:]
    make(load_plan(plan_file), out, FakeEngine(delay=float(delay)), rows=4)
