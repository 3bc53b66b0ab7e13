"""Runs that must not start: wrong engine, unknown identities, somebody else's folder. Nothing may be touched."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from dive_fast.synth import save_plan
from dive_fast.synth.planfile import plan_hash
from dive_fast.synth.store import LocalStore
from dive_fast.synth.verify import verify
from dive_fast.types import InputError
from tests.support.fake_engine import FakeEngine, contents, make, photo_plan, plan_of, write_photos
from tests.support.refusals import refused


def with_identities(plan, change):
    """The plan with every identity changed, as another model's plan would be."""
    changed = replace(plan, identities=tuple(change(identity) for identity in plan.identities))
    return replace(changed, plan_id=plan_hash(changed))


def not_started(plan, out: Path, message: str, engine: FakeEngine | None = None, rows: int = 8) -> None:
    before = contents(out) if out.is_dir() else None
    engine = engine or FakeEngine()
    with pytest.raises(InputError, match=message) as caught:
        make(plan, out, engine, rows=rows)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert not engine.eps_rows
    assert before == (contents(out) if out.is_dir() else None)


def test_unknown_identities_are_all_counted(out):
    plan = with_identities(plan_of(), lambda p: replace(p, pid=p.pid.replace("000", "100")))
    message = "3 of the plan's 3 identities are unknown to the engine, which holds 5: 1001, 1002, 1003, nearest '0001'"
    not_started(plan, out, message)


def test_everything_wrong_is_said_at_once(out):
    plan = with_identities(plan_of(), lambda p: replace(p, pid=f"9{p.pid[1:]}", ir=("cam8",)))
    message = "rows 65 > rows_max.*model model-2.*model-1.*9001.*cam8"
    not_started(plan, out, message, FakeEngine("model-2"), rows=65)


def test_camera_of_the_other_modality(out):
    plan = with_identities(plan_of(), lambda p: replace(p, rgb=(("cam3", None),)))
    not_started(plan, out, "camera cam3 is ir in the engine and rgb in the plan")


@pytest.mark.parametrize("rows", [0, 1, -4])
def test_too_few_rows(tmp_path, rows):
    not_started(plan_of(), tmp_path / "out", f"rows must be >= 2, got {rows}", rows=rows)
    make(plan_of(guidance=1.0, pids=["0001"]), tmp_path / "one", rows=1)


def test_plan_changed_in_memory(out):
    not_started(replace(plan_of(), seed=5), out, "plan_id does not match")
    refused("shard_size must be", replace, plan_of(), shard_size=0)


@pytest.mark.parametrize("change", [{"pid": "../../x"}, {"ir": "../cam3"}, {"rgb": "/tmp"}])
def test_names_that_leave_the_folder(tmp_path, change):
    """Even if the engine knew such names, no file outside may be written."""
    sides = {"pid": lambda v: v, "ir": lambda v: (v,), "rgb": lambda v: ((v, None),)}
    changed = {name: sides[name](value) for name, value in change.items()}
    plan = with_identities(plan_of(pids=["0001"]), lambda p: replace(p, **changed))
    engine = FakeEngine()
    table = engine.prompts.table
    identities = tuple(replace(i, pid=change.get("pid", i.pid) if i.pid == "0001" else i.pid) for i in table.identities)
    cameras = tuple(
        replace(c, name=change.get(c.modality, c.name) if c.name in ("cam1", "cam3") else c.name) for c in table.cameras
    )
    engine.prompts.table = replace(table, identities=identities, cameras=cameras)
    not_started(plan, tmp_path / "deep/er/out", "cannot be", engine)
    assert list(tmp_path.iterdir()) == []


def test_other_plans_folder(out):
    first, second = plan_of(pids=["0001"]), plan_of(pids=["0001"], seed=12)
    make(first, out)
    not_started(second, out, f"{first.plan_id[:12]}.* {second.plan_id[:12]}.* --out")


