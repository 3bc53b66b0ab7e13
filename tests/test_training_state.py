"""States of trainings: what a training wrote is taken over exactly, and anything else is refused with the file's name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dive_fast.training_state import copy_tensors, damaged_state, load_optimizer, read_state, step_of
from tests.support.refusals import refused


def trained(kind: type[torch.optim.Optimizer], **settings: Any) -> tuple[torch.optim.Optimizer, dict[str, Any]]:
    """A fresh optimizer of three numbers, and the state of another one after a step."""
    made = []
    for _ in range(2):
        parameter = torch.nn.Parameter(torch.arange(3.0))
        made.append(kind([parameter], lr=0.1, **settings))
        parameter.grad = torch.ones(3)
    made[1].step()
    return made[0], made[1].state_dict()


@pytest.mark.parametrize(("kind", "settings"), [(torch.optim.AdamW, {}), (torch.optim.SGD, {"momentum": 0.9})])
def test_an_optimizer_continues_from_a_state_of_its_own(
    kind: type[torch.optim.Optimizer], settings: dict[str, Any]
) -> None:
    optimizer, state = trained(kind, **settings)
    load_optimizer(optimizer, state)
    assert torch.equal(next(iter(optimizer.state_dict()["state"][0].values())), next(iter(state["state"][0].values())))


def other_settings(state: dict[str, Any]) -> None:
    state["param_groups"][0]["capturable"] = True


def another_shape(state: dict[str, Any]) -> None:
    state["state"][0]["exp_avg"] = torch.zeros(4)


def nothing_of_a_name(state: dict[str, Any]) -> None:
    del state["state"][0]["exp_avg_sq"]


def no_tensor(state: dict[str, Any]) -> None:
    state["state"][0]["step"] = "1"


def another_number_of_parameters(state: dict[str, Any]) -> None:
    state["param_groups"][0]["params"] = [0, 1]


@pytest.mark.parametrize(
    "change", [other_settings, another_shape, nothing_of_a_name, no_tensor, another_number_of_parameters]
)
def test_an_optimizer_refuses_a_state_that_does_not_fit(
    change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    optimizer, state = trained(torch.optim.AdamW)
    state = copy.deepcopy(state)
    change(state)

    def load() -> None:
        with damaged_state(tmp_path / "a.state"):
            load_optimizer(optimizer, state)

    refused(r"a\.state", load)


def test_a_file_that_holds_no_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.state").mkdir()
    (tmp_path / "text.state").write_text("x")
    torch.save([1], tmp_path / "list.state")
    for name in ("folder", "text", "list"):
        refused(rf"{name}\.state", read_state, tmp_path / f"{name}.state")
    torch.save({"step": 3}, tmp_path / "good.state")
    assert read_state(tmp_path / "good.state") == {"step": 3}


@pytest.mark.parametrize("step", [-1, 11, 1.0, True, "1", None])
def test_steps_of_no_such_training(step: Any) -> None:
    refused("step", step_of, {"step": step}, 10, error=ValueError)
    assert step_of({"step": 10}, 10) == 10


def test_tensors_are_copied_only_where_they_fit() -> None:
    target = torch.zeros(2, 3)
    copy_tensors([target], [torch.ones(2, 3)])
    assert target.sum() == 6
    for values in ([torch.ones(3)], [torch.ones(2, 3), torch.ones(1)], [torch.ones(2, 3, dtype=torch.int64)]):
        refused("tensor|longer", copy_tensors, [target], values, error=ValueError)
