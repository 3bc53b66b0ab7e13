"""A student: how it is trained, what its folder holds, who samples it and how, and how it gets more people."""

import json
from dataclasses import replace

import pytest
import torch

from dive_fast.distil.distil import distil
from dive_fast.distil.trainer import StudentTrainer
from dive_fast.models import fuse, load_bundle, merge_identities, save_bundle, taught_by
from dive_fast.models.bundle import ModelBundle
from dive_fast.models.student import check_sampling, read_student
from dive_fast.sampling import Schedule, dpmpp_2m, initial_noise
from dive_fast.sampling.config import Sampling
from dive_fast.synth.choose import PlannedModel, choose
from dive_fast.synth.config import PlanConfig
from dive_fast.train.loop import PhaseConfig, TrainState
from dive_fast.types import Identity
from tests.support.cli import last_json
from tests.support.distilling import CONFIG
from tests.support.models import assert_same_tensors
from tests.support.refusals import refused
from tests.support.tiny import LATENT_SHAPE, tiny_adapter
from tests.support.training import interrupted_call

OWN = Sampling(steps=2, guidance=1.0)


def trainer_of(folder, config=CONFIG):
    trainer = StudentTrainer(load_bundle(folder), config)
    return trainer, trainer.teacher.solve(range(config.batch))


def test_one_unguided_step_of_the_teacher_is_learnt_before_any_training(tiny_fused):
    config = replace(CONFIG, student_steps=1, teacher_steps=1, guidance=1.0)
    trainer, trajectories = trainer_of(tiny_fused, config)
    trainer.parameters()
    loss, _ = trainer.error(trajectories, range(config.batch))
    assert loss < (trajectories["states"].float().abs().max() * 2**-11) ** 2  # float16's rounding of the states


@pytest.mark.parametrize("states", ["own", "teacher"])
def test_the_error_is_that_of_ddims_step_from_the_named_state(tiny_fused, states):
    """In clean latents, by diffusers' DDIM: the step's landing error over the share that the prediction has in it."""
    from diffusers import DDIMScheduler

    trainer, trajectories = trainer_of(tiny_fused, replace(CONFIG, states=states))
    trainer.parameters()
    _, numbers = trainer.error(trajectories, range(4))
    scheduler = DDIMScheduler.from_config(
        trainer.drawings.sampler.bundle.scheduler_config, clip_sample=False, set_alpha_to_one=True
    )
    scheduler.set_timesteps(2)
    teacher = trainer.teacher
    text, index = teacher.encoder.encode(teacher.sampler.text, teacher.prompts(range(4)))
    latents = teacher.noise(range(4))
    for k, timestep in enumerate(scheduler.timesteps):
        with torch.no_grad():
            found = trainer.bundle.unet(latents, timestep, text[index]).sample
        landed = scheduler.step(found, timestep, latents).prev_sample
        now, then = (scheduler.alphas_cumprod[timestep], scheduler.alphas_cumprod[499]) if k == 0 else (None, 1.0)
        share = (then.sqrt() - now.sqrt() * ((1 - then) / (1 - now)).sqrt()) if k == 0 else 1.0
        error = ((landed - trajectories["states"][:, k].float()) / share).square().mean()
        torch.testing.assert_close(numbers[f"step{k + 1}"], error, rtol=1e-3, atol=1e-6)
        latents = landed if states == "own" else trajectories["states"][:, k].float()


