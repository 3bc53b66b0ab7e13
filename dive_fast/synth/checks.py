"""Checks of plan, engine and folder before the first image is made."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.data.names import abbreviate
from dive_fast.io import nearest
from dive_fast.synth.layout import check_names
from dive_fast.synth.planfile import SynthesisPlan, plan_hash
from dive_fast.types import InputError

if TYPE_CHECKING:
    from dive_fast.engines import Engine


def check_run(plan: SynthesisPlan, engine: Engine, out: Path | str, rows: int) -> None:
    """Raises one `InputError` with every reason why `engine` cannot run `plan` into `out`."""
    from dive_fast.engines import Request

    check_names(plan)
    if plan.plan_id != plan_hash(plan):
        raise InputError("plan: its plan_id does not match its content; change a plan by making it anew")
    reasons = engine.unsupported(Request(rows=rows, height=plan.height, width=plan.width))
    if plan.sampling.images(rows) < 1:
        least = plan.sampling.rows(1)
        reasons.append(
            f"guidance {plan.sampling.guidance} takes {least} rows an image, so --rows must be >= {least}, got {rows}"
        )
    if plan.precision not in (None, engine.spec.precision):
        reasons.append(
            f"the plan wants an engine of precision {plan.precision}, this one is {engine.spec.precision}: build that "
            "engine, or plan again with --precision any"
        )
    if engine.spec.model_fingerprint != plan.model_fingerprint:
        made_of, wanted = engine.spec.model_fingerprint[:12], plan.model_fingerprint[:12]
        reasons.append(f"the engine is of model {made_of}, the plan is for {wanted}: use that engine or plan again")
    reasons += [*_unknown_prompts(plan, engine), *_photo_trouble(plan, out)]
    if reasons:
        raise InputError(f"plan {plan.plan_id[:12]}: {'; '.join(reasons)}")


def _unknown_prompts(plan: SynthesisPlan, engine: Engine) -> list[str]:
    """Reasons against identities and cameras that the model never learned: a prompt would spell them letter by letter."""
    table = engine.prompts.table
    pids = {identity.pid for identity in table.identities}
    modalities = {camera.name: camera.modality for camera in table.cameras}
    used = {(camera, "ir") for identity in plan.identities for camera in identity.ir}
    if plan.mode == "synthetic":
        used |= {(camera, "rgb") for identity in plan.identities for camera, _ in identity.rgb}
    wrong = [
        f"camera {camera} is {modalities[camera]} in the engine and {side} in the plan"
        for camera, side in sorted(used)
        if camera in modalities and modalities[camera] != side
    ]
    return [
        *_unknown("identities", [identity.pid for identity in plan.identities], pids),
        *_unknown("cameras", sorted({camera for camera, _ in used}), set(modalities)),
        *wrong,
    ]


def _unknown(kind: str, wanted: Iterable[str], known: set[str]) -> list[str]:
    names = list(wanted)
    unknown = [name for name in names if name not in known]
    if not unknown:
        return []
    return [
        f"{len(unknown):,} of the plan's {len(names):,} {kind} are unknown to the engine, which holds {len(known):,}: "
        f"{abbreviate(unknown)}{nearest(unknown[0], known)}; leave them out of the plan or learn them first"
    ]


def _photo_trouble(plan: SynthesisPlan, out: Path | str) -> list[str]:
    if plan.photo_root is None:
        return []
    root, target = Path(plan.photo_root).resolve(), Path(out).resolve()
    if "://" not in str(out) and (target.is_relative_to(root) or root.is_relative_to(target)):
        return [f"{out} lies in the photo folder {root}, or that in it; choose another --out"]
    photos = dict.fromkeys(photo for identity in plan.identities for _, photo in identity.rgb if photo is not None)
    missing = [photo for photo in photos if not os.path.isfile(root / photo)]
    if len(missing) == len(photos):
        return [f"all {len(photos):,} photos are missing in {root}: {abbreviate(missing)}; bring them or plan again"]
    if missing:
        warnings.warn(
            f"{len(missing):,} of {len(photos):,} photos are missing in {root}: {abbreviate(missing)}; their pairs are "
            "rejected, and synth --check makes them once the photos are back",
            stacklevel=4,
        )
    return []
