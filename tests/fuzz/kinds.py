"""Every kind of file that the product reads: what lies in a folder before, and the command that reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from safetensors.torch import save_file

from dive_fast import cli
from tests.fuzz.mutations import copy_tree
from tests.support.ldm import write_single_file
from tests.support.lora_layouts import NAMES, write_dive, write_identity, write_lora
from tests.support.trees import photo, write

Read = Callable[[Path, Path], object]


@dataclass(frozen=True)
class Kind:
    """`line` is a command, or `read` a function of (inputs, folder), that reads one of the files in the run's folder.

    In `line` {0} is the folder of inputs and {1} the run's. `start` maps names in the run's folder to inputs, of which a
    pattern stands for one drawn by chance. `files` are patterns of those that are damaged. A `slow` kind has inputs
    or a command that take seconds.
    """

    name: str
    line: str = ""
    start: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ("**/*",)
    read: Read | None = None
    slow: bool = False


TINY = "--height 64 --width 32 --stripes 2 --identities 2 --per-modality 2 --steps 4 --device cpu"
REAL = "sysu:{0}/world/sysu"
PREPARE = "prepare --no-latents --out {1}/out --photos"
IMPORT = "import --model {0}/base --out {1}/out"
SYNTH = "synth --rows 8 --device cpu"
PERSONALIZE = "personalize --identity-steps 2 --steps 2 --batch 2 --rank 2 --save-every 1 --device cpu"
COMPARE = f"--real {REAL} --arm baseline --arm more={{0}}/pairs --same-people --seeds 0 {TINY}"
TRIALS = f"--real regdb:{{0}}/trees/regdb --trials 1 {TINY}"
TREES = ("regdb", "llcm", "market", "msmt17", "folder")
WORLD = "--paired-ids 3 --test-ids 2 --external-ids 1 --images-per-camera 1 --market-images 1"
PEOPLE = "--same-people --layout sysu"


def _tagger(inputs: Path, folder: Path) -> None:
    from dive_fast.train.tagger import load_tagger

    load_tagger(folder / "tagger")


def _tiny_decoder(inputs: Path, folder: Path) -> None:
    from dive_fast.models import load_bundle
    from dive_fast.models.tiny_decoder import with_tiny_decoder

    with_tiny_decoder(load_bundle(inputs / "base"), folder / "tiny")


def _sampling(inputs: Path, folder: Path) -> None:
    from dive_fast.models.sampling_file import read_sampling

    read_sampling(folder)


def _engine(inputs: Path, folder: Path) -> None:
    from dive_fast.engines import load_engine
    from dive_fast.sampling import Schedule

    engine = load_engine(folder / "engine", device="cpu")
    Schedule.from_config(engine.scheduler_config, 3)
    engine.encode_text(engine.prompts.token_ids([None]))


def _study(inputs: Path, folder: Path) -> None:
    from dive_fast.experiments.config import StudyConfig
    from dive_fast.experiments.pipeline import Timings
    from dive_fast.experiments.study import open_study

    config = StudyConfig(model=str(inputs / "base"), adapter=None)
    with open_study(config, folder / "study"), Timings(folder / "study/seconds.json").stage("walk"):
        pass


def _oracle(inputs: Path, folder: Path) -> None:
    from dive_fast.experiments.arms import oracle_infrared

    oracle_infrared(folder / "world", 1)


def _weights(inputs: Path, folder: Path) -> None:
    from dive_fast.reid.models.weights import read_state, resnet50_state

    path = next(folder.iterdir(), folder / "weights.pt")
    resnet50_state(read_state(path), {"embedder.embedder.convolution.weight": torch.zeros(2, 2)}, str(path))


def _loss_log(inputs: Path, folder: Path) -> None:
    from dive_fast.train.curves import Curve, plot_curves

    plot_curves([Curve(folder / "loss.jsonl", "loss", "loss")], folder / "loss.png")


def _timing_table(inputs: Path, folder: Path) -> None:
    from dive_export.fp8_report import read_times

    read_times(folder / "times.json")


def _image(inputs: Path, folder: Path) -> None:
    from dive_fast.data.images import header_size, open_image

    path = next(folder.iterdir(), folder / "photo.png")  # unlike glob, with a link in a circle
    header_size(path)
    open_image(path)


KINDS = (
    Kind("base model", "fuse --adapter {0}/adapter --model {1}/base --out {1}/out", {"base": "base"}),
    Kind(
        "single file",
        "fuse --adapter {0}/adapter --model {1}/model.safetensors --out {1}/out",
        {"": "single"},
    ),
    Kind(
        "fused model, planned", "plan --model {1}/fused --out {1}/p.json --mode synthetic --pairs 1", {"fused": "fused"}
    ),
    Kind("model's sampling", start={"sampling.json": "fused/sampling.json"}, read=_sampling),
    Kind("fused model, run", SYNTH + " --plan {0}/plan.json --engine {1}/fused --out {1}/out", {"fused": "fused"}),
    Kind(
        "student",
        "fuse --adapter {0}/adapter --model {0}/base --student {1}/student --out {1}/out",
        {"student": "student"},
    ),
    Kind("tiny decoder", start={"tiny": "tiny"}, read=_tiny_decoder),
    Kind("adapter", "fuse --adapter {1}/adapter --model {0}/base --out {1}/out", {"adapter": "adapter"}),
    Kind("adapter, exported", "export-adapter --adapter {1}/adapter --out {1}/out", {"adapter": "adapter"}),
    Kind("diffusers' adapter", IMPORT + " {1}/exported", {"exported": "exported"}),
    Kind("DiVE's adapter", IMPORT + " {1}/dive", {"dive": "dive"}),
    Kind(
        "LoRA",
        IMPORT + " {1}/lora {0}/embeddings/diffusers/learned_embeds.safetensors --camera c=rgb:q7dk",
        {"lora": "loras/*"},
    ),
    Kind("embedding", IMPORT + " {1}/embedding --init-from {0}/adapter", {"embedding": "embeddings/*"}),
    Kind("tagger", start={"tagger": "tagger"}, read=_tagger),
    Kind("photo", start={"": "photos/*"}, read=_image),
    Kind(
        "sysu", f"merge --out {{1}}/out --real sysu:{{1}}/sysu --synthetic {{0}}/pairs {PEOPLE}", {"sysu": "world/sysu"}
    ),
    *(Kind(layout, f"{PREPARE} {layout}:{{1}}/{layout}", {layout: f"trees/{layout}"}) for layout in TREES),
    Kind(
        "photos of a plan",
        "plan --model {0}/fused --out {1}/p.json --mode photo-guided --photos sysu:{1}/sysu --pairs 1",
        {"sysu": "world/sysu"},
    ),
    Kind(
        "overrides",
        "plan --model {0}/fused --out {1}/p.json --mode synthetic --overrides {1}/overrides.json",
        {"overrides.json": "overrides.json"},
    ),
    Kind("plan", SYNTH + " --plan {1}/plan.json --engine {0}/fused --out {1}/out", {"plan.json": "plan.json"}),
    Kind(
        "prepared set",
        PERSONALIZE + " --model {0}/base --out {1}/out --prepared {1}/prepared",
        {"prepared": "prepared"},
    ),
    Kind(
        "prepared set, resumed",
        "prepare --no-latents --shard-size 12 --out {1}/prepared --photos " + REAL,
        {"prepared": "prepared"},
    ),
    Kind(
        "state of a training",
        PERSONALIZE + " --model {0}/base --out {1}/out --photos " + REAL,
        {"out.training": "out.training"},
    ),
    Kind("encoder", "virtual --encoder {1}/encoder --people 2 --percentile 0 --out {1}/out", {"encoder": "encoder"}),
    Kind(
        "encoder, run",
        f"encode --encoder {{1}}/encoder --photos {REAL},prefix=7 --out {{1}}/out --device cpu",
        {"encoder": "encoder"},
    ),
    Kind("dataset, verified", "verify {1}/pairs", {"pairs": "pairs"}),
    Kind("dataset, packed", "pack {1}/pairs --out {1}/out", {"pairs": "pairs"}),
    Kind("dataset, resumed", SYNTH + " --plan {0}/plan.json --engine {0}/fused --out {1}/pairs", {"pairs": "pairs"}),
    Kind("dataset, reported", "report {1}/scored --out {1}/out.html", {"scored": "scored"}),
    Kind(
        "dataset, merged",
        f"merge --out {{1}}/out --real {REAL} --synthetic {{1}}/scored {PEOPLE}",
        {"scored": "scored"},
    ),
    Kind("dataset, described", "card {1}/scored --model {0}/fused", {"scored": "scored"}),
    Kind("dataset, scored", f"score {{1}}/scored --net {{0}}/net --real {REAL} --device cpu", {"scored": "scored"}),
    Kind("dataset, filtered", "filter {1}/scored --keep-fraction identity=0.5 --allow-lost", {"scored": "scored"}),
    Kind(
        "gallery", "report {0}/scored --out {1}/gallery --workers 1", {"gallery": "gallery"}, ("**/*.js*",), slow=True
    ),
    Kind("pack", "pack {0}/pairs --out {1}/packed", {"packed": "packed"}),
    Kind(
        "merged tree", f"merge --out {{1}}/merged --real {REAL} --synthetic {{0}}/pairs {PEOPLE}", {"merged": "merged"}
    ),
    Kind("ReID checkpoint", f"reid eval --checkpoint {{1}}/net --test {REAL} --device cpu", {"net": "net"}),
    Kind("ReID checkpoint, finished", f"reid train --out {{1}}/net --real {REAL} {TINY}", {"net": "net"}),
    Kind("ReID training", f"reid train --out {{1}}/net --real {REAL} {TINY} --save-every 2", {"net": "training"}),
    Kind(
        "ReID comparison",
        f"reid compare --out {{1}}/out {COMPARE}",
        {"out": "compared"},
    ),
    Kind("ReID trials", f"reid trials --out {{1}}/out {TRIALS}", {"out": "trials"}),
    Kind("ReID weights", start={"": "weights/*"}, read=_weights),
    Kind(
        "pages of a retrieval",
        f"reid show --checkpoint {{1}}/net --test {REAL} --out {{1}}/out --images 0",
        {"net": "net"},
    ),
    Kind("features", f"reid eval --features {{1}}/features --test {REAL}", {"features": "features"}),
    Kind("features as given", "reid eval --features {1}/features", {"features": "features"}),
    Kind("features of MATLAB", "reid eval --features {1}/f.mat", {"f.mat": "features.mat"}, slow=True),
    Kind(
        "distances",
        f"reid eval --distances {{1}}/distance.npy --test {REAL}",
        {"distance.npy": "features/distance.npy"},
    ),
    Kind("bench result", "capacity --result {1}/bench.json --pairs 1000", {"bench.json": "bench.json"}),
    Kind("timing table", start={"times.json": "times.json"}, read=_timing_table),
    Kind("study", start={"study": "study"}, read=_study),
    Kind("loss log", start={"loss.jsonl": "loss.jsonl"}, read=_loss_log),
    Kind("world", "world make --out {1}/world " + WORLD, {"world": "world"}, ("*/*.json",)),
    Kind("oracle", start={"world": "world"}, files=("world/oracle/*.jsonl",), read=_oracle),
    Kind("engine", start={"engine": "engine"}, read=_engine, slow=True),
)


def make_inputs(folder: Path, slow: bool) -> None:
    """Writes what the kinds read, those of `slow` kinds only if asked for."""
    from dive_fast.models import fuse, load_bundle, save_adapter, save_bundle
    from dive_fast.models.interop import export_adapter
    from dive_fast.sampling import Sampling
    from tests.support.tiny import tiny_adapter, tiny_bundle_folder, with_toned_people

    folder.mkdir(parents=True, exist_ok=True)
    bundle = load_bundle(tiny_bundle_folder(folder / "base"))
    adapter = tiny_adapter(bundle)
    toned = with_toned_people(adapter)
    save_adapter(toned, folder / "adapter")
    fused = fuse(load_bundle(folder / "base"), adapter)
    save_bundle(replace(fused, sampling=Sampling(2, 2.0, (0.5, 2.0))), folder / "fused")
    export_adapter(toned, folder / "exported")
    _distilled(folder)
    _foreign(folder, bundle, adapter)
    _tables(folder)
    _trees(folder / "trees")
    _commands(folder, slow)


def _distilled(folder: Path) -> None:
    """A student that learned nothing, and a tiny decoder that learned nothing."""
    from dive_fast.distil.trajectories import few_step_scheduler
    from dive_fast.models import load_bundle, save_bundle
    from dive_fast.models.student import Student, attention_sums
    from dive_fast.models.tiny_decoder import TinyDecoder, autoencoder_fingerprint, new_tiny, save_tiny
    from dive_fast.sampling.config import Sampling

    fused = load_bundle(folder / "fused")
    student = Student(fused.fingerprint, 2.0, attention_sums(fused.unet))
    scheduler = few_step_scheduler(fused.scheduler_config, order=1)
    own = Sampling(steps=2, guidance=1.0)
    save_bundle(replace(fused, scheduler_config=scheduler, sampling=own, student=student), folder / "student")
    save_tiny(new_tiny(fused.vae, 8), TinyDecoder(autoencoder_fingerprint(fused.vae), 8, 30.0), folder / "tiny")


def _foreign(folder: Path, bundle: Any, adapter: Any) -> None:
    """Files of other tools: a model in one file, LoRA and embeddings of all layouts, DiVE's folder."""
    from dive_fast.models.phrase import Phrase
    from dive_fast.train.tagger import Tagger, TaggerNet, mixed_words, save_tagger

    for name in ("single", "embeddings/diffusers", "embeddings/kohya", "embeddings/a1111", "embeddings/first"):
        (folder / name).mkdir(parents=True)
    write_single_file(bundle, folder / "single/model.safetensors")
    copy_tree(folder / "base/tokenizer", folder / "single/tokenizer")
    for config in folder.glob("base/*/*config.json"):
        copy_tree(config, folder / "single" / config.relative_to(folder / "base"))
    write(folder / "single/model.yaml", "model:", "  params:", "    parameterization: eps")
    for number, layout in enumerate(NAMES):
        name = "adapter_model.safetensors" if layout.startswith("peft") else "pytorch_lora_weights.safetensors"
        write_lora(folder / f"loras/{number:02d}" / name, adapter, layout)
    write_lora(folder / "loras/pickle/pytorch_lora_weights.bin", adapter, "diffusers")
    write_dive(folder / "dive", adapter, {"cam1": "q7dk", "cam3": "w2vx"})
    write_identity(folder / "embeddings/diffusers/learned_embeds.safetensors", adapter)
    rows = adapter.embeddings[:1].clone()
    save_file({"emb_params": rows}, folder / "embeddings/kohya/learned_embeds-anna.safetensors")
    torch.save({"string_to_param": {"*": rows}, "name": "anna"}, folder / "embeddings/a1111/learned_embeds.pt")
    params = torch.nn.ParameterDict({"anna": rows})
    torch.save(
        {"string_to_param": params, "string_to_token": {"anna": torch.tensor(265)}},
        folder / "embeddings/first/learned_embeds.pt",
    )
    phrase = Phrase("a {red|green} coat")
    save_tagger(Tagger(phrase, TaggerNet([len(words) for words in mixed_words(phrase)]), (32, 16)), folder / "tagger")


