"""A whole bench: which model, which engine, what is counted and measured, and the record of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dive_fast.bench.baselines import Other, Setup, measure_baselines
from dive_fast.bench.config import BenchConfig, preset_of
from dive_fast.bench.machine import commit, hardware, versions
from dive_fast.bench.measure import Roofline, check_rows, measure_job, measure_rows
from dive_fast.bench.op_counts import ModelOpCounts
from dive_fast.bench.results import BenchResult
from dive_fast.bench.roofline import measure_peaks
from dive_fast.bench.sd15 import sd15
from dive_fast.engines import Engine, load_engine
from dive_fast.engines.registry import BACKENDS, EXPORTED, MODEL, OPENVINO
from dive_fast.engines.torch_engine import DTYPES
from dive_fast.json_files import read_json
from dive_fast.models import ModelBundle, fuse, load_adapter, load_bundle, save_bundle
from dive_fast.models.student import Student, read_student
from dive_fast.models.tiny_decoder import read_record
from dive_fast.sampling.config import Sampling
from dive_fast.types import EngineSpec, InputError, to_dict

Log = Callable[[str], object]
MODELS = ("pocket", "sd15")  # any other name is a folder


@dataclass(frozen=True)
class Choice:
    """The engine folder or model to measure, and how to open it; `computes_on` is the device with auto resolved."""

    engine: Path | None
    model: str | None
    backend: str
    device: str
    computes_on: str
    precision: str
    threads: int | None


@dataclass(frozen=True)
class Subject:
    """What is benched: an engine, opened from `folder` with `threads`, and where it is at hand the fused model that it was
    made of, or a student's teacher."""

    name: str
    engine: Engine
    folder: Path
    model: Path | None = None
    threads: int | None = None


def model_folder(name: str, device: str, work: Path) -> tuple[str, Path]:
    """A label and the folder of a fused model: "pocket" (its adapter fused in), "sd15" (random weights), or a folder.

    What has to be made is made in `work` once: 4.3 GB for sd15. "auto" is sd15 on a GPU and pocket on a CPU.
    """
    if name == "auto":
        name = "sd15" if device == "cuda" else "pocket"
    if name not in MODELS:
        return name, Path(name)
    made = work / name
    if not made.is_dir():  # save_bundle leaves a whole folder or none
        save_bundle(fuse(load_bundle("pocket"), load_adapter("pocket")) if name == "pocket" else sd15(), made)
    return "pocket model" if name == "pocket" else "Stable Diffusion 1.5's size, random weights", made


def chosen_backend(backend: str, device: str) -> tuple[str, str]:
    """The backend for a fused model and why: "auto" is torch-compiled on a GPU, else onnxruntime where it is installed."""
    if backend != "auto":
        return backend, "asked for"
    if device == "cuda":
        return "torch-compiled", "a CUDA GPU is there"
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        return "torch", f"{', '.join(missing)} are not installed: pip install 'dive-fast[export,cpu]'"
    return "onnxruntime", "no CUDA GPU"


def open_subject(choice: Choice, config: BenchConfig, work: Path, log: Log) -> Subject:
    """Opens the engine; a fused model for onnxruntime is first exported to `work`, for the config's most rows."""
    where, model = choice.computes_on, None
    if choice.model is not None or choice.engine is None:
        name, model = model_folder(choice.model or "auto", where, work)
    if choice.engine is not None:
        folder = choice.engine
        opened = load_engine(folder, choice.backend, choice.device, choice.threads, precision=choice.precision)
        own = model or (folder if _is_fused_model(folder) else None)
        return Subject(str(folder), opened, folder, own, choice.threads)
    assert model is not None
    backend, why = chosen_backend(choice.backend, where)
    log(f"{name}, backend {backend} ({why})")
    folder, opened = open_model(model, replace(choice, backend=backend), config, work)
    return Subject(name, opened, folder, model, choice.threads)


