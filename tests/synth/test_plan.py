"""Plans: which pairs, with which seeds and photos, told beforehand by hand; and files that nobody should trust."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from dive_fast.io import canonical_json
from dive_fast.synth import load_plan, save_plan
from dive_fast.synth.layout import shard_pairs
from dive_fast.synth.plan import Override, read_overrides
from dive_fast.synth.planfile import pair_seed
from dive_fast.types import Camera, InputError, Sample, to_dict
from tests.support.fake_engine import CAMERAS, photo_plan, plan_of, planned_files, write_photos
from tests.support.refusals import refused


def test_synthetic_pairs_by_hand():
    plan = plan_of(pids=["0002", "0001"], pairs_per_identity=2)
    cameras = [("cam1", "cam3"), ("cam1", "cam6"), ("cam2", "cam3"), ("cam2", "cam6")]
    assert [(p.pair_id, p.pid, p.index, p.rgb, p.ir, p.photo) for p in plan.pairs] == [
        (f"{pid}-{index:05d}-{ir}", pid, index, rgb, ir, None)
        for pid in ("0001", "0002")
        for index, (rgb, ir) in enumerate(cameras)
    ]


def test_seed_by_hand():
    digest = hashlib.sha256(b'[11,"0001",3]').hexdigest()
    assert pair_seed(11, "0001", 3) == int(digest[:16], 16) // 2
    assert plan_of().pairs[3].seed == pair_seed(11, "0001", 3)


def test_seeds_are_many_and_depend_on_nothing_else():
    seeds = {pair_seed(seed, pid, index) for seed in (0, 1) for pid in ("0001", "0002") for index in range(500)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
    small, other = plan_of(), plan_of(pids=["0003"], shard_size=1, steps=9, rgb=["cam2"])
    assert {p.pair_id: p.seed for p in other.pairs}.items() <= {p.pair_id: p.seed for p in small.pairs}.items()


def test_files_by_hand():
    plan = plan_of(pids=["0001"], pairs_per_identity=2, rgb=["cam1"])
    assert planned_files(plan) == [
        {"rgb": f"cam1/0001/000{rgb}.png", "ir": f"{ir}.png"}
        for rgb, ir in enumerate(("cam3/0001/0001", "cam6/0001/0001", "cam3/0001/0002", "cam6/0001/0002"), 1)
    ]


@pytest.mark.parametrize("mode", ["real-rgb", "photo-guided"])
def test_photos(tmp_path, mode):
    plan = photo_plan(tmp_path, {"0001": 5, "0002": 2, "0004": 1}, mode, pids=["0001", "0002"])
    assert plan.photo_root == str(tmp_path)
    by_camera = {ir: [p.photo for p in plan.pairs if p.pid == "0001" and p.ir == ir] for ir in ("cam3", "cam6")}
    assert by_camera["cam3"] == by_camera["cam6"] and len(set(by_camera["cam3"])) == 3
    assert set(by_camera["cam3"]) <= {f"0001/{n}.jpg" for n in range(5)}
    again = [p.photo for p in plan.pairs if p.pid == "0002" and p.ir == "cam3"]
    assert again[0] == again[2] != again[1]
    assert all(p.rgb == "cam7" for p in plan.pairs)
    files = planned_files(plan)
    photos = [("0001", 1), ("0001", 2), ("0001", 3), ("0002", 1), ("0002", 2)]
    assert {f["rgb"] for f in files} == {f"cam7/{pid}/{n:04d}.jpg" for pid, n in photos}
    assert Counter(f["ir"].split("/")[0] for f in files) == {"cam3": 6, "cam6": 6}


def test_photo_choice_is_seeded_and_independent_of_order_and_others(tmp_path):
    photos = write_photos(tmp_path, {"0001": 30, "0002": 3})

    def chosen(seed=11, given=photos):
        plan = plan_of("real-rgb", pids=["0001"], photos=given, photo_root=tmp_path, seed=seed)
        return [p.photo for p in plan.pairs]

    assert chosen() == chosen(given=photos[::-1]) == chosen(given=photos[:30])
    assert chosen() != chosen(seed=12)


def test_only_real_rgb_photos_of_the_named_cameras(tmp_path):
    photos = write_photos(tmp_path / "a", {"0001": 2}) + write_photos(tmp_path / "b", {"0001": 2}, camera="cam8")
    wrong = [replace(photos[0], modality="ir"), replace(photos[0], source="synthetic")]
    plan = plan_of("real-rgb", pids=["0001"], photos=[*wrong, *photos[2:]], photo_root=tmp_path)
    assert {p.photo for p in plan.pairs} == {"b/0001/0.jpg", "b/0001/1.jpg"}
    plan = plan_of("real-rgb", pids=["0001"], photos=photos, photo_root=tmp_path, rgb=["cam7"])
    assert {(p.photo, p.rgb) for p in plan.pairs} == {("a/0001/0.jpg", "cam7"), ("a/0001/1.jpg", "cam7")}
    lacking = r"2 of 3 identities have no real RGB photo of cam7 \(0002, 0003\)"
    refused(lacking, plan_of, "real-rgb", photos=photos, photo_root=tmp_path, rgb=["cam7"])


def test_cameras_that_sysu_readers_misread():
    cameras = [*CAMERAS, Camera("cam9", "ir", "eeee")]
    with pytest.warns(UserWarning, match="cam9"):
        plan_of(cameras=cameras, ir=["cam3", "cam9"])


def test_photo_outside_the_root(tmp_path):
    photos = write_photos(tmp_path / "a", {"0001": 1})
    refused("photo_root", plan_of, "real-rgb", pids=["0001"], photos=photos, photo_root=tmp_path / "b")
    refused("photo_root", plan_of, "real-rgb", pids=["0001"], photos=photos)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "fast"}, "mode must be one of"),
        ({"ir": ["cam9"]}, r"the model knows 4 cameras, 'cam9' is not one, nearest 'cam[1236]'"),
        ({"ir": ["cam1"]}, "camera 'cam1' is an rgb camera and cannot give the ir side"),
        ({"rgb": ["cam3"]}, "camera 'cam3' is an ir camera and cannot give the rgb side"),
        ({"ir": []}, "name at least one ir camera, each once, got"),
        ({"rgb": []}, "name at least one rgb camera"),
        ({"ir": ["cam3", "cam3"]}, "each once"),
        ({"pids": []}, "no pair to make"),
        ({"pids": ["12"]}, "spell it '0012'"),
        ({"pids": ["../x"]}, "cannot be an identity name"),
        ({"pairs_per_identity": 0}, "no pair to make"),
        ({"pairs_per_identity": -1}, "needs pairs >= 0"),
        ({"shard_size": 0, "width": 12}, r"width .* got 12; shard_size must be .* got 0"),
    ],
)
def test_bad_requests(changes, message):
    refused(message, plan_of, **changes)


@pytest.mark.parametrize("strength", [0.0, 1.01, 0.1, -1.0])
def test_bad_strength(tmp_path, strength):
    message = f"strength must be in 0..1 and run at least one of 4 steps, got {strength}"
    refused(message, photo_plan, tmp_path, {"0001": 1}, "photo-guided", strength=strength)


@pytest.mark.parametrize(("steps", "strength", "start"), [(50, 0.6, 20), (10, 0.9, 1), (50, 1.0, 0), (20, 0.05, 19)])
def test_start(tmp_path, steps, strength, start):
    guided, real = (
        photo_plan(tmp_path, {"0001": 1}, mode, strength=strength, steps=steps) for mode in ("photo-guided", "real-rgb")
    )
    assert (guided.start, real.start, real.strength) == (start, 0, None)


def test_plan_id_is_the_hash_of_the_rest():
    plan = plan_of()
    rest = {key: value for key, value in to_dict(plan).items() if key != "plan_id"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    assert plan.plan_id == hashlib.sha256(text.encode()).hexdigest()
    assert plan.plan_id == plan_of(pids=["0003", "0002", "0001"]).plan_id
    changes = ({}, {"seed": 12}, {"steps": 5}, {"shard_size": 5}, {"precision": "fp16"}, {"guidance_interval": (1, 4)})
    assert len({plan_of(**change).plan_id for change in changes}) == 6


def test_file_round_trip(tmp_path):
    guided = photo_plan(tmp_path, {"0001": 1}, "photo-guided")
    for name, plan in enumerate((plan_of(), guided, plan_of(guidance_interval=(0.25, 4), precision="fp16"))):
        save_plan(plan, tmp_path / f"{name}.json")
        assert load_plan(tmp_path / f"{name}.json") == plan


def test_a_plan_is_replaced_if_asked_and_nothing_else_is(tmp_path):
    path = tmp_path / "plan.json"
    save_plan(plan_of(), path)
    save_plan(plan_of(), path)  # an equal one
    refused("--overwrite", save_plan, plan_of(seed=12), path)
    assert load_plan(path) == plan_of()
    save_plan(plan_of(seed=12), path, overwrite=True)
    assert load_plan(path) == plan_of(seed=12)
    path.write_text('{"thesis": 1}')
    refused("plan.json", save_plan, plan_of(), path, overwrite=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(seed=12), "plan_id does not match its content"),
        (lambda d: d["identities"][0].update(pairs=7), "plan_id does not match its content"),
        (lambda d: d.update(extra=1), r"unknown field\(s\) extra"),
        (lambda d: d["sampling"].update(steps=5), "plan_id does not match its content"),
        (lambda d: d["sampling"].update(steps=0), "sampling: steps .* got 0"),
        (lambda d: d["sampling"].update(steps="4"), "sampling: steps is '4'"),
        (lambda d: d["sampling"].update(steps=True), "sampling: steps is True"),
        (lambda d: d["sampling"].update(guidance_interval=[1]), r"sampling: guidance_interval is \[1\]"),
        (lambda d: d["sampling"].update(eta=1), r"sampling: unknown field\(s\) eta"),
        (lambda d: d.pop("sampling"), "sampling"),
        (lambda d: d.update(mode="fast"), "mode is 'fast', which is no"),
        (lambda d: d.update(seed=-1), "seed must be .* got -1"),
        (lambda d: d.update(identities=[]), "no pair to make"),
        (lambda d: d.update(identities={}), "identities is {}"),
        (lambda d: d.update(pairs=[]), r"unknown field\(s\) pairs"),
        (lambda d: d.update(version=3), "version 3, .* reads version 4"),
        (lambda d: d.pop("version"), "version None, .* reads version 4"),
        (lambda d: d.update(image_format="gif"), "image_format is 'gif', which is no"),
        (lambda d: d["identities"][1].update(pid=7), r"identities 1: pid is 7, which is no"),
        (lambda d: d["identities"].append("x"), "identities 3: expected a JSON object for IdentityPlan, got str"),
        (lambda d: d["identities"].append(d["identities"][0]), "an identity twice"),
        (lambda d: d["identities"][0].update(pairs=-1), r"identity 0001 needs pairs >= 0 \(-1\)"),
        (lambda d: d["identities"][0].update(ir=[]), "identity 0001 needs pairs .* cameras"),
        (lambda d: d["identities"][0].update(ir=["cam3", "cam3"]), "identity 0001 needs .* each once"),
        (lambda d: d["identities"][0].update(rgb=[["cam1"]]), "rgb is .* which is no"),
        (lambda d: d["identities"][0].update(rgb=[["cam1", "../x.jpg"]]), "mode 'synthetic'.*outside photo_root"),
        (lambda d: d.update(photo_root="/"), "does not go with photo_root '/'"),
        (lambda d: d.update(strength=0.5), "mode 'synthetic' does not go with strength 0.5"),
    ],
)
def test_untrusted_files(tmp_path, change, message):
    path, data = tmp_path / "plan.json", json.loads(json.dumps(to_dict(plan_of())))
    change(data)
    path.write_text(json.dumps(data))
    refused(rf"plan {path}.*{message}", load_plan, path)


@pytest.mark.parametrize("text", ["", "[1]", "{", '"plan"', "\x00"])
def test_files_that_are_no_plan(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    refused(r"plan\.json", load_plan, tmp_path / "plan.json")
    refused("does not exist", load_plan, tmp_path / "gone.json")


def test_overrides_of_single_identities(tmp_path):
    path = tmp_path / "overrides.json"
    path.write_text('{"0001": {"pairs": 0}, "0002": {"pairs": 1, "ir": ["cam6"]}, "0003": {"rgb": ["cam2"]}}')
    plan = plan_of(pairs_per_identity=2, overrides=read_overrides(path))
    assert [(p.pair_id, p.rgb) for p in plan.pairs] == [
        ("0002-00000-cam6", "cam1"),
        ("0003-00000-cam3", "cam2"),
        ("0003-00001-cam6", "cam2"),
        ("0003-00002-cam3", "cam2"),
        ("0003-00003-cam6", "cam2"),
    ]
    assert plan.pairs[0].seed == pair_seed(11, "0002", 0)
    refused("0009", plan_of, overrides={"0009": Override(pairs=1)})
    refused("'cam1'", plan_of, overrides={"0001": Override(ir=("cam1",))})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a JSON object of identities"),
        ('{"0001": 3}', "identity 0001: .* int"),
        ('{"0001": {"steps": 3}}', "identity 0001: .* steps .*'ir', 'pairs', 'rgb'"),
        ('{"0001": {"pairs": "3"}}', "identity 0001: pairs is '3'"),
        ('{"0001": {"ir": "cam3"}}', "identity 0001: ir is 'cam3'"),
    ],
)
def test_bad_overrides(tmp_path, text, message):
    (tmp_path / "overrides.json").write_text(text)
    refused(message, read_overrides, tmp_path / "overrides.json")


@pytest.mark.parametrize("mode", ["synthetic", "real-rgb"])
def test_any_shard_is_found_without_the_others(tmp_path, mode):
    """Random access equals a walk from the start: pairs, and the files that a counter along the walk would give."""
    given = {"pairs_per_identity": 4, "shard_size": 5, "overrides": {"0002": Override(pairs=7, ir=("cam6",))}}
    plan = (
        photo_plan(tmp_path, {"0001": 2, "0002": 3, "0003": 1}, mode, **given)
        if mode != "synthetic"
        else plan_of(**given)
    )
    walk = list(plan.pairs)
    assert len(walk) == len(plan.pairs) == 8 + 7 + 8
    assert [plan.pairs[n] for n in range(-23, 23)] == walk * 2
    assert [pair for n in range(plan.shards) for pair, _ in shard_pairs(plan, n)] == walk
    numbers: Counter[tuple[str, str]] = Counter()
    for pair, files in (entry for n in range(plan.shards) for entry in shard_pairs(plan, n)):
        for side in ("rgb", "ir") if mode == "synthetic" else ("ir",):
            camera = pair.ir if side == "ir" else pair.rgb
            numbers[camera, pair.pid] += 1
            assert files[side] == f"{camera}/{pair.pid}/{numbers[camera, pair.pid]:04d}.png"
    with pytest.raises(IndexError):
        plan.pairs[23]


def test_counts_of_a_dive_like_run():
    """18 pairs for each of two cameras are 36 an identity, as in DiVE, which made 1,011 x 36."""
    pids = [f"{number:04d}" for number in range(534, 555)]
    photos = [Sample(Path(f"/market/{pid}/{n}.jpg"), pid, "cam7") for pid in pids for n in range(5)]
    plan = plan_of("real-rgb", pids=pids, pairs_per_identity=18, photos=photos, photo_root="/market", shard_size=64)
    assert (len(plan.pairs), plan.shards, len(shard_pairs(plan, 11))) == (756, 12, 756 - 11 * 64)
    assert len({pair.seed for pair in plan.pairs}) == 756


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs_per_identity": 10**13}, "at most 1,000,000,000"),
        ({"pairs_per_identity": 10**7, "shard_size": 1}, "10,000,000 shards of 1"),
        ({"steps": 10**12}, "steps must be at most 10000"),
        ({"pairs_per_identity": 10**400}, "at most 1,000,000,000"),
        ({"height": 10**12}, "height must be at most 16384"),
        ({"seed": 2**63}, "seed must be at most"),
    ],
)
def test_numbers_that_would_never_end_are_refused(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        plan_of(**changes)
    assert len(str(caught.value)) < 300


def test_large_plans_that_do_end():
    assert len(plan_of(pairs_per_identity=10**6, shard_size=1000).pairs) == 6 * 10**6


def test_virtual_identities_are_marked_in_plan_and_pairs_and_a_plan_without_any_is_as_before(tmp_path):
    plain, marked = plan_of(), plan_of(virtual=["0002"])
    assert {pair.pid for pair in marked.pairs if pair.virtual} == {"0002"}
    save_plan(marked, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == marked
    assert marked.plan_id != plain.plan_id == plan_of(virtual=()).plan_id
    assert "virtual" not in canonical_json(to_dict(plain))