def _tables(folder: Path) -> None:
    """Small JSON files that users write or other machines measured."""
    from dive_fast.io import write_json, write_jsonl

    write_json(folder / "overrides.json", {"0001": {"pairs": 1, "ir": ["cam3"]}})
    rows = [{"rows": 2, "images_per_second": {"p5": 1.0, "p50": 2.0, "p95": 3.0, "n": 5}, "bytes_per_image": 1000.0}]
    write_json(folder / "bench.json", {"rows": rows, "backend": "torch", "precision": "fp32"})
    write_json(folder / "times.json", {"layers": {"/down/to_q": {"plain_ms": 0.2, "fp8_ms": 0.1}}, "gpu": "x"})
    write_jsonl(folder / "loss.jsonl", [{"step": step, "loss": 1.0 / (1 + step)} for step in range(5)])
    weights = {"conv1.weight": torch.zeros(2, 2), "fc.weight": torch.zeros(2)}
    for name in ("pickle", "safetensors"):
        (folder / "weights" / name).mkdir(parents=True)
    torch.save(weights, folder / "weights/pickle/weights.pt")
    save_file(weights, folder / "weights/safetensors/weights.safetensors")
    for number, (mode, kind) in enumerate(
        (("RGB", "png"), ("L", "jpg"), ("RGB", "bmp"), ("I;16", "tif"), ("RGB", "webp"))
    ):
        path = folder / f"photos/{number}/photo.{kind}"
        path.parent.mkdir(parents=True)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new(mode, (12, 24), number).save(path, exif=exif)


