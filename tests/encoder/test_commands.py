"""The commands in a row: train an encoder, encode, add virtual people, fuse, plan; and options that do not go together."""

import json

import pytest

from dive_fast.models import load_adapter
from tests.support.encoders import draw

pytestmark = pytest.mark.slow

QUICK = "--batch 2 --rank 2 --warmup 1 --width 8 --device cpu"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Folders of four people and of two others, three photos each."""
    root = tmp_path_factory.mktemp("sets")
    for name, pids in (("many", range(1, 5)), ("new", range(11, 13))):
        for pid in pids:
            for number in range(3):
                draw(root / name / f"{pid:04d}" / f"{number}.png", pid, number)
    return root


def test_from_photos_to_a_plan_of_people_who_do_not_exist(sets, net, tiny_base, tmp_path, run, step):
    train = (
        f"train-encoder --model {tiny_base} --photos folder:{sets}/many --features {net} --out {tmp_path}/enc {QUICK}"
    )
    code, out, _ = run(f"{train} --identity-steps 2 --steps 2 --dry-run")
    assert code == 0 and "nothing was written" in out and not list(tmp_path.iterdir())
    made = step(f"{train} --identity-steps 2 --steps 2 --plot {tmp_path}/losses.png")
    assert (made["words"], made["people"]) == (4, 4) and (tmp_path / "losses.png").stat().st_size
    alone = train.replace("/enc ", "/alone ")
    step(f"{alone} --identity-steps 2 --steps 0 --plot {tmp_path}/alone.png")
    assert (tmp_path / "alone.png").stat().st_size and not (tmp_path / "alone" / "adapter").exists()
    encoded = step(f"encode --encoder {tmp_path}/enc --photos folder:{sets}/new --out {tmp_path}/more --device cpu")
    assert (encoded["people"], encoded["photos"], encoded["known_to_encoder"]) == (2, 6, [])
    refined = step(
        f"encode --encoder {tmp_path}/enc --photos folder:{sets}/new --out {tmp_path}/refined --device cpu"
        f" --model {tiny_base} --refine-steps 2 --refine-batch 2"
    )
    assert refined["fingerprint"] != encoded["fingerprint"]
    drawn = step(
        f"virtual --encoder {tmp_path}/enc --onto {tmp_path}/more --people 3 --percentile 0 --out {tmp_path}/virtual"
    )
    assert drawn["people"] == 3 and drawn["nearest_real_person"][0] >= drawn["least_distance"]
    assert [i.pid for i in load_adapter(tmp_path / "virtual").identities[-4:]] == [
        "0012",
        "9000001",
        "9000002",
        "9000003",
    ]
    step(f"fuse --model {tiny_base} --adapter {tmp_path}/virtual --out {tmp_path}/fused")


def test_a_plan_of_virtual_people_marks_them(tiny_base, tmp_path, step):
    from dataclasses import replace

    from dive_fast.models import fuse, load_bundle, save_bundle
    from tests.support.tiny import tiny_adapter

    bundle = load_bundle(tiny_base)
    adapter = tiny_adapter(bundle)
    marked = replace(adapter, identities=(*adapter.identities[:2], replace(adapter.identities[2], virtual=True)))
    save_bundle(fuse(bundle, marked), tmp_path / "fused")
    step(f"plan --model {tmp_path}/fused --mode synthetic --pairs 1 --out {tmp_path}/plan.json")
    planned = json.loads((tmp_path / "plan.json").read_text())["identities"]
    assert [identity.get("virtual") for identity in planned] == [None, None, True]


def test_personalize_from_an_encoder(sets, trained, tiny_base, tmp_path, run, step):
    words = f"personalize --model {tiny_base} --encoder {trained} --out {tmp_path}/a --batch 2 --rank 2 --warmup 1"
    made = step(f"{words} --photos folder:{sets}/new,camera=cam1 --identity-steps 1 --steps 1")
    assert made["identities"] == 2
    assert load_adapter(tmp_path / "a").phrase == "{person} {person}"
    code, _, error = run(f"{words} --photos folder:{sets}/new --phrase pocket")
    assert code == 2 and "--phrase" in error


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("train-encoder --out {0}/x --features {0}", "--photos"),
        ("train-encoder --out {0}/x --photos folder:{0}", "--features"),
        ("encode --encoder {1} --out {0}/x", "--photos"),
        ("encode --encoder {0} --out {0}/x --photos folder:{2}/new", "encoder.json"),
        ("encode --encoder {1} --onto {0} --out {0}/x --photos folder:{2}/new", "adapter.json"),
        ("virtual --encoder {1} --out {0}/x --people 0", "--people"),
        ("virtual --encoder {1} --out {0}/x --people 2 --percentile 200", "--percentile"),
    ],
)
def test_wrong_options_are_refused(sets, trained, tmp_path, run, line, named):
    code, _, error = run(line.format(tmp_path, trained, sets))
    assert code == 2 and named in error and error.count("\n") == 1
