"""Which photos the encoder sees: never the one that is drawn, never another person's, of another camera if there is one."""

from collections import Counter
from pathlib import Path

import torch

from dive_fast.encoder.references import References, people_of
from dive_fast.types import Sample


def sample(pid: str, camera: str, n: int, modality: str = "rgb") -> Sample:
    return Sample(Path(f"{pid}-{camera}-{n}"), pid, camera, "real", modality)


SEEN = (
    *(sample("a", camera, n) for camera in ("cam1", "cam2") for n in range(3)),
    *(sample("b", "cam7", n) for n in range(4)),
)


def drawn(targets, step=0, most=4):
    rows, given = References(SEEN, torch.zeros(len(SEEN), 1), most, seed=5).draw(targets, step)
    assert rows.shape == given.shape == (len(targets), most)
    return [[SEEN[row] for row in line[kept]] for line, kept in zip(rows, given, strict=True)]


def test_the_photo_that_is_drawn_and_its_camera_are_never_seen():
    for step in range(200):
        targets = [SEEN[0], SEEN[4], SEEN[7], sample("a", "cam3", 0, "ir")]
        one, two, alone, infrared = drawn(targets, step)
        assert {s.camera for s in one} == {"cam2"} and {s.camera for s in two} == {"cam1"}
        assert {s.pid for s in alone} == {"b"} and SEEN[7] not in alone  # no other camera: other photos of this one
        assert {s.pid for s in infrared} == {"a"} and {s.modality for s in infrared} == {"rgb"}


def test_one_to_most_different_photos_and_each_of_them_at_times():
    counts, photos = Counter(), Counter()
    for step in range(400):
        (line,) = drawn([SEEN[0]], step, most=2)
        counts[len(line)] += 1
        photos.update(s.path.name for s in line)
        assert len(set(line)) == len(line)
    assert set(counts) == {1, 2} and min(counts.values()) > 150
    assert len(photos) == 3 and min(photos.values()) > 150  # 200 expected, three deviations of 14


def test_a_draw_depends_on_seed_and_step_alone():
    assert drawn([SEEN[0]] * 8, 3) == drawn([SEEN[0]] * 8, 3) != drawn([SEEN[0]] * 8, 4)


def test_people_are_those_with_rgb_photos():
    mixed = [sample("b", "cam1", 0), sample("c", "cam3", 0, "ir"), sample("a", "cam1", 0), sample("b", "cam1", 1)]
    assert people_of(mixed) == {"a": [2], "b": [0, 3]} and list(people_of(mixed)) == ["a", "b"]
