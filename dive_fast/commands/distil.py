"""`dive-fast distil` and `distil-decoder`: a fused model's guided images in few steps, and from a tiny decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from dive_fast.commands.common import (
    WITHOUT_DRY_RUN,
    Device,
    Json,
    LastFile,
    beside,
    finish,
    following,
    torch_device,
)
from dive_fast.distil.config import DecoderConfig, DistilConfig
from dive_fast.types import to_dict


def distil(
    model: Annotated[Path, "Fused model folder, from dive-fast fuse: the teacher."],
    out: Annotated[Path, "Student folder to write: a fused model that knows its own steps; plain diffusers opens it."],
    config: DistilConfig,
    exclude: Annotated[
        tuple[str, ...], "Identities whose prompts the training leaves out, as to measure it on them."
    ] = (),
    plot: Annotated[Path | None, "PNG file to draw the loss curve into."] = None,
    dry_run: Annotated[bool, "Only report what the run would take, from a few timed steps; write nothing."] = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Distil a fused model, without any photo, into a student of few steps without guidance; rerun to resume."""
    from dive_fast.commands.model import check_plot, draw_losses
    from dive_fast.distil import distil as room
    from dive_fast.distil.trainer import PHASE
    from dive_fast.distributed import leading, process_group
    from dive_fast.models import load_bundle

    last = LastFile(out / "student.json")
    check_plot(plot, out / "student.json")
    bundle, chosen = load_bundle(model), torch_device(device)
    with process_group(chosen):
        if dry_run:
            forecast = room.dry_run(bundle, out, config, exclude, chosen)
        else:
            student = room.distil(bundle, out, config, exclude, device=chosen)
        if not leading():
            return
    if dry_run:
        finish(
            forecast.text(),
            {**to_dict(forecast), "memory_bytes": forecast.memory_bytes, "seconds": forecast.seconds},
            json,
            then=WITHOUT_DRY_RUN,
        )
        return
    draw_losses(plot, out, (PHASE,))
    found = room.likeness_of(student)
    finish(
        f"student {out}: {config.student_steps} steps without guidance for guidance {student.guidance:g};"
        f" {found.describe()}",
        {"student": out, "teacher": student.teacher, "guidance": student.guidance, **to_dict(found)},
        json,
        then=following("export", model=out, out=beside(out, "student-engine")),
        kept=last.kept,
    )


def distil_decoder(
    model: Annotated[Path, "Fused model or student folder, whose own images are learned from."],
    out: Annotated[
        Path, "Decoder folder to write, for dive-fast export --decoder; diffusers opens it as AutoencoderTiny."
    ],
    config: DecoderConfig,
    plot: Annotated[Path | None, "PNG file to draw the loss curve into."] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Distil a model's decoder into a tiny one, for every model of its base; rerun to resume."""
    from dive_fast.commands.model import check_plot, draw_losses
    from dive_fast.distil import decoder as room
    from dive_fast.distributed import leading, process_group
    from dive_fast.models import load_bundle

    last = LastFile(out / "decoder.json")
    check_plot(plot, out / "decoder.json")
    bundle, chosen = load_bundle(model), torch_device(device)
    with process_group(chosen):
        record = room.distil_decoder(bundle, out, config, device=chosen)
        if not leading():
            return
    draw_losses(plot, out, (room.PHASE,))
    finish(
        f"decoder {out}: {record.psnr:.1f} dB to the images of the model's own decoder",
        {"decoder": out, "psnr": record.psnr, "width": record.width, "autoencoder": record.autoencoder},
        json,
        then=following("export", model=model, decoder=out, out=beside(out, "engine")),
        kept=last.kept,
    )