def test_folder_with_other_things(tmp_path):
    """Real data: the very files that a run would name so."""
    for name in ("cam1/0001/0001.jpg", "cam3/0001/0001.png", "exp/train_id.txt"):
        (tmp_path / "sysu" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sysu" / name).write_bytes(b"real")
    not_started(plan_of(), tmp_path / "sysu", "sysu holds other files")
    (tmp_path / "file").write_text("x")
    not_started(plan_of(), tmp_path / "file", "file is a file")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/plan.json").write_text("{")
    not_started(plan_of(), tmp_path / "broken", "is not valid JSON")
    (tmp_path / "nested/plan.json").mkdir(parents=True)
    not_started(plan_of(), tmp_path / "nested", "nested/plan.json .* folder")


def test_a_folder_or_a_pipe_in_place_of_a_dataset_s_file(out):
    plan = plan_of()
    make(plan, out, FakeEngine())
    store = LocalStore(out)
    image, record = next(name for name in store.walk() if name.endswith(".png")), "shards/00000.jsonl"
    for name, put in ((image, Path.mkdir), (record, os.mkfifo)):
        (out / name).unlink()
        put(out / name)
        assert store.size(name) is None
        refused(name, store.read, name)
    damage = verify(store, plan)
    assert any(record in problem for problem in damage.problems)
    (out / "cam3-file").write_text("x")
    with pytest.raises(FileNotFoundError):
        store.read("cam3-file/0001/0001.png")


def test_empty_folder_and_a_killed_start_are_fine(out):
    (out / ".work").mkdir(parents=True)
    for leftover in ("all.lock", "all-abcd1234.tmp", "00000.lock", "00000-0123abcd.tmp"):
        (out / ".work" / leftover).write_text("{")
    assert make(plan_of(pids=["0001"]), out).images == 12
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("name", ["cam3/0001/0001.png", "cam1/0001/0002.png", "cam6/0003/0003.png", "exp/train_id.txt"])
def test_foreign_file_in_our_own_folder_is_not_replaced(tmp_path, name):
    """Be it another plan's or a photo; it is found when its shard's turn comes, or at the end."""
    plan = plan_of()
    make(plan_of(seed=12, pids=["0001", "0003"]), tmp_path / "other")
    for foreign in (tmp_path / "other" / name, write_photos(tmp_path, {"0001": 1})[0].path):
        out, bytes_before = tmp_path / f"out of {foreign.name}", foreign.read_bytes()
        (out / name).parent.mkdir(parents=True)
        save_plan(plan, out / "plan.json")
        (out / name).write_bytes(bytes_before)
        refused(name, make, plan, out)
        assert (out / name).read_bytes() == bytes_before


def test_link_out_of_the_folder(tmp_path, out):
    plan = plan_of()
    out.mkdir()
    (tmp_path / "real").mkdir()
    save_plan(plan, out / "plan.json")
    (out / "cam3").symlink_to(tmp_path / "real")
    refused(rf"leads out of {out}", make, plan, out)
    assert list((tmp_path / "real").rglob("*")) == []


def test_photo_folder_is_not_written_to(tmp_path):
    plan = photo_plan(tmp_path / "photos", {"0001": 1})
    for out in (tmp_path / "photos", tmp_path / "photos/new", tmp_path):
        not_started(plan, out, "lies in the photo folder .*, or that in it; choose another --out")
    before = contents(tmp_path / "photos")
    make(plan, tmp_path / "out")
    assert contents(tmp_path / "photos") == before


def test_missing_photos_are_all_counted(tmp_path, out):
    plan = photo_plan(tmp_path / "photos", {"0001": 3, "0002": 3, "0003": 3}, "photo-guided")
    for photo in (tmp_path / "photos").rglob("*.jpg"):
        photo.unlink()
    not_started(plan, out, "all 9 photos are missing in .*photos: 000.* and 6 more; bring them or plan again")
