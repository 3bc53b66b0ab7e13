"""Engine folders that are not whole, and choices that cannot be met."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from onnx import helper

from dive_fast.engines import load_engine
from dive_fast.io import sha256_file
from dive_fast.types import DiveError, InputError
from tests.support.engines import edit_spec


@pytest.fixture
def folder(tiny_engine: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_engine, tmp_path / "engine"))


@pytest.mark.parametrize(
    "name", ["unet/model.onnx", "unet/model.onnx.data", "prompts.json", "tokenizer/tokenizer.json", "unet/config.json"]
)
def test_a_missing_or_changed_file_is_named(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=f"{name} differs"):
        load_engine(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        load_engine(folder)


def test_a_corrupt_graph_with_a_matching_hash_is_named(folder: Path) -> None:
    path = folder / "vae_decoder/model.onnx"
    path.write_bytes(path.read_bytes()[:1000])
    edit_spec(folder, rehash=True)
    with pytest.raises(InputError, match="vae_decoder/model.onnx"):
        load_engine(folder)


def test_weights_in_a_file_without_a_hash_are_not_run(folder: Path) -> None:
    """onnxruntime reads any file that a graph names, and the listing of files that must have a hash omits hidden ones."""
    path = folder / "unet/model.onnx"
    graph = onnx.load(str(path), load_external_data=False)
    (folder / "unet/model.onnx.data").rename(folder / "unet/.weights")
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            entry.value = ".weights" if entry.key == "location" else entry.value
    path.write_bytes(graph.SerializeToString())
    edit_spec(folder, lambda spec: spec["sha256"].pop("unet/model.onnx.data"))
    edit_spec(folder, rehash=True)
    with pytest.raises(InputError, match="unet/model.onnx reads unet/.weights"):
        load_engine(folder)
    edit_spec(folder, lambda spec: spec["sha256"].update({"unet/.weights": sha256_file(folder / "unet/.weights")}))
    assert load_engine(folder).spec.sha256["unet/.weights"]
    (folder / "unet/._model.onnx").write_bytes(b"\x00\x05\x16\x07")  # which no graph names
    load_engine(folder)


def test_a_graph_that_may_never_end_is_not_run(folder: Path) -> None:
    path = folder / "vae_decoder/model.onnx"
    graph = onnx.load(str(path), load_external_data=False)
    nothing = helper.make_graph([], "body", [], [])
    graph.graph.node.append(helper.make_node("Loop", ["", ""], ["x"], body=nothing))
    path.write_bytes(graph.SerializeToString())
    edit_spec(folder, rehash=True)
    with pytest.raises(InputError, match="vae_decoder/model.onnx has a Loop"):
        load_engine(folder)


CONFIGS = {
    "scheduler/scheduler_config.json": [
        b"[]",
        b"0",
        b'{"prediction_type": 0}',
        b'{"beta_end": 1e999}',
        b'{"trained_betas": [1]}',
    ],
    "vae_decoder/config.json": [b"1", b"[]", b"{}", b'{"block_out_channels": 3}', b'{"scaling_factor": -Infinity}'],
    "unet/config.json": [b"null", b'{"in_channels": "many"}', b"[" * 60 + b"]" * 60],
}


@pytest.mark.parametrize(("name", "content"), [(name, text) for name, texts in CONFIGS.items() for text in texts])
def test_a_configuration_of_the_wrong_type_is_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    edit_spec(folder, rehash=True)
    with pytest.raises(InputError, match="^[^\n]*$"):
        load_engine(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("files"), "EngineSpec is incomplete"),
        (lambda s: s.update(magic=1), "unknown field.* magic"),
        (lambda s: s.update(profile=None), "expected a JSON object for Profile"),
        (lambda s: s["profile"].update(rows_max="64"), "profile.rows_max must be a whole number"),
        (lambda s: s["profile"].update(height=128), r"unet takes rows of \(8, 8, 4\), where \(8, 16, 4\) is needed"),
        (lambda s: s.update(files=[1]), "files must be"),
        (lambda s: s.update(gpu=3, backend=None), "backend must be a text, .*gpu must be a text"),
        (lambda s: s["files"].pop("unet"), "no file with a hash for unet"),
        (lambda s: s["sha256"].pop("unet/model.onnx.data"), "no hash of unet/model.onnx.data"),
        (lambda s: s["sha256"].update({"../../secret": "0"}), "outside the folder"),
        (lambda s: s["sha256"].update({"/etc/hostname": "0"}), "outside the folder"),
    ],
)
def test_an_edited_engine_json_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_spec(folder, change)
    with pytest.raises(InputError, match=message):
        load_engine(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\xff"])
def test_an_engine_json_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "engine.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="engine.json"):
        load_engine(folder)


def test_a_folder_that_holds_no_engine_lists_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="notes.txt"):
        load_engine(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        load_engine(tmp_path / "nothing")


@pytest.mark.parametrize("option", ["backend", "device", "precision"])
def test_unknown_options_are_refused_with_the_known_ones(tiny_fused: Path, option: str) -> None:
    with pytest.raises(InputError, match=f"{option} 'magic' .* auto"):
        load_engine(tiny_fused, **{option: "magic"})  # type: ignore[arg-type]


def test_an_explicit_backend_does_not_become_another(tiny_fused: Path, tiny_engine: Path) -> None:
    with pytest.raises(InputError, match="'torch' .* fused model"):
        load_engine(tiny_engine, "torch")
    with pytest.raises(InputError, match="'onnxruntime' .* torch, torch-compiled; .*dive-fast export"):
        load_engine(tiny_fused, "onnxruntime")
    with pytest.raises(InputError, match="'tensorrt' .*onnxruntime-tensorrt, openvino; .*dive-fast build"):
        load_engine(tiny_engine, "tensorrt")


def test_onnxruntimes_tensorrt_provider_is_for_gpus(tiny_engine: Path) -> None:
    for device, reason in {"auto": "cuda: torch", "cuda": "cuda: this onnxruntime", "cpu": "cpu: .*cuda only"}.items():
        with pytest.raises(DiveError, match=f"device {reason}"):
            load_engine(tiny_engine, "onnxruntime-tensorrt", device)


def test_all_reasons_are_told_at_once(tiny_fused: Path, folder: Path) -> None:
    with pytest.raises(DiveError, match="sees no CUDA GPU"):
        load_engine(tiny_fused, device="cuda", precision="bf16")
    with pytest.raises(DiveError, match="precision fp16: on a CPU"):
        load_engine(tiny_fused, device="cpu", precision="fp16")
    edit_spec(folder, lambda spec: spec.update(backend="tvm", gpu="H200"))
    with pytest.raises(DiveError) as caught:
        load_engine(folder, device="cuda", precision="fp16", size=(128, 64))
    for reason in ("'tvm'", "GPU 'H200'", "precision fp16", "size 128x64", "device cuda"):
        assert reason in str(caught.value)


def test_threads_must_be_some(tiny_engine: Path) -> None:
    with pytest.raises(InputError, match="threads .* got 0"):
        load_engine(tiny_engine, threads=0)


def test_a_missing_onnxruntime_names_the_extra(tiny_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    with pytest.raises(DiveError, match=r"pip install 'dive-fast\[cpu\]'"):
        load_engine(tiny_engine)


def test_a_provider_that_is_listed_but_does_not_come_up(
    tiny_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime-gpu without its CUDA libraries opens a session on the CPU; only auto may take that, and says so."""
    import onnxruntime

    asked: list[Any] = []
    session = onnxruntime.InferenceSession

    def opened(graph: str | bytes, options: Any, providers: list[Any]) -> Any:
        asked.append(providers)
        return session(graph, options, ["CPUExecutionProvider"])

    listed = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(cuda_stream=1234))
    with pytest.raises(DiveError, match=r"CUDAExecutionProvider.* CPUEx.* \(.*cannot open shared object"):
        load_engine(tiny_engine, device="cuda")
    [(name, options)] = asked[-1]
    assert (name, options["user_compute_stream"], options["use_tf32"]) == ("CUDAExecutionProvider", "1234", False)
    with pytest.raises(DiveError, match="TensorrtExecutionProvider"):
        load_engine(tiny_engine, "onnxruntime-tensorrt", cache=tmp_path / "kept")
    [(name, options), (second, _)] = asked[-1]
    assert (name, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider") and (tmp_path / "kept").is_dir()
    assert options["trt_engine_cache_enable"] and options["trt_engine_cache_path"] == str(tmp_path / "kept")
    assert "CUDAExecutionProvider" in load_engine(tiny_engine).describe()


@pytest.mark.parametrize("backend", ["torch", "torch-compiled"])
def test_a_cpu_takes_bf16(tiny_fused: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held to float32, within what 8 bits of every layer's rounding add up to; and not float32 itself."""
    monkeypatch.setattr(
        torch, "compile", lambda module, **_: module
    )  # compiling takes a minute and is tested elsewhere
    latents, index = torch.randn(4, *load_engine(tiny_fused, "torch", "cpu").latent_shape), torch.tensor([0, 1, 1, 0])
    found = []
    for precision in ("fp32", "bf16"):
        engine = load_engine(tiny_fused, backend, "cpu", precision=precision)
        assert engine.spec.precision == precision
        keys = [None, (engine.prompts.table.identities[0].pid, engine.prompts.table.cameras[0].name)]
        embeddings, rows = engine.prompts.encode(engine.encode_text, keys)
        found.append(engine.eps(latents, 500, engine.condition(embeddings), rows[index]))
    exact, half = found
    off = float((half - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    assert 2**-12 < off < 8 * 2**-8
