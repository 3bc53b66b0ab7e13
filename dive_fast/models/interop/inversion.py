"""Embeddings that textual inversion learned elsewhere, as people of an adapter.

| layout | what the file holds |
|---|---|
| DiVE | `learned_embeds_dict` {token: [D]}, `name2placeholder` {name: token} |
| diffusers | {token: [D] or [n, D]} |
| AUTOMATIC1111 | `string_to_param` {"*": [n, D]}, `name` |
| safetensors of kohya and others | `emb_params` [n, D]; the file's name is the token |
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dive_fast.models.interop.states import State, as_float
from dive_fast.types import Identity, InputError

if TYPE_CHECKING:
    import torch

_DIVE, _A1111, _PLAIN = "learned_embeds_dict", "string_to_param", "emb_params"
_XL = {"clip_g", "clip_l"}


@dataclass(frozen=True)
class Learned:
    """A person of another tool: `pid`, the `token` that stood for it there and its vectors, float32 [n, D], n > 0."""

    pid: str
    token: str
    rows: torch.Tensor

    def identity(self) -> Identity:
        """The person as an adapter knows it: one word `<class_12>`, or `<cat.0> <cat.1>` for two vectors."""
        word = re.sub(r"[^a-z0-9_.\-]+", "_", self.token.strip("<>").lower()).strip("_")
        if not word:
            raise InputError(
                f"token {self.token!r} has no letter or digit to name a word by; save the embedding under another name"
            )
        if len(self.rows) == 1:
            return Identity(self.pid, f"<{word}>")
        return Identity(self.pid, " ".join(f"<{word}.{i}>" for i in range(len(self.rows))))


def read_embeddings(state: State, width: int) -> list[Learned]:
    """The people in a file, in its order; `width` is the text encoder's D.

    A file in none of the layouts, of another width, or in which names and vectors do not match raises `InputError`.
    """
    learned = _read(state)
    wrong = next((one for one in learned if one.rows.shape[1] != width), None)
    if wrong is not None:
        raise InputError(
            f"{state.path}: {wrong.token!r} is {wrong.rows.shape[1]} wide, this base model's text encoder {width};"
            " use the base model that it was learned on"
        )
    return learned


def _read(state: State) -> list[Learned]:
    values = state.values
    if _DIVE in values:
        return _dive(state)
    if _A1111 in values:
        params, name = values[_A1111], values.get("name")
        if not isinstance(params, dict) or set(params) != {"*"}:
            raise InputError(f"{state.path}: string_to_param must hold '*' alone; save the embedding again")
        token = name if isinstance(name, str) and name.strip("<>*") else state.path.stem
        return [_one(state, token, params["*"])]
    if _XL & set(values):
        raise InputError(
            f"{state.path} is an embedding for Stable Diffusion XL (two text encoders), which is not supported"
        )
    if set(values) == {_PLAIN}:
        return [_one(state, state.path.stem, values[_PLAIN])]
    return _diffusers(state)


def _diffusers(state: State) -> list[Learned]:
    import torch

    sizes = {v.shape[-1] if isinstance(v, torch.Tensor) and v.ndim in (1, 2) else None for v in state.values.values()}
    if len(sizes) != 1 or None in sizes:  # embeddings of one model are equally wide; other files are not
        first = min(state.values, default="nothing")
        raise InputError(
            f"{state.path} holds neither a LoRA nor embeddings of one width ({len(state.values)} entries, first"
            f" {first!r}); give files of textual inversion or LoRA"
        )
    return [_one(state, token, rows) for token, rows in state.values.items()]


def _dive(state: State) -> list[Learned]:
    vectors, names = state.values[_DIVE], state.values.get("name2placeholder")
    if not isinstance(vectors, dict) or not vectors or not all(isinstance(token, str) for token in vectors):
        raise InputError(f"{state.path}: {_DIVE} must map tokens to vectors; copy the file again")
    if not isinstance(names, dict) or not all(isinstance(part, str) for pair in names.items() for part in pair):
        raise InputError(f"{state.path}: name2placeholder must map names to tokens; copy the file again")
    unnamed, without = sorted(set(vectors) - set(names.values())), sorted(set(names.values()) - set(vectors))
    if unnamed or without:
        raise InputError(
            f"{state.path}: {len(unnamed)} vectors have no name and {len(without)} names no vector, first"
            f" {(unnamed + without)[0]!r}; copy the file again"
        )
    return [_one(state, token, vectors[token], _person_name(name)) for name, token in names.items()]


def _person_name(name: str) -> str:
    """DiVE names people by number and their folders by the number in four digits; the folders are what readers see."""
    return f"{int(name):04d}" if name.isascii() and name.isdecimal() else name


def _one(state: State, token: str, value: object, pid: str | None = None) -> Learned:
    rows = as_float(value, f"{state.path}: the embedding of {token!r}", "[width] or [vectors, width]", 1, 2)
    return Learned(token.strip("<>") if pid is None else pid, token, rows.reshape(-1, rows.shape[-1]))
