"""500 damaged inputs with fixed seeds, and every kind's undamaged one; `make fuzz` tries 10,000."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.harness import ACCEPTED, BY_NAME, cases, run_case
from tests.fuzz.kinds import KINDS, make_inputs

CASES = 500
QUICK = [kind for kind in KINDS if not kind.slow]
EACH = -(-CASES // len(QUICK))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "inputs"
    make_inputs(folder, slow=False)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind.name for kind in QUICK])
def test_a_damaged_input_ends_in_a_sentence_or_does_not_matter(kind: str, inputs: Path, tmp_path: Path) -> None:
    undamaged = run_case(BY_NAME[kind], -1, inputs, tmp_path / "run")
    assert undamaged.what == ACCEPTED, undamaged
    outcomes = [
        run_case(BY_NAME[name], seed, inputs, tmp_path / f"{seed}") for name, seed in cases(EACH, [BY_NAME[kind]])
    ]
    assert not [outcome for outcome in outcomes if outcome.failed]


@pytest.mark.slow
def test_a_damaged_engine_folder_ends_in_a_sentence(tiny_engine: Path, tmp_path: Path) -> None:
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs/engine").symlink_to(tiny_engine)
    for seed in range(-1, EACH):
        outcome = run_case(BY_NAME["engine"], seed, tmp_path / "inputs", tmp_path / f"{seed}")
        assert not outcome.failed, outcome
