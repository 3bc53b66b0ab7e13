"""A dataset's folder: its plan, its finished shards, and the finished images of an unfinished shard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dive_fast.data.images import decode_image
from dive_fast.data.names import natural_key
from dive_fast.data.writers import id_list
from dive_fast.io import brief, readable_json, sha256_bytes
from dive_fast.json_files import parse_json
from dive_fast.synth.manifest import SHARD
from dive_fast.synth.planfile import SynthesisPlan, read_plan
from dive_fast.synth.provenance import read_tags
from dive_fast.synth.store import LocalStore, Store
from dive_fast.synth.writer import Written
from dive_fast.types import InputError, PairSpec, to_dict

PLAN = "plan.json"
WAIT = 0.05  # seconds between checks of what another process does


def open_store(out: Path | str) -> Store:
    """The place that `out` names: a folder, or a URL that fsspec knows."""
    if "://" in str(out):
        from dive_fast.synth.remote import RemoteStore

        return RemoteStore(str(out))
    return LocalStore(Path(out))


def store_plan(store: Store) -> SynthesisPlan:
    """The plan of the dataset in a store; a place without one raises `InputError`."""
    plan = _plan_in(store)
    if plan is None:
        raise InputError(
            f"{store.where} is no synthesized dataset (it has no plan.json); make one with `dive-fast synth`"
        )
    return plan


def claim_folder(store: Store, plan: SynthesisPlan) -> None:
    """Writes `plan` into an empty store; raises `InputError` when it holds another plan, or other files."""
    if _holds(store, plan):
        return
    with common(store):
        if _holds(store, plan):  # another run was quicker
            return
        if any(True for _ in store.walk()):
            raise InputError(
                f"{store.where} holds other files and no plan; images are not mixed into it: choose another --out"
            )
        store.write(PLAN, readable_json(to_dict(plan)).encode())


def _holds(store: Store, plan: SynthesisPlan) -> bool:
    held = _plan_in(store)
    if held is not None and held.plan_id != plan.plan_id:
        raise InputError(
            f"{store.where} holds plan {held.plan_id[:12]}, this is plan {plan.plan_id[:12]}; choose another --out"
        )
    return held is not None


def _plan_in(store: Store) -> SynthesisPlan | None:
    where = f"plan {PLAN} in {store.where}"
    try:
        data = parse_json(store.read(PLAN))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON ({brief(error, 80)}); choose another --out") from error
    return read_plan(data, where)


@contextmanager
def common(store: Store) -> Iterator[None]:
    """Claims what belongs to all shards for the block; waits while another process has it."""
    while (release := store.claim(None)) is None:
        time.sleep(WAIT)
    try:
        yield
    finally:
        release()


def finished_shards(store: Store, plan: SynthesisPlan) -> set[int]:
    """The shards that have a record; `verify` checks its content. Lists one folder: seconds for millions of pairs."""
    found = set()
    for name, size in store.folder("shards"):
        match = SHARD.fullmatch(name)
        if match and size and int(match[1]) < plan.shards:
            found.add(int(match[1]))
    return found


def finished_image(store: Store, plan: SynthesisPlan, pair: PairSpec, name: str, fingerprint: str) -> Written | None:
    """An image that an earlier run of this plan and engine finished; None without one, or for a damaged one.

    Raises `InputError` for an image that this plan did not make: it may be the only copy.
    """
    try:
        data = store.read(name)
    except FileNotFoundError:
        return None
    tags = read_tags(data)
    if (tags.get("plan_id"), tags.get("pair_id")) != (plan.plan_id, pair.pair_id):
        if data and not _torn(data):
            raise InputError(
                f"{name} in {store.where} was not made by this plan and is not overwritten; move it away, then rerun"
            )
        return None
    if tags.get("fingerprint") != fingerprint or not _whole(data):
        return None
    return Written(sha256_bytes(data), len(data))


def _whole(data: bytes) -> bool:
    try:
        decode_image(data, "generated")
    except InputError:
        return False
    return True


def _torn(data: bytes) -> bool:
    """Whether a file holds nothing but zeros, as a crashed file system leaves it."""
    return not data.strip(b"\0")


def write_ids(store: Store, plan: SynthesisPlan) -> None:
    """exp/*.txt. The AGW family trains on train and val together and cannot read an empty list, so val gets the last
    identity.
    """
    identities = sorted((identity.pid for identity in plan.identities), key=natural_key)
    val = identities[-1:] if len(identities) > 1 else []
    with common(store):
        for split, pids in (("train", identities[: len(identities) - len(val)]), ("val", val)):
            name, data = f"exp/{split}_id.txt", id_list(pids, f"exp/{split}_id.txt").encode()
            if store.size(name) is None:
                store.write(name, data)
            elif store.read(name) != data:
                raise InputError(
                    f"{name} in {store.where} lists other identities and is not overwritten; choose another folder"
                )
