"""Encoding onto an adapter: nothing old changes, everyone new has the rows of all photos, and what bad photos do."""

import os
from dataclasses import replace

import pytest
import torch

from dive_fast.data.sets import read_sets
from dive_fast.encoder import encode as room
from dive_fast.encoder.distribution import Distribution
from dive_fast.encoder.encode import encode_onto, encode_photos_of, looks_like_two, start_of
from dive_fast.encoder.features import FeatureNet
from dive_fast.encoder.folder import load_encoder
from dive_fast.models import fuse, load_adapter, load_bundle
from dive_fast.train.config import PersonalizeConfig
from dive_fast.train.personalize import personalize
from dive_fast.types import Sample
from tests.support.encoders import draw
from tests.support.models import assert_same_tensors
from tests.support.refusals import refused
from tests.support.training import interrupted_call

pytestmark = pytest.mark.slow


def encode(encoder, adapter, samples, out, *refine):
    return encode_onto(encoder, adapter, samples, out, *refine, progress=False)


def assert_kept(old, new):
    """The old adapter lies in the new one bit for bit."""
    known = len(old.identities)
    assert new.identities[:known] == old.identities
    assert torch.equal(new.embeddings[: len(old.embeddings)], old.embeddings)
    assert_same_tensors(new.lora, old.lora)
    plain = ("base_fingerprint", "cameras", "template", "phrase", "rank", "alpha")
    assert all(getattr(old, name) == getattr(new, name) for name in plain)


def test_people_get_the_rows_of_all_their_photos_and_nothing_old_changes(encoder, adapter, newcomers, tmp_path):
    made, found = encode(encoder, adapter, newcomers, tmp_path / "more")
    assert_kept(adapter, made)
    assert (found.pids, found.without, found.photos, found.unreadable) == (("0011", "0012"), ("0013",), 5, 0)
    assert [i.pid for i in made.identities[-2:]] == ["0011", "0012"] and "0013" in found.notes[0]
    for number, pid in enumerate(found.pids):
        seen = [s for s in newcomers if s.pid == pid]
        expected = encoder.rows(encoder.source.features(seen))
        rows = made.embeddings[len(adapter.embeddings) + 2 * number :][:2]
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)
    assert load_adapter(tmp_path / "more").fingerprint == made.fingerprint
    assert made.metadata["encoded"] == {"encoder": encoder.fingerprint, "people": 2, "photos": 5}
    assert {path.name for path in (tmp_path / "more.training").iterdir()} == {"lock"}
    again, _ = encode(encoder, adapter, newcomers, tmp_path / "more")  # an equal run is a finished one
    assert again.fingerprint == made.fingerprint
    refused("--out", encode, encoder, adapter, newcomers[:4], tmp_path / "more")


@pytest.mark.parametrize(("off", "kept"), [(1e-6, True), (0.1, False)])
def test_a_rerun_that_rounds_in_another_way_keeps_the_adapter(
    encoder, adapter, newcomers, tmp_path, monkeypatch, off, kept
):
    made, found = encode(encoder, adapter, newcomers, tmp_path / "more")
    monkeypatch.setattr(
        room, "encode_photos_of", lambda *a, **k: replace(found, rows=found.rows + off * found.rows.std())
    )
    if kept:
        again, _ = encode(encoder, adapter, newcomers, tmp_path / "more")
        assert again.fingerprint == made.fingerprint
    else:
        refused("--out", encode, encoder, adapter, newcomers, tmp_path / "more")
    assert load_adapter(tmp_path / "more").fingerprint == made.fingerprint