def open_model(
    model: Path, choice: Choice, config: BenchConfig, work: Path, like: EngineSpec | None = None
) -> tuple[Path, Engine]:
    """Opens a fused model by the choice's backend, if need be exported to `work`, in size and variant `like` another engine.

    Returns the folder that was opened, and the engine.
    """
    backend, where = choice.backend, choice.computes_on
    size = None if like is None else (like.profile.height, like.profile.width)
    if EXPORTED not in BACKENDS[backend].reads:
        return model, load_engine(model, backend, where, choice.threads, precision=choice.precision, size=size)
    from dive_export import GraphOptions, export_engine

    exact: Any = choice.precision if choice.precision != "auto" else "fp16" if where == "cuda" else "fp32"
    out = work / f"engine-{exact}"
    most = max(*config.rows, config.baseline_rows if config.has_baselines else 1)
    own: Any = "fp32" if backend == OPENVINO.name else exact  # which it can run in bf16
    variant: Any = "plain" if like is None else like.variant
    if own not in DTYPES:
        raise InputError(
            f"--precision {own}: {backend} runs a fused model in {', '.join(DTYPES)}; give a --backend that reads fused"
            " models, or an --engine from dive-fast quantize"
        )
    export_engine(model, out, most, check=False, size=size, options=GraphOptions(variant, own))
    return out, load_engine(out, backend, where, choice.threads, precision=exact)


def _is_fused_model(folder: Path) -> bool:
    """Whether it holds a model's weights and not graphs alone."""
    return (folder / "model_index.json").is_file() and any((folder / "unet").glob("*.safetensors"))


def model_op_counts(subject: Subject) -> ModelOpCounts:
    """Roofline on the configurations in the model's folder, or in the engine's, which lacks the text encoder's."""
    from transformers import CLIPTextConfig

    folder, engine = subject.model or subject.folder, subject.engine
    vae = "vae" if (folder / "vae").is_dir() else "vae_decoder"
    unet, decoder = (read_json(folder / part / "config.json", "model") for part in ("unet", vae))
    text = folder / "text_encoder" / "config.json"
    tiny = read_record(subject.folder / "vae_decoder")
    return ModelOpCounts(
        unet,
        decoder,
        CLIPTextConfig.from_dict(read_json(text, "model")) if text.is_file() else None,
        shape=engine.latent_shape,
        tokens=engine.prompts.tokenizer.model_max_length,
        dtype=computed_in(engine),
        tiny=None if tiny is None else tiny.width,
    )


def computed_in(engine: Engine) -> torch.dtype:
    """Of weights and activations as the engine computes; fp8 counts as half precision, int8 as fp32: the type of the graph.

    On a CPU onnxruntime has kernels for fp32 alone, to which it casts whatever a graph holds.
    """
    if engine.spec.backend == "onnxruntime" and engine.device.type == "cpu":
        return torch.float32
    return DTYPES.get(engine.spec.precision, torch.float32 if engine.device.type == "cpu" else torch.float16)


def run_bench(
    subject: Subject,
    config: BenchConfig,
    work: Path,
    log: Log,
    advance: Log = lambda _: None,
    keep: Callable[[BenchResult], object] = lambda _: None,
) -> BenchResult:
    """Measures `subject` and, if asked for, its baselines.

    `log` gets an estimate before anything slow begins. `keep` gets the result before the baselines begin, as they may fail
    where the engine did not. `work` is a folder for what they make.
    """
    engine, sampling = subject.engine, config.sampling
    check_rows(engine, config.rows, sampling)
    setup = _setup(subject, config)
    work_of, peaks = model_op_counts(subject), measure_peaks(engine.device, computed_in(engine))
    counted = Roofline(work_of, peaks, sampling, engine)
    least = counted.least_seconds(config.rows, config.repeats, config.rounds)
    log(
        f"estimate: at least {least:,.0f} s{' beside the baselines' if config.has_baselines else ''}, the counted work "
        f"at the measured {peaks.tflops:.3g} TFLOP/s of this machine; fewer --rows, --repeats and --rounds shorten it"
    )
    rows = measure_rows(
        engine,
        config.rows,
        sampling,
        counted,
        repeats=config.repeats,
        rounds=config.rounds,
        image_format=config.image_format,
        advance=advance,
    )
    fastest = max(rows, key=lambda row: row.images_per_second.p50).rows
    job = measure_job(engine, fastest, sampling, config.image_format)
    advance("whole job")
    found = BenchResult(
        model=subject.name,
        engine=engine.describe(),
        backend=engine.spec.backend,
        precision=engine.spec.precision,
        height=engine.spec.profile.height,
        width=engine.spec.profile.width,
        sampling=to_dict(sampling),
        image_format=config.image_format,
        conditions=_conditions(engine, config),
        hardware=hardware(engine.device.type),
        versions=versions(),
        commit=commit(),
        gflop=work_of.gflop(),
        peaks=peaks,
        rows=rows,
        job=job,
    )
    keep(found)
    return found if setup is None else replace(found, baselines=measure_baselines(setup(work), advance))


