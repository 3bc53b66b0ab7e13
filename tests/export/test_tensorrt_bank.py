"""The TensorRT runtime with a bank of prompts and the shared prefix, against a stand-in for the module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dive_fast.engines import load_engine
from dive_fast.engines.tensorrt_engine import TensorRTEngine
from dive_fast.types import InputError
from tests.support.engines import assert_predicts_as, given, near
from tests.support.tensorrt_double import STREAM, Double
from tests.support.tensorrt_engines import built, opened
from tests.support.tiny import MAX_TOKENS, TEXT_WIDTH


@pytest.fixture
def engine(half_bank: Path, tmp_path: Path, double: Double) -> TensorRTEngine:
    folder = built(half_bank, tmp_path / "plans", rows=(4, 8), vae_rows=(2,), prompts_max=6)
    double.calls.clear()
    return opened(folder, double, use_graphs=True)


@pytest.mark.parametrize(
    ("images", "rows", "profile"),
    [(2, 4, 0), (4, 4, 1), (1, 2, 0), (3, 6, 2), (5, 5, 3), (2, 6, 2)],
)  # profiles: (images, rows) = (2, 4), (4, 4), (4, 8), (8, 8)
def test_the_profile_with_least_padding_runs_and_the_numbers_are_the_graphs(
    engine: TensorRTEngine, half_bank: Path, double: Double, images: int, rows: int, profile: int
) -> None:
    oracle = load_engine(half_bank, device="cpu")
    assert_predicts_as(oracle, engine, 321, given(5, images, rows), **near(half_bank, "unet"))
    assert [call for call in double.calls if call[0] == "execute"][-1] == ("execute", profile, STREAM)


def test_the_bank_is_made_in_parts_once_and_read_in_place(
    engine: TensorRTEngine, half_bank: Path, double: Double
) -> None:
    """A captured call keeps the address of its bank, so another bank needs another capture."""
    embeddings, latents, index = given(5, 2, 4)
    bank = engine.condition(embeddings)
    assert double.count("execute") == 3 and bank.states.dtype == torch.float16  # 5 prompts, 2 at a time
    engine.eps(latents, 321, bank, index)
    double.calls.clear()
    engine.eps(latents, 20, bank, index)
    assert double.calls == [("replay",)]
    other = engine.condition(embeddings[:2])
    double.calls.clear()
    found = engine.eps(latents, 20, other, index % 2)
    told: list[Any] = [call for call in double.calls if call[0] in ("shape", "address")]
    assert told == [("shape", "kv_bank", tuple(other.states.shape)), ("address", "kv_bank")]
    oracle = load_engine(half_bank, device="cpu")
    expected = oracle.eps(latents, 20, oracle.condition(embeddings[:2]), index % 2)
    for answer in (found, engine.eps(latents, 20, other, index % 2)):  # of the plain call, and of the replay
        torch.testing.assert_close(answer, expected, **near(half_bank, "unet"))


def test_padding_never_points_outside_a_shorter_bank(engine: TensorRTEngine) -> None:
    embeddings, latents, _ = given(6, 2, 4)
    engine.eps(latents, 321, engine.condition(embeddings), torch.tensor([5, 5, 5, 5]))
    one = engine.condition(embeddings[:1])
    short = engine.eps(latents[:1], 321, one, torch.tensor([0]))  # a stale index 5 would make the gather fail
    assert torch.isfinite(short).all()


def test_a_bank_longer_than_the_profile_is_refused(engine: TensorRTEngine) -> None:
    with pytest.raises(InputError, match="7 prompts .* 6"):
        engine.condition(torch.zeros(7, MAX_TOKENS, TEXT_WIDTH))
