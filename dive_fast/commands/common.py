"""Options and output that several commands share."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from dive_fast.data.sets import SetSpec, parse_set
from dive_fast.engines.registry import choices
from dive_fast.environment.packages import backends_here
from dive_fast.io import is_empty, sha256_file
from dive_fast.progress import log
from dive_fast.sampling.config import PRESETS, Sampling
from dive_fast.settings import OneOf, PositiveInt, Reads
from dive_fast.types import DiveError, InputError
from dive_fast.words import json_line

if TYPE_CHECKING:
    from dive_fast.train.dryrun import Forecast

Json = Annotated[bool, "Print a summary as one line of JSON at the end."]
Device = Annotated[Literal["auto", "cpu", "cuda"], "Where to compute; auto takes a GPU if there is one."]
Base = Annotated[str, "Base model, a diffusers folder or one .safetensors file; pocket is the shipped one."]
Adapter = Annotated[str, "Adapter folder; pocket is the shipped one."]
Tokenizer = Annotated[Path | None, "Folder with the vocabulary of a base model in one file, if it is not beside it."]
Dataset = Annotated[Path, "Dataset folder, from dive-fast synth."]
Backend = Annotated[
    str,
    OneOf(choices()["backend"]),
    "What runs the networks; auto: what the folder was made for. Installed here: "
    f"{', '.join(backends_here()) or 'none'}; dive-fast doctor shows what works, and what the others lack.",
]
EnginePrecision = Annotated[
    str, OneOf(choices()["precision"]), "Precision of torch and openvino; other engines have their own."
]
Threads = Annotated[PositiveInt | None, "CPU threads; by default the backend's choice."]
PresetName = Annotated[
    str | None,
    OneOf(tuple(PRESETS)),
    "Steps by name; turbo is a student's own (docs/speed.md says what each costs). The options of sampling override it.",
]
Overwrite = Annotated[bool, "Replace an older result at --out; without it only an equal one is accepted."]
PhotoSet = Annotated[SetSpec, Reads(parse_set, "LAYOUT:PATH")]
Plot = Annotated[Path | None, "PNG file to draw the loss curve into."]
DryRun = Annotated[bool, "Only report what the run would take, from a few timed steps; write nothing."]
R = TypeVar("R")

WITHOUT_DRY_RUN = "the same command without --dry-run"


class LastFile:
    """The file that a job writes last, looked at before the job: tells whether an earlier run had finished it.

    With `by_content` an equal file counts as kept, for a job that writes it in every run. None is a job that writes none.
    """

    def __init__(self, path: Path | None, by_content: bool = False) -> None:
        self._path, self._by_content = path, by_content
        self._before = self._stamp()

    def _stamp(self) -> object:
        if self._path is None or not self._path.is_file():
            return None
        found = self._path.stat()
        return sha256_file(self._path) if self._by_content else (found.st_ino, found.st_mtime_ns)

    @property
    def kept(self) -> bool:
        """Whether the file was there before the job, and is what it was."""
        return self._before is not None and self._before == self._stamp()


def following(command: str, *words: object, **options: object) -> str:
    """Returns a command line to copy, its words quoted for a shell; options that are None are left out."""
    line = ["dive-fast", *command.split(), *map(str, words)]
    for name, value in options.items():
        line += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(line)


def beside(out: Path | str, name: str) -> str:
    """Returns the path or URL of `name` in the folder that holds `out`."""
    if "://" in str(out):
        return f"{str(out).rstrip('/').rpartition('/')[0]}/{name}"
    return str(Path(out).parent / name)


def finish(
    text: str, summary: Mapping[str, Any], as_json: bool, *, failure: str = "", then: str = "", kept: bool = False
) -> None:
    """Prints the result for a reader and, if wanted, for a program: JSON on the last line.

    `then` is the next command, and `kept` says that an earlier run had finished this job. Raises `DiveError` for a
    `failure`, which the result shows; the command line then prints the JSON with the error.
    """
    print(text)
    if failure:
        raise DiveError(failure, summary)
    if kept:
        print("finished by an earlier run; nothing has changed")
    if then:
        print(f"next: {then}")
    if as_json:
        print(json_line(summary))


def preset_sampling(preset: str | None, folder: Path, own: Sampling) -> Sampling:
    """Returns how a preset samples the model or engine in `folder`, whose own sampling is `own`.

    Preset turbo requires a student, else it raises `InputError`; for one with its teacher's decoder it logs a note.
    """
    if preset is None:
        return own
    if preset == "turbo":
        _check_turbo(folder)
    return PRESETS[preset].applied_to(own)


def _check_turbo(folder: Path) -> None:
    from dive_fast.models.student import read_student
    from dive_fast.models.tiny_decoder import read_record

    decoder = following("distil-decoder", model="STUDENT", out="DECODER")
    export = following("export", model="STUDENT", decoder="DECODER", out="ENGINE")
    if read_student(folder) is None:
        distil = following("distil", model="FUSED", out="STUDENT")
        raise InputError(
            f"--preset turbo requires a student, and {folder} holds none; make one: {distil}; for the tiny decoder "
            f"{decoder}; then {export}"
        )
    if read_record(folder / "vae_decoder") is None:
        log(
            f"note: {folder} has the model's own decoder; a tiny one is faster and may lose detail, which dive-fast"
            f" identity-kept measures: {decoder}; then {export}"
        )


def torch_device(device: str) -> str:
    """Returns the device that torch computes on; raises `InputError` for a GPU that torch does not see."""
    import torch

    from dive_fast.distributed import check_device

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    return device


class Training:
    """A training command: its dry run, its loss plot, and processes that leave the report to the first.

    `record` is what it writes last, in the folder that it makes. Refuses a plot that could not be written, before the work.
    """

    def __init__(self, record: Path, plot: Path | None, dry_run: bool, json: bool, phases: Sequence[str]) -> None:
        self.last = LastFile(record)
        self._out, self._plot, self._dry_run, self._json, self._phases = record.parent, plot, dry_run, json, phases
        if plot is not None:
            import matplotlib  # noqa: F401  # a missing one is told now

            from dive_fast.outputs import PNG

            redrawn = record.is_file() and PNG(plot)  # by a finished run
            if plot.is_dir() or not (redrawn or is_empty(plot)):
                raise InputError(f"--plot {plot} exists and is kept; name another file")

    def run(self, learn: Callable[[], R], forecast: Callable[[], Forecast]) -> R | None:
        """Trains and draws the losses, or reports a dry run; returns what the first process is to report."""
        from dive_fast.distributed import leading

        if self._dry_run:
            expected = forecast()
            if leading():
                finish(expected.text(), expected.summary(), self._json, then=WITHOUT_DRY_RUN)
            return None
        made = learn()
        if not leading():
            return None
        if self._plot is not None:
            from dive_fast.outputs import PNG, output_file
            from dive_fast.train.curves import plot_curves
            from dive_fast.train.run import loss_curves

            with output_file(self._plot, PNG) as fresh:
                plot_curves(loss_curves(self._out, self._phases), fresh)
        return made
