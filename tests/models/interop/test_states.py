"""Tensor files of unknown origin: no code in them runs, and a broken one is named."""

import os
import pickle
import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dive_fast.models.interop.states import LARGEST_PICKLE, read_state
from dive_fast.types import InputError
from tests.support.models import CallsWhenOpened
from tests.support.refusals import refused

PAYLOADS = {
    "open": (lambda trace: CallsWhenOpened(open, str(trace), "w"), r"_?io\.open"),
    "system": (lambda trace: CallsWhenOpened(os.system, f"touch {trace}"), r"(posix|nt)\.system"),
}
WRITERS: dict[str, Callable[[Path, object], object]] = {
    "torch": lambda path, value: torch.save(value, path),
    "old torch": lambda path, value: torch.save(value, path, _use_new_zipfile_serialization=False),
    "pickle": lambda path, value: path.write_bytes(pickle.dumps(value, protocol=2)),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(("payload", "called"), PAYLOADS.values(), ids=PAYLOADS.keys())
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(payload, called, writer, tmp_path, monkeypatch):
    trace, path = tmp_path / "trace", tmp_path / "learned_embeds.bin"
    WRITERS[writer](path, {"more": payload(trace), "<class_0>": torch.zeros(4)})
    for allow in ("0", "1"):  # not even the environment can allow it
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", allow)
        refused(f"^{re.escape(str(path))}[^\n]* {called} [^\n]*$", read_state, path)
        assert not trace.exists()
    if writer == "pickle":  # the payload is real: opened carelessly, it runs
        pickle.loads(path.read_bytes())
        assert trace.exists()


def test_a_pickle_of_a_newer_protocol_calls_nothing_either(tmp_path):
    """torch reads protocol 2; of others it does not get as far as a name."""
    (tmp_path / "a.bin").write_bytes(pickle.dumps(CallsWhenOpened(open, str(tmp_path / "trace"), "w"), protocol=4))
    with pytest.warns(UserWarning, match="protocol 4"), pytest.raises(InputError, match="a.bin"):
        read_state(tmp_path / "a.bin")
    assert not (tmp_path / "trace").exists()


def test_a_suffix_in_capitals_counts(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "LORA.SAFETENSORS")
    assert torch.equal(read_state(tmp_path / "LORA.SAFETENSORS").values["a"], torch.ones(2))


def truncated(path: Path, **options: bool) -> None:
    torch.save({"a": torch.zeros(1000)}, path, **options)
    path.write_bytes(path.read_bytes()[:500])


def other_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thesis.txt", "x")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda p: p.write_text("version https://git-lfs.github.com"), ""),
    "a pointer": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "Git LFS pointer",
    ),
    "web page": (lambda p: p.write_text("<!DOCTYPE html>"), ""),
    "empty": (lambda p: p.touch(), ""),
    "noise": (lambda p: p.write_bytes(bytes(range(255, -1, -1)) * 9), ""),
    "truncated": (truncated, ""),
    "truncated pickle": (partial(truncated, _use_new_zipfile_serialization=False), ""),
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
    refused(f"^{re.escape(str(path))}[^\n]*{value}[^\n]*$", read_state, path)


def test_a_huge_pickle_is_not_even_opened(tmp_path, monkeypatch):
    path = tmp_path / "model.ckpt"
    path.touch()
    os.truncate(path, LARGEST_PICKLE + 1)  # takes no room
    monkeypatch.setattr(torch, "load", lambda *_args, **_options: pytest.fail("opened"))
    refused(r"model\.ckpt.* 2\.1 GB.*safetensors", read_state, path)


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path):
    path = tmp_path / "a.bin"
    torch.save({"<a>": torch.zeros(1).expand(1 << 30, 768)}, path)
    assert path.stat().st_size < 10_000
    refused("a.bin: '<a>'", read_state(path).tensor, "<a>", 2)


def test_a_missing_file_and_a_pickle_called_safetensors_are_named(tmp_path):
    refused(r"nowhere\.bin", read_state, tmp_path / "nowhere.bin")
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    refused(r"a\.safetensors", read_state, tmp_path / "a.safetensors")


def test_numbers_arrive_as_float32(tmp_path):
    values = {"a": torch.tensor([[0.1, 2.0]]), "b": torch.tensor([3.0], dtype=torch.bfloat16)}
    torch.save({**values, "step": 7, "name": "x"}, tmp_path / "a.pt")
    save_file(values, tmp_path / "a.safetensors", metadata={"note": "x"})
    for name in ("a.pt", "a.safetensors"):
        state = read_state(tmp_path / name)
        assert torch.equal(state.tensor("a", 2), values["a"])
        assert state.tensor("b", 1).dtype == torch.float32
    assert state.metadata == {"note": "x"}
