"""A finished dataset as WebDataset tars, one a shard: few large files for sequential reads.

NNNNN.tar holds for every pair, under its `key`, `.rgb.<png|jpg>`, `.ir.<png|jpg>` (the images' own bytes; photos as
`upright_copy` gives them) and `.json` (the record). `pack.json`, written last, counts them. Equal datasets give equal bytes.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from dive_fast.data.images import upright_copy
from dive_fast.io import brief, canonical_json, readable_json, sha256_bytes
from dive_fast.json_files import parse_json
from dive_fast.synth.folder import finished_shards
from dive_fast.synth.manifest import parse_shard, shard_name
from dive_fast.synth.planfile import SynthesisPlan
from dive_fast.synth.store import Store
from dive_fast.types import MODALITIES, DiveError, InputError, PairRecord, to_dict

INDEX = "pack.json"
FORMAT = 2  # of keys
KEY_LENGTH = 80  # a tar's plain header holds names of 100 characters


def pack(
    source: Store,
    plan: SynthesisPlan,
    target: Store,
    left_out: set[str],
    advance: Callable[[int], object] = lambda pairs: None,
) -> dict[str, int]:
    """Packs the dataset in `source` into `target` and returns the counts. A rerun keeps existing tars.

    `left_out` are the ids of pairs that a filter dropped; a shard with no other pairs gets no tar. Raises `InputError`
    when the dataset is not finished or the target holds another one, and `DiveError` for a file that is not as recorded.
    """
    missing = plan.shards - len(finished_shards(source, plan))
    if missing:
        raise InputError(f"{source.where}: {missing:,} of {plan.shards:,} shards are not made; run synth again")
    release = target.claim(None)  # clears what a killed run left
    if release is None:
        raise InputError(f"another run is writing to {target.where}; wait for it, or choose another --out")
    try:
        return _write(source, plan, target, left_out, advance)
    finally:
        release()
        target.tidy()


def _write(
    source: Store, plan: SynthesisPlan, target: Store, left_out: set[str], advance: Callable[[int], object]
) -> dict[str, int]:
    identity: dict[str, Any] = {
        "format": FORMAT,
        "plan_id": plan.plan_id,
        "left_out": sha256_bytes("\n".join(sorted(left_out)).encode()),
    }
    _check_target(target, identity)
    target.write(INDEX, canonical_json(identity).encode())  # without counts: begun, not finished
    pairs = tars = 0
    for number in range(plan.shards):
        records = list(parse_shard(source.read(shard_name(number)), f"{source.where}/{shard_name(number)}"))
        kept = [record for record in records if record.status == "done" and record.spec.pair_id not in left_out]
        name = f"{number:05d}.tar"
        if kept and not target.size(name):
            target.write(name, _tar(source, kept))
        pairs += len(kept)
        tars += bool(kept)
        advance(len(records))
    counts = {"pairs": pairs, "tars": tars}
    target.write(INDEX, readable_json({**identity, **counts}).encode())
    return counts


def key(pair_id: str) -> str:
    """The key of a pair, another one for each: its id, where %XX stands for whatever is no ASCII letter, digit, _ or -.

    A key ends at its first dot for WebDataset. A long one is cut and ends in a hash of the id.
    """
    escaped = quote(pair_id, safe="").replace(".", "%2E").replace("~", "%7E")
    if len(escaped) <= KEY_LENGTH:
        return escaped
    return f"{escaped[: KEY_LENGTH - 17]}~{sha256_bytes(pair_id.encode())[:16]}"


def _check_target(target: Store, identity: dict[str, Any]) -> None:
    try:
        held = parse_json(target.read(INDEX))
    except FileNotFoundError:
        if any(True for _ in target.walk()):
            raise InputError(f"{target.where} holds other files; choose another --out") from None
        return
    except ValueError as error:
        raise InputError(
            f"{target.where}/{INDEX} is not valid JSON ({brief(error, 80)}); choose another --out"
        ) from error
    if not isinstance(held, dict) or {name: held.get(name) for name in identity} != identity:
        raise InputError(f"{target.where} holds the tars of another dataset, or of other filters; choose another --out")


def _tar(source: Store, records: list[PairRecord]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for record in records:
            name_in_tar = key(record.spec.pair_id)
            for side in MODALITIES:
                name = record.files[side]
                data = source.read(name)
                if sha256_bytes(data) != record.sha256[side]:
                    raise DiveError(f"{name} in {source.where} is not as recorded; run synth again with --check")
                if side == "rgb" and record.spec.photo is not None:
                    data = upright_copy(data, name)
                _add(tar, f"{name_in_tar}.{side}{PurePosixPath(name).suffix}", data)
            _add(tar, f"{name_in_tar}.json", canonical_json(to_dict(record)).encode())
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    # webdataset.TarWriter would replace these lines by a dependency, and it sorts members by suffix
    member = tarfile.TarInfo(name)  # no time, owner or mode of this machine: equal datasets give equal bytes
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
