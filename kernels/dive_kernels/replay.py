"""Runs an op's launches again without checking, planning and looking for code again.

Checks, plan and code depend on the sizes, strides, types, devices and alignments of an op's inputs, never on their values.
So the first call of such a combination records what its launches are, which tensors they allocate, and which input each
argument is. A later call allocates, fills in addresses and starts. A UNet calls 109 ops, and each plan costs the host more
than the GPU needs for a small layer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dive_kernels import package
from dive_kernels.launch import ALIGNMENT, Launch, Repeat
from dive_kernels.run import on, start

MOST = 4096  # recordings; a run has some dozens
Plan = Callable[..., tuple[Sequence[Launch], Tensor]]


@dataclass(frozen=True)
class Recording:
    """The launches of one call: tensors to allocate, the result first among them, and where arguments come from."""

    made: tuple[tuple[Any, ...], ...]  # size, stride, type, device
    launches: tuple[tuple[Repeat, list[Any], tuple[tuple[int, int], ...]], ...]  # its values, and (position, tensor)

    def run(self, given: Sequence[Any]) -> Tensor:
        made = [torch.empty_strided(size, stride, dtype=dtype, device=to) for size, stride, dtype, to in self.made]
        addresses = [x.data_ptr() for x in given if isinstance(x, Tensor)]
        addresses += [x.data_ptr() for x in made]
        with on(made[0].device):
            for repeat, values, links in self.launches:
                filled = values.copy()
                for position, tensor in links:
                    filled[position] = addresses[tensor]
                repeat(filled)
        return made[0]


_recordings: dict[Any, Recording] = {}


def launched(plan: Plan, *given: Any) -> Tensor:
    """Runs the launches of `plan(*given)` and returns its output; `plan` raises for inputs that it cannot take.

    A launch's tensors must be those of `given` themselves, or allocated by the plan.
    """
    key = (plan, os.environ.get(package.FOLDER), *[_kind(x) if isinstance(x, Tensor) else x for x in given])
    recording = _recordings.get(key)
    if recording is not None:
        return recording.run(given)
    # Aliases, as the caller may give one tensor twice: then the next call's two would be taken for one.
    aliases = [x.detach() if isinstance(x, Tensor) else x for x in given]
    launches, output = plan(*aliases)
    used = [launch for launch in launches if 0 not in launch.grid]
    repeats = [start(launch) for launch in used]
    if len(_recordings) >= MOST:
        _recordings.clear()
    if None not in repeats:
        inputs = [x for x in aliases if isinstance(x, Tensor)]
        _recordings[key] = _recorded(used, [repeat for repeat in repeats if repeat is not None], inputs, output)
    return output


def forget() -> None:
    """Drops every recording, so that the next calls plan again."""
    _recordings.clear()


def _kind(x: Tensor) -> tuple[Any, ...]:
    return x.shape, x.stride(), x.dtype, x.device, x.data_ptr() % ALIGNMENT


def _recorded(launches: Sequence[Launch], repeats: Sequence[Repeat], inputs: list[Tensor], output: Tensor) -> Recording:
    made = {id(output): output}
    place = {id(x): number for number, x in enumerate(inputs)}
    for value in (value for launch in launches for value in launch.arguments.values()):
        if isinstance(value, Tensor) and id(value) not in place:
            assert not value._is_view(), "a plan passes an input itself, no view of it"
            made[id(value)] = value
    place |= {key: len(inputs) + number for number, key in enumerate(made)}
    parts = []
    for launch, repeat in zip(launches, repeats, strict=True):
        values = list(launch.arguments.values())
        links = tuple((i, place[id(value)]) for i, value in enumerate(values) if isinstance(value, Tensor))
        parts.append((repeat, [None if isinstance(x, Tensor) else x for x in values], links))
    return Recording(tuple((x.shape, x.stride(), x.dtype, x.device) for x in made.values()), tuple(parts))
