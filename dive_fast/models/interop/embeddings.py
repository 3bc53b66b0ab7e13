"""Embeddings of textual inversion, as identities of an adapter.

| layout | what the file holds |
|---|---|
| DiVE | `learned_embeds_dict` {token: [D]}, `name2placeholder` {name: token} |
| diffusers | {token: [D] or [n, D]} |
| AUTOMATIC1111 | `string_to_param` {"*": [n, D]}, `name` |
| the first code | `string_to_param` {token: [n, D]}, as a ParameterDict |
| safetensors of kohya and others | `emb_params` [n, D]; the file's name is the token |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.models.interop.states import State, as_float
from dive_fast.models.phrase import learned_word
from dive_fast.types import Identity, InputError, shown

if TYPE_CHECKING:
    import torch

_DIVE, _A1111, _PLAIN = "learned_embeds_dict", "string_to_param", "emb_params"
_XL = {"clip_g", "clip_l"}
_NAMELESS = ("learned_embeds", "embedding", "emb", "model", "pytorch_model")  # files called so, or with more behind it


@dataclass(frozen=True)
class Learned:
    """An identity of another tool: its `pid` ("" if the file names none), its `token` there and float32 rows [n, D], n > 0.

    `path` is the file that it came from.
    """

    pid: str
    token: str
    rows: torch.Tensor
    path: Path

    def identity(self) -> Identity:
        """Returns the identity for an adapter: one word `<class_12>`, or `<cat.0> <cat.1>` for two vectors."""
        word = learned_word(self.token.strip("<>"))
        if len(self.rows) == 1:
            return Identity(self.pid, f"<{word}>")
        return Identity(self.pid, " ".join(f"<{word}.{i}>" for i in range(len(self.rows))))


def named(learned: Sequence[Learned], persons: Mapping[Path, str], taken: Collection[str] = ()) -> list[Learned]:
    """Returns the identities with different names, none of them `taken`.

    `persons` names files, or folders of one. Without it, an identity has its token's name, else its file's, else its
    folder's: the first that no other has. Where that does not tell them apart, raises `InputError`.
    """
    alone = {path for path, count in Counter(one.path for one in learned).items() if count == 1}
    unused = sorted(str(path) for path in persons if not any(path in (o.path, o.path.parent) for o in learned))
    if unused:
        raise InputError(f"--person names {unused[0]}, which holds no embedding; name one of the files with embeddings")
    choices = [list(_names(one, one.path in alone, persons)) or [""] for one in learned]
    while clashing := _clashing(choices, taken):
        for names in clashing:
            del names[0]
    counts = Counter(names[0] for names in choices)
    for one, (name, *_) in zip(learned, choices, strict=True):
        if not name or counts[name] > 1 or name in taken:
            problem = f"identity {shown(name)} occurs more than once" if name else f"no name is in {shown(one.token)}"
            raise InputError(f"{one.path}: {problem}; give each file its name with --person NAME=FILE")
    return [
        one if name == one.pid else replace(one, pid=name, token=name)
        for one, (name, *_) in zip(learned, choices, strict=True)
    ]


def _clashing(choices: Sequence[list[str]], taken: Collection[str]) -> list[list[str]]:
    """The names that must give way to their next: of several equal ones, those that gave way before if there are any."""
    clashing = []
    for name in {names[0] for names in choices}:
        equal = [names for names in choices if names[0] == name]
        if len(equal) > 1 or name in taken:
            most = max(map(len, equal))
            free = [names for names in equal if len(names) > 1]
            clashing += [names for names in free if len(names) < most] or free
    return clashing


def _names(one: Learned, alone: bool, persons: Mapping[Path, str]) -> Iterator[str]:
    """What an identity may be called, best first."""
    given = persons.get(one.path, persons.get(one.path.parent))
    if given is not None:
        if not alone:
            raise InputError(f"--person {given}={one.path}: the file holds several identities; leave the option out")
        yield given
        return
    if any(letter.isalnum() for letter in one.pid):
        yield one.pid
    if alone:
        stem = one.path.stem
        if not stem.lower().startswith(_NAMELESS):
            yield stem
        yield one.path.absolute().parent.name


def read_embeddings(state: State, width: int) -> list[Learned]:
    """Returns the identities in a file, in its order; `width` is the text encoder's D.

    A file in none of the layouts, of another width, or with names and vectors that do not match raises `InputError`.
    """
    learned = _read(state)
    for one in learned:
        if one.rows.shape[1] != width:
            raise InputError(
                f"{state.path}: {shown(one.token)} is {one.rows.shape[1]} wide, this base model's text encoder {width};"
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
        if not isinstance(params, dict) or len(params) != 1 or not isinstance(token := next(iter(params)), str):
            raise InputError(f"{state.path}: string_to_param must hold one token; save the embedding again")
        called = [text for text in (name, token) if isinstance(text, str) and text.strip("<>*")]
        return [_learned(state, called[0] if called else "", params[token])]
    if _XL & set(values):
        raise InputError(
            f"{state.path} is an embedding for Stable Diffusion XL, which has two text encoders; use one"
            " for Stable Diffusion 1"
        )
    if set(values) == {_PLAIN}:
        return [_learned(state, "", values[_PLAIN])]
    widths = {v.shape[-1] if isinstance(v, torch.Tensor) and v.ndim in (1, 2) else None for v in values.values()}
    if len(widths) != 1 or None in widths:  # embeddings of one model are equally wide; other files are not
        first = min(values, default="nothing")
        raise InputError(
            f"{state.path} holds neither a LoRA nor embeddings of one width ({len(values)} entries, first {shown(first)});"
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
            f"{state.path}: {_DIVE} and name2placeholder disagree on {len(odd)} tokens, first {shown(odd[0])};"
            " copy the file again"
        )
    # DiVE names identities by number and their folders by the number in four digits; readers see the folders.
    folders = {name: f"{int(name):04d}" if name.isascii() and name.isdecimal() else name for name in names}
    return [_learned(state, token, vectors[token], folders[name]) for name, token in names.items()]


def _learned(state: State, token: str, value: object, pid: str | None = None) -> Learned:
    rows = as_float(value, f"{state.path}: the embedding of {shown(token)}", 1, 2)
    return Learned(token.strip("<>") if pid is None else pid, token, rows.reshape(-1, rows.shape[-1]), state.path)