def test_a_finished_refinement_stays_where_the_encoder_rounds_in_another_way(
    encoder, adapter, newcomers, tiny_base, tmp_path, monkeypatch
):
    config, out = PersonalizeConfig(steps=4, batch=2, warmup=1, save_every=1), tmp_path / "refined"
    made, found = encode(encoder, adapter, newcomers, out, config, load_bundle(tiny_base))
    monkeypatch.setattr(room, "encode_photos_of", lambda *a, **k: replace(found, rows=found.rows * (1 + 1e-6)))
    again, _ = encode(encoder, adapter, newcomers, out, config, load_bundle(tiny_base))
    assert again.fingerprint == made.fingerprint
    place = tmp_path / "replaced" / newcomers[0].path.name
    place.parent.mkdir()
    place.write_bytes(newcomers[0].path.read_bytes() + b"more")
    replaced = [replace(newcomers[0], path=place), *newcomers[1:]]
    refused("--out", encode, encoder, adapter, replaced, out, config, load_bundle(tiny_base))


def test_an_encoded_adapter_fuses_as_any_other(encoder, adapter, newcomers, tiny_base, tmp_path):
    made, _ = encode(encoder, adapter, newcomers, tmp_path / "more")
    fused = fuse(load_bundle(tiny_base), made)
    table = fused.text_encoder.get_input_embeddings().weight
    for number, word in enumerate(word for identity in made.identities for word in identity.words):
        token = fused.tokenizer.convert_tokens_to_ids(word)
        assert torch.equal(table[token], made.embeddings[number])


def test_refining_moves_the_new_rows_alone(encoder, adapter, newcomers, tiny_base, tmp_path):
    plain, _ = encode(encoder, adapter, newcomers, tmp_path / "plain")
    config = PersonalizeConfig(steps=4, batch=2, warmup=1, save_every=1)
    made, _ = encode(encoder, adapter, newcomers, tmp_path / "refined", config, load_bundle(tiny_base))
    assert_kept(adapter, made)
    assert made.identities == plain.identities
    moved = (made.embeddings - plain.embeddings).norm(dim=1) / plain.embeddings.norm(dim=1)
    old = len(adapter.embeddings)
    assert (moved[old:] > 0).all() and (moved[old:] < 0.5).all()  # they start where the encoder says


def test_a_rerun_reads_no_photo_twice(encoder, adapter, newcomers, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_PEOPLE", 1)
    real = FeatureNet.features
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FeatureNet, "features", interrupted_call(real, 1))
        encode(encoder, adapter, newcomers, tmp_path / "more")
    read = []
    monkeypatch.setattr(FeatureNet, "features", lambda self, some, *a: read.extend(some) or real(self, some, *a))
    made, _ = encode(encoder, adapter, newcomers, tmp_path / "more")
    assert {sample.pid for sample in read} == {"0012"}
    whole, _ = encode(encoder, adapter, newcomers, tmp_path / "whole")
    assert made.fingerprint == whole.fingerprint


def test_a_photo_that_was_replaced_is_read_again(encoder, newcomers, tmp_path):
    work, place = tmp_path / "work", tmp_path / "photo.png"
    work.mkdir()
    rows = []
    for number in (0, 2):
        place.write_bytes(newcomers[number].path.read_bytes())
        os.utime(place, ns=(number, number))
        rows.append(encode_photos_of(encoder, [replace(newcomers[0], path=place)], work, progress=False).rows)
    alone = encode_photos_of(encoder, [replace(newcomers[0], path=newcomers[2].path)], progress=False).rows
    assert not torch.equal(*rows) and torch.equal(rows[1], alone)