@pytest.mark.slow
def test_training_brings_the_student_to_the_teacher(tiny_fused):
    config = replace(CONFIG, steps=40, lr=5e-3, rank=8)
    trainer, trajectories = trainer_of(tiny_fused, config)
    train = TrainState(
        PhaseConfig.of(config, "distil", None, config.steps, config.lr, "", False),
        [{"params": trainer.parameters()}],
        lambda step: trainer.error(trajectories, range(4)),
    )
    losses = [float(train.step(step)[0]) for step in range(config.steps)]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_student(student, tiny_fused, tmp_path, monkeypatch, one_thread):
    from dive_fast.distil.trajectories import Teacher

    out = tmp_path / "student"

    def run():
        return distil(load_bundle(tiny_fused), out, CONFIG, progress=False)

    for owner, name, number in ((Teacher, "solve", 1), (StudentTrainer, "loss", 3), (StudentTrainer, "likeness", 0)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, name, interrupted_call(getattr(owner, name), number))
            run()
        assert not out.exists()
    assert run().metadata == read_student(student).metadata
    assert_same_tensors(load_bundle(out).unet.state_dict(), load_bundle(student).unet.state_dict())
    left = {path.name for path in (tmp_path / "student.training").iterdir()}
    assert left == {"lock", "distil-loss.jsonl"}
    assert len((tmp_path / "student.training" / "distil-loss.jsonl").read_text().splitlines()) == 1
    assert run() == read_student(out)  # a finished run is kept
    refused(str(out), distil, load_bundle(tiny_fused), out, replace(CONFIG, lr=0.5), progress=False)


def test_plain_diffusers_samples_a_student_as_we_do(student):
    from diffusers import StableDiffusionPipeline

    bundle, noise = load_bundle(student), initial_noise([5], LATENT_SHAPE)
    prompt = bundle.prompts.prompt("0002", "cam3")
    pipeline = StableDiffusionPipeline.from_pretrained(student)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt, num_inference_steps=2, guidance_scale=1.0, latents=noise, height=64, width=32, output_type="latent"
    ).images
    ids = bundle.tokenizer([prompt], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        text = bundle.text_encoder(ids).last_hidden_state
        schedule = Schedule.from_config(bundle.scheduler_config, 2)
        ours = dpmpp_2m(lambda latents, timestep: bundle.unet(latents, timestep, text).sample, noise, schedule)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert schedule.order == 1


def test_a_student_changes_the_unet_alone_and_records_its_teacher(student, tiny_fused):
    ours, teacher = load_bundle(student), load_bundle(tiny_fused)
    assert (ours.sampling, ours.student.teacher, ours.student.guidance) == (OWN, teacher.fingerprint, 3.0)
    assert ours.fingerprint != teacher.fingerprint and ours.prompts == teacher.prompts
    for part in ("text_encoder", "vae"):
        assert_same_tensors(getattr(ours, part).state_dict(), getattr(teacher, part).state_dict())
    changed = [k for k, v in ours.unet.state_dict().items() if not torch.equal(v, teacher.unet.state_dict()[k])]
    assert "conv_in.weight" in changed and not [name for name in changed if "norm" in name or name.endswith("bias")]


def test_what_is_no_teacher_is_refused(student, tiny_base, tiny_fused, tmp_path):
    for folder, named in ((tiny_base, "prompts.json"), (student, "student")):
        refused(named, distil, load_bundle(folder), tmp_path / "out", CONFIG, progress=False)
    refused("0009", distil, load_bundle(tiny_fused), tmp_path / "out", CONFIG, exclude=["0009"], progress=False)
    refused(str(tiny_base), distil, load_bundle(tiny_fused), tiny_base, CONFIG, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"steps": 4}, {"guidance": 2.0}, {"guidance_interval": (0.3, 2.0)}])
def test_a_student_samples_in_its_own_way_only(student, tiny_fused, change):
    sampling, facts = replace(OWN, **change), (str(student), OWN.describe())
    check_sampling(student, OWN)
    check_sampling(tiny_fused, sampling)
    refused(facts, check_sampling, student, sampling)
    planned = PlannedModel(load_bundle(tiny_fused).prompts, "f", (64, 32), student)  # as a command or a notebook plans
    assert choose(planned, None, PlanConfig(mode="synthetic")).pids == ("0001", "0002", "0003")
    refused(facts, choose, planned, None, PlanConfig(mode="synthetic", sampling=sampling))


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"teacher": 1, "guidance": 2.0, "attention": [1.0]}', '{"attention": ["x"]}']
)
def test_a_damaged_record_is_refused(student, tmp_path, text):
    (tmp_path / "student.json").write_text(text)
    refused("student.json", read_student, tmp_path)


