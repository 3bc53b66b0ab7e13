"""`dive-fast distil` and `distil-decoder`: a fused model's guided images in few steps, and from a tiny decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from dive_fast.commands.common import Device, DryRun, Json, Plot, Training, beside, finish, following, torch_device
from dive_fast.distil.config import DecoderConfig, DistilConfig
from dive_fast.types import to_dict


def distil(
    model: Annotated[Path, "Fused model folder, from dive-fast fuse: the teacher."],
    out: Annotated[Path, "Student folder to write: a fused model that knows its own steps; plain diffusers opens it."],
    config: DistilConfig,
    exclude: Annotated[
        tuple[str, ...], "Identities whose prompts the training leaves out, as to measure it on them."
    ] = (),
    plot: Plot = None,
    dry_run: DryRun = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Distil a fused model, without any photo, into a student of few steps without guidance; rerun to resume."""
    from dive_fast.distil import distil as room
    from dive_fast.distributed import process_group
    from dive_fast.models import load_bundle

    training = Training(out / "student.json", plot, dry_run, json, (room.PHASE,))
    bundle, chosen = load_bundle(model), torch_device(device)
    with process_group(chosen):
        student = training.run(
            lambda: room.distil(bundle, out, config, exclude, device=chosen),
            lambda: room.dry_run(bundle, out, config, exclude, chosen),
        )
    if student is None:
        return
    found = room.likeness_of(student)
    finish(
        f"student {out}: {config.student_steps} steps without guidance for guidance {student.guidance:g};"
        f" {found.describe()}",
        {"student": out, "teacher": student.teacher, "guidance": student.guidance, **to_dict(found)},
        json,
        then=following("export", model=out, out=beside(out, "student-engine")),
        kept=training.last.kept,
    )


def distil_decoder(
    model: Annotated[Path, "Fused model or student folder, whose own images are learned from."],
    out: Annotated[
        Path,
        "Folder to write, for dive-fast export --decoder; with --width above 0, diffusers opens it as AutoencoderTiny.",
    ],
    config: DecoderConfig,
    plot: Plot = None,
    dry_run: DryRun = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Distil a model's decoder into a tiny one, for every model of its base; rerun to resume."""
    from dive_fast.distil import decoder as room
    from dive_fast.distributed import process_group
    from dive_fast.models import load_bundle

    training = Training(out / "decoder.json", plot, dry_run, json, (room.PHASE,))
    bundle, chosen = load_bundle(model), torch_device(device)
    with process_group(chosen):
        record = training.run(
            lambda: room.distil_decoder(bundle, out, config, device=chosen),
            lambda: room.dry_run(bundle, out, config, chosen),
        )
    if record is None:
        return
    finish(
        f"decoder {out}: {record.psnr:.1f} dB to the images of the model's own decoder",
        {"decoder": out, "psnr": record.psnr, "width": record.width, "autoencoder": record.autoencoder},
        json,
        then=following("export", model=model, decoder=out, out=beside(out, "engine")),
        kept=training.last.kept,
    )
