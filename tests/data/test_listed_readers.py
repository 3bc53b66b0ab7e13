"""RegDB, LLCM and MSMT17 on small trees of their shape, and every way in which their lists can be wrong."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from dive_fast.data.folder import read_folder
from dive_fast.data.lists import read_lists
from dive_fast.data.llcm import read_llcm
from dive_fast.data.msmt17 import read_msmt17
from dive_fast.data.regdb import read_regdb
from dive_fast.data.sysu import read_sysu
from dive_fast.reid.evaluation.protocols import camera_number
from dive_fast.types import InputError
from tests.support.refusals import refused
from tests.support.trees import names, touch, write


@pytest.fixture
def regdb(tmp_path: Path) -> Path:
    """Trial 2 trains on persons 285 and 9, whom its lists call 0 and 1, and tests on 7."""
    visible = [
        f"Visible/{name}.bmp" for name in ("285/male_back_v_05528_285", "9/female_v_00010_9", "9/female_v_00009_9")
    ]
    thermal = ["Thermal/285/male_back_t_04011_285.bmp", "Thermal/9/female_t_00001_9.bmp"]
    touch(tmp_path, *visible, *thermal, "Visible/7/a_v_1_7.bmp", "Thermal/7/a_t_1_7.bmp", "Visible/8/unlisted.bmp")
    write(tmp_path / "idx/train_visible_2.txt", f"{visible[0]} 0", f"{visible[1]} 1", f"{visible[2]} 1")
    write(tmp_path / "idx/train_thermal_2.txt", f"{thermal[0]} 0", f"{thermal[1]} 1")
    write(tmp_path / "idx/test_visible_2.txt", "Visible/7/a_v_1_7.bmp 0")
    write(tmp_path / "idx/test_thermal_2.txt", "Thermal/7/a_t_1_7.bmp 0")
    return tmp_path


def test_regdb(regdb: Path) -> None:
    samples = read_regdb(regdb, "train", trial=2)
    assert names(samples, regdb) == [
        "Visible/9/female_v_00009_9.bmp",
        "Visible/9/female_v_00010_9.bmp",
        "Visible/285/male_back_v_05528_285.bmp",
        "Thermal/9/female_t_00001_9.bmp",
        "Thermal/285/male_back_t_04011_285.bmp",
    ]
    assert [s.pid for s in samples] == ["0009", "0009", "0285", "0009", "0285"]
    assert {(s.camera, s.modality) for s in samples} == {("regdb-visible1", "rgb"), ("regdb-thermal2", "ir")}
    assert [(s.pid, s.modality) for s in read_regdb(str(regdb), "test", 2)] == [("0007", "rgb"), ("0007", "ir")]


def test_regdb_errors(regdb: Path, tmp_path: Path) -> None:
    refused(r"train_visible_1\.txt", read_regdb, regdb, "train")
    refused("10.*11", read_regdb, regdb, "train", trial=11)
    refused("train, test.*'val'", read_regdb, regdb, "val")  # type: ignore[arg-type)
    refused("nowhere.*RegDB", read_regdb, tmp_path / "nowhere")


@pytest.fixture
def llcm(tmp_path: Path) -> Path:
    """Trains on persons 1 and 3; tests on 2, whom camera 3 sees in RGB only, and on 5, of whom there is nothing."""
    names = ("0003/0003_c01_s185535_f7010", "0001/0001_c09_s1_f1", "0001/0001_c01_s1_f1")
    vis = [f"vis/{name}_vis.jpg" for name in names]
    nir = ["nir/0001/0001_c09_s1_f2_nir.jpg", "nir/0003/0003_c02_s1_f2_nir.jpg"]
    touch(
        tmp_path, *vis, *nir, "test_vis/cam3/0002/0002_c03_s1_f1_vis.jpg", "test_vis/cam1/0002/0002_c01_s1_f1_vis.jpg"
    )
    touch(tmp_path, "test_nir/cam1/0002/0002_c01_s1_f1_nir.jpg", "test_nir/cam1/0009/0009_c01_s1_f1_nir.jpg")
    write(tmp_path / "idx/train_vis.txt", f"{vis[0]} 1", f"{vis[1]} 0", f"{vis[2]} 0")
    write(tmp_path / "idx/train_nir.txt", f"{nir[0]} 0", f"{nir[1]} 1")
    write(tmp_path / "idx/test_id.txt", "2,5")
    return tmp_path


def test_llcm_train(llcm: Path) -> None:
    samples = read_llcm(llcm)
    assert [(s.pid, s.camera, s.modality) for s in samples] == [
        ("0001", "llcm-vis1", "rgb"),
        ("0003", "llcm-vis1", "rgb"),
        ("0001", "llcm-vis9", "rgb"),
        ("0003", "llcm-nir2", "ir"),
        ("0001", "llcm-nir9", "ir"),
    ]
    assert [camera_number(s.camera) for s in samples] == [1, 1, 9, 2, 9]


def test_llcm_test(llcm: Path) -> None:
    with pytest.warns(UserWarning, match="0005"):
        samples = read_llcm(llcm, "test")
    assert [(s.pid, s.camera, s.modality) for s in samples] == [
        ("0002", "llcm-vis1", "rgb"),
        ("0002", "llcm-vis3", "rgb"),
        ("0002", "llcm-nir1", "ir"),
    ]


def test_llcm_errors(llcm: Path) -> None:
    touch(llcm, "vis/0001/0001_s1.jpg")
    write(llcm / "idx/train_vis.txt", "vis/0001/0001_s1.jpg 0")
    refused(r"0001_s1\.jpg.* 0001_c01", read_llcm, llcm)
    write(llcm / "idx/test_id.txt", "77")
    refused(r"no image.*test_id\.txt", read_llcm, llcm, "test")
    (llcm / "idx/test_id.txt").unlink()
    refused(r"test_id\.txt.*LLCM", read_llcm, llcm, "test")


def msmt17(root: Path, train: str, test: str) -> Path:
    """Person 0000 of train and val, person 0000 of query and gallery: two people."""
    touch(root / train, "0000/0000_010_02_0303noon_0008_0.jpg", "0000/0000_002_01_0303morning_0008_0_ex.jpg")
    touch(root / test, "0000/0000_000_01_0113noon_0001_0.jpg", "0000/0000_001_04_0113noon_0001_1.jpg")
    write(root / "list_train.txt", "0000/0000_010_02_0303noon_0008_0.jpg 0")
    write(root / "list_val.txt", "0000/0000_002_01_0303morning_0008_0_ex.jpg 0")
    write(root / "list_query.txt", "0000/0000_000_01_0113noon_0001_0.jpg 0")
    write(root / "list_gallery.txt", "0000/0000_001_04_0113noon_0001_1.jpg 0")
    return root


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("mask_train_v2", "mask_test_v2")])
def test_msmt17(tmp_path: Path, train: str, test: str) -> None:
    root = msmt17(tmp_path, train, test)
    samples = read_msmt17(root, camera="cam8")
    assert names(samples, root / train) == [
        "0000/0000_002_01_0303morning_0008_0_ex.jpg",
        "0000/0000_010_02_0303noon_0008_0.jpg",
    ]
    assert {(s.pid, s.camera, s.modality) for s in samples} == {("0000", "cam8", "rgb")}
    assert [len(read_msmt17(root, split)) for split in ("train", "val", "query", "gallery")] == [1, 1, 1, 1]
    assert read_msmt17(root, "query")[0].path.is_relative_to(root / test)


def test_msmt17_errors(tmp_path: Path) -> None:
    refused("MSMT17.*mask_train_v2", read_msmt17, tmp_path)
    refused("trainval.*'all'", read_msmt17, tmp_path, "all")  # type: ignore[arg-type)
    msmt17(msmt17(tmp_path, "train", "test"), "mask_train_v2", "mask_test_v2")
    refused("train/ and mask_train_v2/", read_msmt17, tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"list\.txt"),
        (["a/1.jpg 0", "", "a/2.jpg"], r"list\.txt line 3: 'a/2\.jpg'"),
        (["a/1.jpg 0", "a/2.jpg x"], r"line 2: 'a/2\.jpg x'"),
        (["a/1.jpg -1"], r"line 1: 'a/1\.jpg -1'"),
        (["a/1.jpg 0", "a/../../1.jpg 0"], r"line 2: 'a/\.\./\.\./1\.jpg'"),
        (["/etc/1.jpg 0"], r"line 1: '/etc/1\.jpg'"),
        (["1.jpg 0"], r"line 1: '1\.jpg'"),
        (["a/1.jpg 0", "b/1.jpg 1", "a/2.jpg 1"], r"line 3: label 1 .* folder a, .* folder b at .* line 2"),
        (["a/1.jpg 0", "a/2.jpg 1"], r"line 2: folder a .* label 1, .* label 0 at .* line 1"),
        (["a/1.jpg 0", "a/./1.jpg 0"], r"line 2: a/1\.jpg .* line 1"),
        (["a/1.jpg 0", "a/gone.jpg 0"], r"line 2: .*a/gone\.jpg"),
    ],
)
def test_wrong_lists(tmp_path: Path, lines: list[str], message: str) -> None:
    touch(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg", "1.jpg")
    refused(message, read_lists, [write(tmp_path / "list.txt", *lines)], tmp_path, "a list")


def test_lists_must_agree_with_each_other(tmp_path: Path) -> None:
    touch(tmp_path, "Visible/3/a.bmp", "Thermal/3/a.bmp")
    first, second = write(tmp_path / "v.txt", "Visible/3/a.bmp 0"), write(tmp_path / "t.txt", "Thermal/3/a.bmp 1")
    message = r"t\.txt line 1: folder 3 .* label 1, .* label 0 at .*v\.txt line 1"
    refused(message, read_lists, [first, second], tmp_path, "two lists")


def test_lists_of_other_systems(tmp_path: Path) -> None:
    """Marks and line ends of other systems' editors, and names with spaces."""
    touch(tmp_path, "a/1 b.jpg", "a/2.jpg")
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa/1 b.jpg 0\r\na/2.jpg\t0\r\n")
    (images,) = read_lists([tmp_path / "list.txt"], tmp_path, "a list")
    assert [(image.path.name, image.pid) for image in images] == [("1 b.jpg", "a"), ("2.jpg", "a")]
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    refused(r"list\.txt", read_lists, [tmp_path / "list.txt"], tmp_path, "a list")


