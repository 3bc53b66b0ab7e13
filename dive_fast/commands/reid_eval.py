"""`dive-fast reid eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from dive_fast.commands.common import Device, Json, LastFile, Overwrite, beside, finish, following, torch_device
from dive_fast.commands.reid_inputs import (
    Name,
    OtherPeople,
    Permutations,
    Rerank,
    Rules,
    Test,
    label,
    protocol_from,
    test_set,
    test_sides,
    warn_of_pocket,
)
from dive_fast.types import InputError, to_dict


def evaluate(
    rules: Rules,
    checkpoint: Annotated[Path | None, "Checkpoint folder, from dive-fast reid train."] = None,
    test: Test | None = None,
    features: Annotated[
        Path | None,
        "Score features of other code instead: a .mat file or a folder of .npy files with query_f, gallery_f, query_label, "
        "gallery_label, query_cam, gallery_cam. Without --test they are one trial as they are.",
    ] = None,
    distances: Annotated[
        Path | None, "Score distances of other code instead: likewise with 'distance', or one .npy file and --test."
    ] = None,
    protocol: Name = None,
    permutations: Permutations = None,
    rerank: Rerank = False,
    other_people: OtherPeople = False,
    flip: Annotated[bool, "Average each embedding with its mirror image's."] = True,
    export: Annotated[
        Path | None, "Also write features, labels, cameras and distances: a .mat file, or a folder of .npy files."
    ] = None,
    out: Annotated[Path | None, "JSON file for the result."] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Evaluate a checkpoint, or features or distances of other code, under a named protocol."""
    from dive_fast.io import readable_json
    from dive_fast.outputs import check_place, json_with, write_output
    from dive_fast.reid.evaluation.feature_files import check_target, read_features, write_features
    from dive_fast.reid.evaluation.interop import score_feature_file
    from dive_fast.reid.evaluation.rerank import RerankConfig

    sources = {"checkpoint": checkpoint, "features": features, "distances": distances}
    given = {name: path for name, path in sources.items() if path is not None}
    if len(given) != 1:
        named = " and ".join(f"--{name}" for name in given) or "none"
        raise InputError(f"give one of --checkpoint, --features and --distances, got {named}")
    kind = json_with("protocol", "map")
    if out is not None:
        if out.is_dir():
            raise InputError(f"--out {out} is a folder; name a JSON file")
        check_place(out, kind)
    if checkpoint is None and export is not None:
        raise InputError("--export writes a checkpoint's features; give --checkpoint")
    if checkpoint is not None and test is None:
        raise InputError("--checkpoint requires images to test on; name the set with --test")
    searched = None if test is None else test_set(test)
    name = "" if searched is None else label(searched)
    chosen, tables = protocol_from(searched, protocol, rules, permutations)
    config = RerankConfig() if rerank else None
    sides = None if searched is None else test_sides(searched, chosen)
    root = Path() if searched is None else searched.root
    if checkpoint is not None and sides is not None:
        from dive_fast.reid.evaluation.evaluate import extract
        from dive_fast.reid.evaluation.task import RetrievalTask
        from dive_fast.reid.training.checkpoint import checkpoint_config

        if export is not None:
            check_target(export)
        backbone = checkpoint_config(checkpoint).model.backbone
        if backbone.startswith("pocket"):
            warn_of_pocket(f"checkpoint {checkpoint} with backbone {backbone}", chosen.name)
        task = RetrievalTask.from_samples(*sides, chosen, tables, name)
        found = extract(checkpoint, *sides, flip=flip, device=torch_device(device), other_people=other_people)
        if export is not None:
            metadata = {"dataset": name, "protocol": chosen.metadata(), "checkpoint": found.checkpoint, "flip": flip}
            write_features(export, *sides, found, root, metadata)
        scores = task.score_features(found.query, found.gallery, config)
        result = task.result(scores, found.checkpoint, flip=flip, rerank=config, other_people=other_people)
    else:
        (file,) = given.values()
        result = score_feature_file(
            read_features(file),
            "features" if features is not None else "distances",
            chosen,
            dataset=name or str(file),
            sides=sides,
            root=root,
            permutations=tables,
            rerank=config,
        )
    last = LastFile(out)
    if out is not None:
        write_output(out, readable_json(to_dict(result)), kind, overwrite)
    then = following("reid eval", checkpoint="CHECKPOINT", test=name or "sysu:PHOTOS", protocol=protocol)
    if checkpoint is not None:
        options = {"checkpoint": checkpoint, "test": name, "protocol": chosen.name, "out": beside(checkpoint, "show")}
        then = following("reid show", **options)
    finish(result.describe(), to_dict(result), json, then=then, kept=last.kept)
