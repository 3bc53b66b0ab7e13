"""What a run makes: images equal to a plain diffusers loop, whatever the batch; files, records, marks, summary."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dive_fast.data.sysu import read_sysu
from dive_fast.synth import load_plan, synthesize
from dive_fast.synth.manifest import read_manifest, read_pairs
from dive_fast.synth.verify import verify_dataset
from tests.support import fake_engine
from tests.support.fake_engine import HEIGHT, WIDTH, FakeEngine, contents, make, photo_plan, plan_of

MODES = ("synthetic", "real-rgb", "photo-guided")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One finished dataset per mode: (plan, folder, summary, engine)."""
    result, photos = {}, tmp_path_factory.mktemp("photos")
    plans = [photo_plan(photos, {"0001": 4, "0002": 2, "0003": 3}, mode) for mode in MODES[1:]]
    for mode, plan in zip(MODES, (plan_of(), *plans), strict=True):
        out, engine = tmp_path_factory.mktemp(mode) / "out", FakeEngine()
        result[mode] = (plan, out, make(plan, out, engine, rows=6), engine)
    return result


def plain_image(engine, plan, pair, camera, photo=None) -> np.ndarray:
    """One image by diffusers' scheduler, one row at a time: no bank, no batch, no code of dive_fast.sampling."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler.from_config(engine.scheduler_config)
    scheduler.set_timesteps(plan.sampling.steps)
    latents = torch.randn((1, *engine.latent_shape), generator=torch.Generator().manual_seed(pair.seed))
    timesteps = scheduler.timesteps
    if photo is not None:
        timesteps = timesteps[plan.sampling.steps - round(plan.sampling.steps * plan.strength) :]
        scheduler.set_begin_index(plan.sampling.steps - len(timesteps))
        picture = Image.open(photo).convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        clean = engine.encode(torch.from_numpy(np.array(picture))[None])
        latents = scheduler.add_noise(clean, latents, timesteps[:1])
    code = {c.name: c.code for c in fake_engine.CAMERAS}[camera]
    texts = [f"a {code} photo of a <class_{pair.pid}> person", ""]
    bank = [engine.encode_text(torch.tensor([[ord(c) for c in text.ljust(48)]])) for text in texts]
    for timestep in timesteps:
        given, null = (engine.eps(latents, int(timestep), engine.condition(row), torch.tensor([0])) for row in bank)
        latents = scheduler.step(null + plan.sampling.guidance * (given - null), timestep, latents).prev_sample
    return engine.decode(latents)[0].numpy()


@pytest.mark.parametrize("mode", MODES)
def test_images_equal_a_plain_loop(made, mode):
    plan, out, _, _ = made[mode]
    records = {record.spec.pair_id: record for record in read_manifest(out)}
    for pair in list(plan.pairs)[::5]:
        files = records[pair.pair_id].files
        photo = f"{plan.photo_root}/{pair.photo}" if mode == "photo-guided" else None
        expected = plain_image(FakeEngine(), plan, pair, pair.ir, photo)
        got = Image.open(out / files["ir"])
        assert got.mode == "L"
        expected_grey = np.asarray(Image.fromarray(expected).convert("L")).astype(int)
        assert np.abs(np.asarray(got).astype(int) - expected_grey).max() <= 1
        if mode == "synthetic":
            expected = plain_image(FakeEngine(), plan, pair, pair.rgb).astype(int)
            assert np.abs(np.asarray(Image.open(out / files["rgb"])).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("mode", MODES)
def test_rows_change_nothing(made, tmp_path, mode):
    plan, out, _, _ = made[mode]
    for rows in (2, 32):
        make(plan, tmp_path / str(rows), rows=rows)
        assert contents(tmp_path / str(rows)) == contents(out)


def test_shards_change_no_image(made, tmp_path):
    _, out, _, _ = made["synthetic"]
    make(plan_of(shard_size=7), tmp_path / "out")
    for name in contents(out):
        if name.endswith(".png"):
            assert Image.open(out / name).tobytes() == Image.open(tmp_path / "out" / name).tobytes()


def test_both_sides_start_from_one_noise(made):
    """The fake engine is linear, so two sides of one noise differ by a constant: their prompts' part."""
    plan, out, _, _ = made["synthetic"]
    record = next(read_manifest(out))
    grey = [np.asarray(Image.open(out / record.files[side]).convert("L")).astype(int) for side in ("rgb", "ir")]
    other = np.asarray(Image.open(out / "cam6/0001/0001.png")).astype(int)
    assert np.ptp(grey[0] - grey[1]) <= 3
    assert np.ptp(grey[0] - other) > 20


def test_every_prompt_is_encoded_once_and_rows_are_filled_across_shards(made):
    plan, _, _, engine = made["synthetic"]
    assert sum(engine.text_rows) == 1 + len({(p.pid, c) for p in plan.pairs for c in (p.rgb, p.ir)})
    assert engine.eps_rows == [6] * 4 * 12  # 36 images, 3 a batch of 6 rows; shards are of 8 images


def test_without_guidance_a_row_is_an_image(tmp_path):
    engine = FakeEngine()
    make(plan_of(guidance=1.0), tmp_path / "out", engine, rows=8)
    assert engine.eps_rows == [8] * 4 * 4 + [4] * 4  # 36 images, only the last batch is not full


