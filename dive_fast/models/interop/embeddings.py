"""Embeddings of textual inversion, as identities of an adapter.

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
from typing import TYPE_CHECKING, Any

from dive_fast.models.interop.states import State, as_float
from dive_fast.types import Identity, InputError

if TYPE_CHECKING:
    import torch

_DIVE, _A1111, _PLAIN = "learned_embeds_dict", "string_to_param", "emb_params"
_XL = {"clip_g", "clip_l"}


@dataclass(frozen=True)
class Learned:
    """An identity of another tool: `pid`, its `token` there and the token's vectors, float32 [n, D], n > 0."""

    pid: str
    token: str
    rows: torch.Tensor

    def identity(self) -> Identity:
        """Returns the identity for an adapter: one word `<class_12>`, or `<cat.0> <cat.1>` for two vectors."""
        word = re.sub(r"[^a-z0-9_.\-]+", "_", self.token.strip("<>").lower()).strip("_")
        if not word:
            raise InputError(
                f"token {self.token!r} has no letter or digit to name a word by; save the embedding under another name"
            )
        if len(self.rows) == 1:
            return Identity(self.pid, f"<{word}>")
        return Identity(self.pid, " ".join(f"<{word}.{i}>" for i in range(len(self.rows))))


def read_embeddings(state: State, width: int) -> list[Learned]:
    """Returns the identities in a file, in its order; `width` is the text encoder's D.

    A file in none of the layouts, of another width, or with names and vectors that do not match raises `InputError`.
    """
    learned = _read(state)
    for one in learned:
        if one.rows.shape[1] != width:
            raise InputError(
                f"{state.path}: {one.token!r} is {one.rows.shape[1]} wide, this base model's text encoder {width};"
                " use the base model that it was trained on"
            )
    return learned


def _read(state: State) -> list[Learned]:
    import torch

    values = state.values
    if _DIVE in values:
        return _dive(state)
    if _A1111 in values:
        params, name = values[_A1111], values.get("name")
        if not isinstance(params, dict) or set(params) != {"*"}:
            raise InputError(f"{state.path}: string_to_param must hold '*' alone; save the embedding again")
        token = name if isinstance(name, str) and name.strip("<>*") else state.path.stem
        return [_learned(state, token, params["*"])]
    if _XL & set(values):
        raise InputError(
            f"{state.path} is an embedding for Stable Diffusion XL, which has two text encoders; use one"
            " for Stable Diffusion 1"
        )
    if set(values) == {_PLAIN}:
        return [_learned(state, state.path.stem, values[_PLAIN])]
    widths = {v.shape[-1] if isinstance(v, torch.Tensor) and v.ndim in (1, 2) else None for v in values.values()}
    if len(widths) != 1 or None in widths:  # embeddings of one model are equally wide; other files are not
        first = min(values, default="nothing")
        raise InputError(
            f"{state.path} holds neither a LoRA nor embeddings of one width ({len(values)} entries, first {first!r});"
            " give files of textual inversion or LoRA"
        )
    return [_learned(state, token, rows) for token, rows in values.items()]


def _dive(state: State) -> list[Learned]:
    vectors: Any = state.values[_DIVE]
    names: Any = state.values.get("name2placeholder")
    maps = isinstance(vectors, dict) and isinstance(names, dict) and bool(names)
    if not maps or not all(isinstance(part, str) for part in (*vectors, *names, *names.values())):
        raise InputError(
            f"{state.path}: {_DIVE} must map tokens to vectors, and name2placeholder names to tokens; copy the file again"
        )
    odd = sorted(set(vectors) ^ set(names.values()))
    if odd:
        raise InputError(
            f"{state.path}: {_DIVE} and name2placeholder disagree on {len(odd)} tokens, first {odd[0]!r};"
            " copy the file again"
        )
    # DiVE names identities by number and their folders by the number in four digits; readers see the folders.
    folders = {name: f"{int(name):04d}" if name.isascii() and name.isdecimal() else name for name in names}
    return [_learned(state, token, vectors[token], folders[name]) for name, token in names.items()]


def _learned(state: State, token: str, value: object, pid: str | None = None) -> Learned:
    rows = as_float(value, f"{state.path}: the embedding of {token!r}", 1, 2)
    return Learned(token.strip("<>") if pid is None else pid, token, rows.reshape(-1, rows.shape[-1]))