def _trees(folder: Path) -> None:
    """Photos in every layout but SYSU-MM01's, which the pocket world has."""
    _listed(
        folder / "regdb",
        "idx/{}_{}_1.txt",
        {"visible": "Visible/{0}/a_v_{0}.bmp", "thermal": "Thermal/{0}/a_t_{0}.bmp"},
    )
    for kind in ("vis", "nir"):
        files = [f"{kind}/000{pid}/000{pid}_c0{pid}_s1_f1_{kind}.jpg" for pid in (1, 2)]
        _photos(folder / "llcm", files)
        write(folder / f"llcm/idx/train_{kind}.txt", *(f"{file} {pid}" for pid, file in enumerate(files)))
    write(folder / "llcm/idx/test_id.txt", "3")
    boxes = ("0002_c1s1_000001_01", "0007_c2s1_000001_01", "0011_c3s1_000002_01")
    _photos(folder / "market", [f"bounding_box_train/{name}.jpg" for name in boxes])
    for part in ("train", "val"):
        files = [f"000{pid}/000{pid}_{part}_01_0303morning_0015.jpg" for pid in (0, 1)]
        _photos(folder / "msmt17/train", files)
        write(folder / f"msmt17/list_{part}.txt", *(f"{file} {pid}" for pid, file in enumerate(files)))
    (folder / "msmt17/test").mkdir()
    _photos(folder / "folder", [f"{name}/{number}.jpg" for name in ("anna", "小明") for number in (1, 2)])