def test_marks_in_every_generated_image(made):
    for plan, out, _, engine in made.values():
        for record in read_manifest(out):
            for side in ("ir",) if record.spec.photo else ("rgb", "ir"):
                image = Image.open(out / record.files[side])
                assert (image.format, image.size) == ("PNG", (WIDTH, HEIGHT))
                assert image.info == {
                    "dive_fast:synthetic": "1",
                    "dive_fast:plan_id": plan.plan_id,
                    "dive_fast:pair_id": record.spec.pair_id,
                    "dive_fast:fingerprint": engine.fingerprint,
                }


def test_jpeg_and_its_marks(tmp_path):
    plan = plan_of(pids=["0001"], image_format="jpg")
    make(plan, tmp_path / "jpg")
    make(plan_of(pids=["0001"]), tmp_path / "png")
    for record in read_manifest(tmp_path / "jpg"):
        for side, name in record.files.items():
            image, lossless = Image.open(tmp_path / "jpg" / name), Image.open(tmp_path / "png" / f"{name[:-4]}.png")
            assert (image.format, image.mode) == ("JPEG", lossless.mode)
            difference = np.asarray(image).astype(int) - np.asarray(lossless)
            assert np.abs(difference).mean() < 3
            assert image.getexif()[0x0131] == "dive_fast"  # Software
            assert json.loads(image.getexif()[0x010E]) == {  # ImageDescription
                "synthetic": "1",
                "plan_id": plan.plan_id,
                "pair_id": record.spec.pair_id,
                "fingerprint": FakeEngine().fingerprint,
            }
            assert record.sizes[side] == (tmp_path / "jpg" / name).stat().st_size
    again = make(plan, tmp_path / "jpg", check=True)
    assert (again.images, verify_dataset(tmp_path / "jpg").problems) == (0, [])


def test_real_photos_are_copied_byte_for_byte(made):
    for mode in ("real-rgb", "photo-guided"):
        plan, out, _, _ = made[mode]
        for record in read_manifest(out):
            photo = Path(plan.photo_root) / record.spec.photo
            assert (out / record.files["rgb"]).read_bytes() == photo.read_bytes()


def test_folder_is_complete_and_nothing_else(made):
    for plan, out, _, _ in made.values():
        assert load_plan(out / "plan.json") == plan
        records = list(read_manifest(out))
        assert [record.spec for record in records] == list(plan.pairs)
        expected = {name for record in records for name in record.files.values()}
        expected |= {"plan.json", "exp/train_id.txt", "exp/val_id.txt"}
        expected |= {f"shards/{number:05d}.jsonl" for number in range(5)}
        assert set(contents(out)) == expected
        assert verify_dataset(out).problems == []


def test_samples_tell_real_from_synthetic(made):
    _, out, _, _ = made["real-rgb"]
    found = read_pairs(out)
    assert {(s.camera, s.modality, s.source) for s in found} == {
        ("cam7", "rgb", "real"),
        ("cam3", "ir", "synthetic"),
        ("cam6", "ir", "synthetic"),
    }
    real = [s for s in found if s.source == "real"]
    assert len(real) == len({s.path for s in real}) == 3 + 2 + 3  # distinct photos, of which 0002 has two
    assert len(found) == len(real) + 18
    _, out, _, _ = made["synthetic"]
    assert {s.source for s in read_pairs(out)} == {"synthetic"}
    assert len(read_pairs(out)) == 36


def test_the_sysu_reader_and_the_manifest_agree(made):
    for _, out, _, _ in made.values():
        read = {(s.path, s.pid, s.camera, s.modality) for s in read_sysu(out, "trainval")}
        assert read == {(s.path, s.pid, s.camera, s.modality) for s in read_pairs(out)}
        assert {s.pid for s in read_sysu(out, "val")} == {"0003"}


def test_summary(made):
    plan, _, summary, engine = made["synthetic"]
    assert (summary.pairs, summary.images, summary.shards, summary.resumed_shards) == (18, 36, 5, 0)
    assert summary.finished and summary.plan_id == plan.plan_id
    assert set(summary.times) == {"encode", "denoise", "decode", "wait", "write"}
    assert summary.images_per_second == pytest.approx(36 / summary.seconds, rel=0.02)
    assert made["real-rgb"][2].images == 18


def test_records_do_not_depend_on_the_day(made):
    _, out, _, engine = made["photo-guided"]
    row = json.loads((out / "shards/00000.jsonl").read_text().splitlines()[0])
    assert set(row) == {"spec", "files", "sha256", "sizes", "engine_fingerprint", "scores", "status"}
    assert (row["engine_fingerprint"], row["scores"], row["status"]) == (engine.fingerprint, {}, "done")


def test_progress_is_shown_and_can_be_off(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dive_fast.progress.LINE_SECONDS", 0)
    make(plan_of(pids=["0001"]), tmp_path / "a")
    assert capsys.readouterr() == ("", "")
    synthesize(plan_of(pids=["0001"]), FakeEngine(), tmp_path / "b")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "of 12 images" in shown.err
