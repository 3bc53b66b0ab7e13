"""Tensor files of unknown origin: no code in them runs, and a broken one is named."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dive_fast.models.interop.states import LARGEST_PICKLE, read_state
from dive_fast.types import InputError


class Writes:
    """Pickled, it is an order to run `open(path, "w")`: a payload that leaves a trace wherever it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


class Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def as_torch_saves(path: Path, value: object) -> None:
    torch.save(value, path)


def as_pickle_dumps(path: Path, value: object) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))


def as_old_torch_saved(path: Path, value: object) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [as_torch_saves, as_pickle_dumps, as_old_torch_saved])
@pytest.mark.parametrize(("payload", "called"), [(Writes, r"_?io\.open"), (Runs, r"(posix|nt)\.system")])
def test_a_pickle_that_wants_to_run_something_is_refused_and_runs_nothing(payload, called, write, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "learned_embeds.bin"
    write(path, {"more": payload(trace), "<class_0>": torch.zeros(4)})
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}[^\n]* {called} [^\n]*$"):
        read_state(path)
    assert not trace.exists()
    if write is as_pickle_dumps:  # the payload is real: opened the careless way, it runs
        pickle.loads(path.read_bytes())
        assert trace.exists()


def test_a_pickle_of_a_newer_protocol_runs_nothing_either(tmp_path):
    """torch reads protocol 2; of others it does not get as far as a name."""
    (tmp_path / "a.bin").write_bytes(pickle.dumps(Writes(tmp_path / "trace"), protocol=4))
    with (
        pytest.warns(UserWarning, match="protocol 4"),
        pytest.raises(InputError, match="a.bin"),
    ):
        read_state(tmp_path / "a.bin")
    assert not (tmp_path / "trace").exists()


def test_the_environment_cannot_allow_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"more": Writes(tmp_path / "trace")}, tmp_path / "a.bin")
    with pytest.raises(InputError, match="a.bin.*open"):
        read_state(tmp_path / "a.bin")
    assert not (tmp_path / "trace").exists()


def truncated(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


def truncated_pickle(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:500])


def other_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thesis.txt", "x")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda p: p.write_text("version https://git-lfs.github.com"), ""),
    "web page": (lambda p: p.write_text("<!DOCTYPE html>"), ""),
    "empty": (lambda p: p.touch(), ""),
    "noise": (lambda p: p.write_bytes(bytes(range(255, -1, -1)) * 9), ""),
    "truncated": (truncated, ""),
    "truncated pickle": (truncated_pickle, ""),
    "other archive": (other_archive, ""),
    "a list": (lambda p: torch.save([torch.zeros(2)], p), "a list"),
    "a tensor": (lambda p: torch.save(torch.zeros(2), p), "a Tensor"),
    "numbered": (lambda p: torch.save({1: torch.zeros(2)}, p), "a dict"),
    "a module": (lambda p: torch.save(torch.nn.Linear(2, 2), p), r"torch\.nn\.modules\.linear\.Linear"),
}


@pytest.mark.parametrize(("make", "value"), BROKEN.values(), ids=BROKEN.keys())
def test_a_file_that_is_no_state_is_named(make, value, tmp_path):
    path = tmp_path / "lora.bin"
    make(path)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}[^\n]*{value}[^\n]*$"):
        read_state(path)


def test_a_huge_pickle_is_not_even_opened(tmp_path, monkeypatch):
    path = tmp_path / "model.ckpt"
    path.touch()
    os.truncate(path, LARGEST_PICKLE + 1)  # takes no room
    monkeypatch.setattr(torch, "load", lambda *_args, **_options: pytest.fail("opened"))
    with pytest.raises(InputError, match=r"model\.ckpt.* 2\.1 GB.*safetensors"):
        read_state(path)


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path):
    path = tmp_path / "a.bin"
    torch.save({"<a>": torch.zeros(1).expand(1 << 30, 768)}, path)
    assert path.stat().st_size < 10_000
    with pytest.raises(InputError, match="a.bin: '<a>'"):
        read_state(path).tensor("<a>", 2)


def test_a_missing_file_and_a_pickle_called_safetensors_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.bin"):
        read_state(tmp_path / "nowhere.bin")
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"a\.safetensors"):
        read_state(tmp_path / "a.safetensors")


def test_numbers_arrive_as_float32(tmp_path):
    values = {"a": torch.tensor([[0.1, 2.0]]), "b": torch.tensor([3.0], dtype=torch.bfloat16)}
    torch.save({**values, "step": 7, "name": "x"}, tmp_path / "a.pt")
    save_file(values, tmp_path / "a.safetensors", metadata={"note": "x"})
    for name in ("a.pt", "a.safetensors"):
        state = read_state(tmp_path / name)
        assert torch.equal(state.tensor("a", 2), values["a"])
        assert state.tensor("b", 1).dtype == torch.float32
    assert state.metadata == {"note": "x"}