def _setup(subject: Subject, config: BenchConfig) -> Callable[[Path], Setup] | None:
    """Returns what makes, in a folder, what baselines are measured on; None without baselines.

    A teacher's engine is opened only then, so that it takes no memory while the student is measured. Raises `InputError`
    without the fused model, and for one that is neither what the engine was made of nor a student's teacher.
    """
    if not config.has_baselines:
        return None
    if subject.model is None:
        raise InputError(
            "--baselines and --presets need the fused model, or a student's teacher: give it as --model FOLDER beside "
            "--engine"
        )
    student, model, bundle = read_student(subject.folder), subject.model, load_bundle(subject.model)
    if student is not None and bundle.fingerprint == student.teacher:
        return _beside_teacher(subject, model, student, bundle, config)
    if config.baseline_steps is not None:
        raise InputError(
            "--baseline-steps is for the baselines of a student's --engine with its teacher as --model; others take "
            "--steps"
        )
    wanted = subject.engine.spec.model_fingerprint
    if bundle.fingerprint != wanted:
        raise InputError(
            f"the engine is of model {wanted[:12]}, --model {model} is {bundle.fingerprint[:12]}; give the fused model "
            "that the engine was made of, or a student's teacher"
        )
    return lambda work: Setup(subject.engine, bundle, model, work, config)


def _beside_teacher(
    subject: Subject, model: Path, student: Student, bundle: ModelBundle, config: BenchConfig
) -> Callable[[Path], Setup]:
    """Returns what opens the teacher by the student's backend: in its precision, or that of a quantised one's graph."""
    engine, spec = subject.engine, subject.engine.spec
    sampling = preset_of(str(config.baseline_steps or "exact")).applied_to(Sampling(guidance=student.guidance))
    tiny = read_record(subject.folder / "vae_decoder")
    note = "" if tiny is None else f", tiny decoder of width {tiny.width}"
    opens_models = bool({EXPORTED, MODEL} & {*BACKENDS[spec.backend].reads})
    built = None if opens_models else config.tensorrt
    if built is None and not opens_models:
        raise InputError(
            f"{spec.backend} runs the student; give its teacher's engine, too (dive-fast build): --tensorrt"
        )
    usual = "fp32" if engine.device.type == "cpu" else "fp16"
    precision = spec.precision if spec.precision in DTYPES else usual
    where = engine.device.type
    choice = Choice(None, None, spec.backend, where, where, precision, subject.threads)

    def setup(work: Path) -> Setup:
        own = open_model(model, choice, config, work, spec)[1] if built is None else load_engine(built)
        if own.spec.model_fingerprint != bundle.fingerprint:
            raise InputError(f"--tensorrt {built} is of another model than the teacher {model}; build that one")
        return Setup(
            own,
            bundle,
            model,
            work,
            replace(config, sampling=sampling),
            Other("student", engine, config.sampling, note),
        )

    return setup


def _conditions(engine: Engine, config: BenchConfig) -> dict[str, Any]:
    return {
        "UNet calls": config.repeats,
        "rounds": config.rounds,
        "warm-up": "one batch and one UNet call of each row count; one call of each baseline, which measures its parity",
        "data": "normal noise by seed, real prompts; never zeros",
        "clock": "device events" if engine.device.type == "cuda" else "host",
        "order": "row counts, and baselines, interleaved",
        "model fingerprint": engine.spec.model_fingerprint,
    }


def parts(config: BenchConfig) -> int:
    """How often `run_bench` advances."""
    setup = 3 + len(config.baselines) if config.has_baselines else 0
    return len(set(config.rows)) + 1 + config.rounds + 1 + setup