def _listed(folder: Path, lists: str, files: dict[str, str]) -> None:
    for kind, name in files.items():
        for split, pids in (("train", (285, 9)), ("test", (7, 8))):
            _photos(folder, [name.format(pid) for pid in pids])
            write(folder / lists.format(split, kind), *(f"{name.format(pid)} {at}" for at, pid in enumerate(pids)))


def _photos(folder: Path, names: Iterable[str]) -> None:
    for seed, name in enumerate(names):
        photo(folder / name, seed)


def _commands(folder: Path, slow: bool) -> None:
    """What commands of ours write."""
    lines = (
        "world make --out {0}/world " + WORLD,
        "plan --model {0}/fused --out {0}/plan.json --mode synthetic --pairs 1 --steps 1 --shard-size 2",
        SYNTH + " --plan {0}/plan.json --engine {0}/fused --out {0}/pairs",
        f"reid train --out {{0}}/net --real {REAL} {TINY}",
        f"train-encoder --out {{0}}/encoder --photos {REAL} --model {{0}}/base --features {{0}}/net --identity-steps 1 "
        "--steps 1 --batch 2 --rank 2 --width 8 --device cpu",
        "pack {0}/pairs --out {0}/packed",
        f"merge --real {REAL} --synthetic {{0}}/pairs {PEOPLE} --out {{0}}/merged",
        f"prepare --out {{0}}/prepared --photos {REAL} --model {{0}}/base --shard-size 12 --device cpu",
        f"reid compare --out {{0}}/compared {COMPARE}",
        f"reid trials --out {{0}}/trials {TRIALS}",
        f"reid eval --checkpoint {{0}}/net --test {REAL} --export {{0}}/features --device cpu",
        f"reid eval --checkpoint {{0}}/net --test {REAL} --export {{0}}/features.mat --device cpu",
    )
    for line in lines:
        run(line, folder)
    with mock.patch("dive_fast.reid.training.checkpoint.finish", side_effect=KeyboardInterrupt):
        run(f"reid train --out {{0}}/training --real {REAL} {TINY} --save-every 2", folder, code=1)
    with mock.patch("dive_fast.train.personalize.save_adapter", side_effect=KeyboardInterrupt):
        run(PERSONALIZE + " --model {0}/base --out {0}/out --photos " + REAL, folder, code=1)
    _study(folder, folder)
    copy_tree(folder / "pairs", folder / "scored")
    (folder / "scored/times.jsonl").write_text("".join(f'{{"at": {9e8 + at}, "images": 2}}\n' for at in range(4)))
    run(f"score {{0}}/scored --net {{0}}/net --real {REAL} --device cpu", folder)
    run("filter {0}/scored --keep-fraction identity=0.5 --allow-lost", folder)
    if slow:
        run("report {0}/scored --out {0}/gallery --workers 1", folder)
        run("export --model {0}/fused --out {0}/engine --no-check", folder)


def run(line: str, inputs: Path, code: int = 0) -> None:
    """Runs a command that ends with `code`."""
    try:
        cli.main(line.format(inputs).split())
    except SystemExit as stop:
        if stop.code != code:
            raise RuntimeError(f"{line}: exit code {stop.code}") from stop