def test_two_files_of_one_name_are_told(tmp_path: Path) -> None:
    touch(tmp_path, "1/a.jpg", "1/a.png", "2/b.jpg", "2/B.jpg", "3/a.jpg")
    with pytest.warns(UserWarning, match=r"1/a\.jpg and a\.png, 2/B\.jpg and b\.jpg"):
        assert len(read_folder(tmp_path, "cam7")) == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        touch(tmp_path / "fine", "1/a.jpg", "2/a.png")
        read_folder(tmp_path / "fine", "cam7")


def test_two_folders_of_one_person_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "cam1/0001/0001.jpg", "cam1/1/0001.jpg")
    refused("cam1: folders 0001 and 1 .* 0001", read_sysu, tmp_path, "all")


@pytest.mark.parametrize("line", ["a/b.jpg " + "9" * 5000, "a/" + "x" * 5000 + ".jpg 0", "y" * 100_000, "a/\0.jpg 0"])
def test_absurd_lines_are_refused_in_a_sentence(tmp_path: Path, line: str) -> None:
    write(tmp_path / "list.txt", line)
    with pytest.raises(InputError, match=r"list\.txt line 1") as caught:
        read_lists([tmp_path / "list.txt"], tmp_path, "a list")
    assert len(str(caught.value)) < 600