def with_more_people(bundle: ModelBundle, seed: int = 0):
    adapter = tiny_adapter(bundle, seed=seed)
    row = torch.randn(1, adapter.embeddings.shape[1], generator=torch.Generator().manual_seed(9))
    return merge_identities(adapter, [Identity("0009", "<class_9>")], row)


def test_a_student_serves_people_who_are_added_later(student, tiny_base, tmp_path):
    base = load_bundle(tiny_base)
    more = fuse(base, with_more_people(base))
    taught = taught_by(more, load_bundle(student))
    assert [one.pid for one in taught.prompts.identities][-1] == "0009"
    assert_same_tensors(taught.unet.state_dict(), load_bundle(student).unet.state_dict())
    assert_same_tensors(taught.text_encoder.state_dict(), more.text_encoder.state_dict())
    assert (taught.sampling, taught.student.teacher) == (OWN, more.fingerprint)
    save_bundle(taught, tmp_path / "taught")
    check_sampling(tmp_path / "taught", OWN)


def test_a_student_of_another_lora_or_scale_is_refused(student, tiny_base, tiny_fused):
    base, ours = load_bundle(tiny_base), load_bundle(student)
    for other in (fuse(base, with_more_people(base, seed=1)), fuse(base, with_more_people(base), scale=0.999)):
        refused("--student", taught_by, other, ours)
    refused("student.json", taught_by, fuse(base, with_more_people(base)), load_bundle(tiny_fused))


QUICK = "--teacher-steps 4 --trajectories 8 --steps 2 --batch 2 --rank 2 --student-steps 2 --device cpu"


@pytest.mark.slow
def test_from_a_fused_model_to_a_students_pairs(tiny_fused, tiny_base, tmp_path, run, step):
    line = f"distil --model {tiny_fused} --out {tmp_path}/student {QUICK} --guidance 2"
    code, out, _ = run(f"{line} --dry-run --json")
    assert code == 0 and not list(tmp_path.iterdir())
    assert {"trajectories", "memory_bytes", "disk_bytes", "seconds"} <= set(last_json(out))
    made = step(f"{line} --sheet-every 2 --plot {tmp_path}/losses.png")
    assert made["guidance"] == 2.0 and made["psnr"] > 0
    assert list((tmp_path / "student.training").glob("*.png")) and (tmp_path / "losses.png").stat().st_size
    planned = step(f"plan --model {tmp_path}/student --mode synthetic --pairs 1 --pids 0001 --out {tmp_path}/plan.json")
    assert planned["sampling"] == {"steps": 2, "guidance": 1.0, "guidance_interval": None}
    for option in ("--steps 5", "--guidance 2", "--preset fast"):
        code, _, error = run(f"plan --model {tmp_path}/student --mode synthetic --out {tmp_path}/no.json {option}")
        assert code == 2 and "student" in error
    made = step(f"synth --plan {tmp_path}/plan.json --engine {tmp_path}/student --out {tmp_path}/pairs --device cpu")
    assert made["pairs"] == 1
    line = f"distil-decoder --model {tmp_path}/student --out {tmp_path}/tiny --images 2 --steps 1 --batch 2 --width 8"
    code, out, _ = run(f"{line} --device cpu --dry-run --json")
    assert code == 0 and not (tmp_path / "tiny").exists() and not (tmp_path / "tiny.training").exists()
    assert {"images", "memory_bytes", "disk_bytes", "seconds"} <= set(last_json(out))
    assert step(f"{line} --device cpu")["width"] == 8
    code, _, error = run(f"bench --engine {tmp_path}/student --steps 5 --device cpu")
    assert code == 2 and "student" in error


def test_an_exported_student_stays_one(student, tiny_fused, tmp_path):
    from dive_export.artifact import _copy_metadata

    (tmp_path / "unet").mkdir()
    _copy_metadata(load_bundle(student), student, tmp_path, ["unet"])
    check_sampling(tmp_path, OWN)
    refused(str(tmp_path), check_sampling, tmp_path, replace(OWN, steps=3))
    assert json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())["solver_order"] == 1