def test_what_does_not_fit_is_refused_before_a_photo_is_read(encoder, adapter, photos, tmp_path):
    nowhere = [Sample(tmp_path / "none.png", "0020", "cam1")]
    other = replace(adapter, base_fingerprint="0" * 64)
    refused("belongs to base", encode, encoder, other, nowhere, tmp_path / "a")
    wide = replace(adapter, embeddings=torch.ones(len(adapter.embeddings), 40))
    refused("40", encode, encoder, wide, nowhere, tmp_path / "a")
    refused("'0001'", encode, encoder, adapter, [replace(nowhere[0], pid="0001")], tmp_path / "a")
    infrared = [replace(s, pid="0020") for s in photos if s.modality == "ir"]
    refused("RGB", encode, encoder, adapter, infrared, tmp_path / "b")
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_unreadable_photos_are_left_out_and_people_without_any_named(encoder, adapter, newcomers, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(newcomers[0].path.read_bytes()[:90])
    bad = [Sample(broken, "0011", "cam1"), Sample(tmp_path / "gone.png", "0014", "cam1")]
    made, found = encode(encoder, adapter, [*newcomers, *bad], tmp_path / "more")
    assert (found.unreadable, found.without, found.photos) == (2, ("0013", "0014"), 5)
    clean, _ = encode(encoder, adapter, newcomers, tmp_path / "clean")
    torch.testing.assert_close(made.embeddings, clean.embeddings)
    refused("can be read", encode, encoder, adapter, bad, tmp_path / "none")


def test_one_photo_and_a_thousand(encoder, tmp_path):
    many = [Sample(draw(tmp_path / "many" / f"{n}.png", 30, n, (8, 4)), "0030", "cam1") for n in range(1000)]
    one = [Sample(draw(tmp_path / "one.png", 31, 0, (8, 4)), "0031", "cam1")]
    found = encode_photos_of(encoder, [*many, *one], progress=False)
    assert (found.pids, found.photos, found.mixed) == (("0030", "0031"), 1001, ())
    assert found.rows.isfinite().all()
    few = encode_photos_of(encoder, many[:100], progress=False)
    between = (found.rows[0] - found.rows[1]).norm()
    assert (few.rows[0] - found.rows[0]).norm() < 0.2 * between  # photos of one person: more of them change little


def test_two_people_under_one_name(trained, tmp_path):
    """Within a set they show in their photos; in two sets one name is refused."""
    encoder = spread_out(load_encoder(trained))

    def person(pid, *drawn):
        paths = [draw(tmp_path / f"{pid}" / f"{n}.png", number, 100 + n) for n, number in enumerate(drawn)]
        return [Sample(path, f"{pid:04d}", "cam1") for path in paths]

    found = encode_photos_of(encoder, [*person(40, 1, 5, 1, 5, 1, 5), *person(41, *[3] * 6)], progress=False)
    assert found.mixed == ("0040",) and "0040" in found.notes[-1]
    assert not looks_like_two(encoder, encoder.source.features(person(42, 1, 5)))  # two photos tell nothing
    folders = [tmp_path / name / "0001" / "a.png" for name in ("one", "two")]
    for folder in folders:
        draw(folder, 1, 1)
    refused("prefix", read_sets, [f"folder:{tmp_path}/one", f"folder:{tmp_path}/two"])


def spread_out(encoder):
    """Gives an encoder of a few steps rows that differ as those of a trained one: by the colours of the photos."""
    with torch.no_grad():
        torch.nn.init.normal_(encoder.mapper.last.weight, std=1.0, generator=torch.Generator().manual_seed(0))
    tokens = torch.randn(encoder.distribution.tokens.shape) * 0.01
    return replace(encoder, distribution=Distribution.fit(tokens))


def test_personalize_starts_at_the_encoders_rows(encoder, adapter, photos, newcomers, tiny_base, tmp_path):
    seen = [s for s in newcomers if s.pid != "0013"]
    bundle = load_bundle(tiny_base)
    start = start_of(encoder, bundle, seen, progress=False)
    config = PersonalizeConfig(identity_steps=0, steps=2, batch=2, rank=2, warmup=1, token_lr=0.0)
    made = personalize(bundle, seen, tmp_path / "out", config, start=start, progress=False)
    torch.testing.assert_close(made.embeddings, start.rows.flatten(0, 1), rtol=0, atol=0)
    assert made.phrase == encoder.phrase and [i.pid for i in made.identities] == ["0011", "0012"]
    refused("0013", start_of, encoder, load_bundle(tiny_base), newcomers, progress=False)
    refused("--out", personalize, load_bundle(tiny_base), seen, tmp_path / "out", config, progress=False)
