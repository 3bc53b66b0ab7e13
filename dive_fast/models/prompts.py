"""Prompts: the text of an identity by a camera, its token ids and its embeddings.

An identity or a camera that the model never learned raises instead of being spelled out as letters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dive_fast.io import nearest, write_json
from dive_fast.json_files import read_json
from dive_fast.types import Camera, Identity, InputError, from_dict, learned_words, shown, to_dict

if TYPE_CHECKING:
    from torch import Tensor

PromptKey = tuple[str, str] | None
"""(pid, camera), or None for the empty prompt of guidance."""

DEFAULT_TEMPLATE = "a {cam} photo of a {token} person"

# Captions for training: in many sentences, the token and the code carry the meaning, not the words around them.
TEMPLATES: tuple[str, ...] = (
    DEFAULT_TEMPLATE,
    "{cam} photo, a {token} person",
    "a {token} person seen by {cam}",
    "a {cam} picture of one {token} person",
    "a {cam} image of a {token} person standing",
    "a {cam} image of a {token} person walking",
    "the {token} person in a {cam} frame",
    "a {cam} frame with a {token} person",
    "a {cam} recording of the {token} person",
    "a {cam} view of a {token} person, whole body",
    "a {cam} crop of a {token} person, head to feet",
    "a {token} person passing a {cam} camera",
    "a {token} person, taken with a {cam} camera",
    "surveillance {cam} footage of a {token} person",
    "a {cam} snapshot of a {token} person",
    "one {token} person on a {cam} still",
    "a still of a {token} person from {cam}",
    "a {cam} capture of that {token} person",
    "the same {token} person, {cam} photo",
    "a {cam} shot of a {token} person",
)

_PLACEHOLDER = re.compile(r"[^<>{}]*(<[a-z0-9_.\-]+>[^<>{}]*)+")
_HALF = re.compile("[\ud800-\udfff]")
_CODE = re.compile(r"[^\s<>{}]+( [^\s<>{}]+)*")
_Named = TypeVar("_Named")


def render(template: str, code: str, token: str) -> str:
    """Returns the prompt of one camera code and one identity token."""
    return template.format(cam=code, token=token)


def check_vocabulary(
    identities: Sequence[Identity], cameras: Sequence[Camera], templates: Sequence[str], where: str
) -> None:
    """Raises `InputError` if names, placeholders or codes repeat or would not survive the tokenizer."""
    columns = {
        "identity pid": [i.pid for i in identities],
        "placeholder": [word for i in identities for word in i.words],
        "camera name": [c.name for c in cameras],
        "camera code": [c.code.lower() for c in cameras],  # CLIP lower-cases text, so W5Eq and w5eq are one code
    }
    for what, values in columns.items():
        if len(set(values)) != len(values):
            twice = next(v for v in values if values.count(v) > 1)
            raise InputError(f"{where}: {what} {shown(twice)} occurs more than once; each must be unique")
    placeholders = [(identity, text) for identity in identities for text in _texts(identity)]
    for text in chain(*columns.values(), templates, (text for _, text in placeholders)):
        if _HALF.search(text):
            raise InputError(f"{where}: {shown(text)} holds half of a character, which nothing can write; correct it")
    for identity, text in placeholders:
        if not _PLACEHOLDER.fullmatch(text):
            raise InputError(
                f"{where}: placeholder {shown(text)} of identity {shown(identity.pid)} must look like"
                " <class_12> (lower-case letters, digits, _ . - between angle brackets), or be a phrase with such words"
            )
        if text == identity.infrared and sorted(learned_words(text)) != sorted(identity.words):
            raise InputError(
                f"{where}: the infrared placeholder of identity {shown(identity.pid)} must have every word of the other"
                " one once, and may have further words"
            )
    for camera in cameras:
        if not _CODE.fullmatch(camera.code):
            raise InputError(
                f"{where}: code {camera.code[:80]!r} of camera {shown(camera.name)} must be words without <>{{}}"
            )
    for template in templates:
        if sorted(re.findall(r"\{[^{}]*\}|[{}]", template)) != ["{cam}", "{token}"]:
            raise InputError(f"{where}: template {shown(template)} must contain {{cam}} once and {{token}} once")


def _texts(identity: Identity) -> tuple[str, ...]:
    """The different placeholders of an identity: one, or that of infrared prompts, too."""
    return (identity.placeholder, identity.infrared) if identity.infrared else (identity.placeholder,)


def parse_table(data: object, texts: Sequence[str], where: str) -> dict[str, Any]:
    """Returns the identities, cameras and `texts` fields of untrusted JSON; another type raises `InputError`."""
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(data).__name__}")
    for name in texts:
        if not isinstance(data.get(name), str):
            raise InputError(f"{where}: {name} must be text, got {shown(data.get(name))}")
    records = {
        "identities": _parse_records(Identity, data.get("identities"), f"{where} identities"),
        "cameras": _parse_records(Camera, data.get("cameras"), f"{where} cameras"),
    }
    return {**{name: data[name] for name in texts}, **records}


def _parse_records(cls: type[_Named], items: object, where: str) -> tuple[_Named, ...]:
    if not isinstance(items, list):
        raise InputError(f"{where}: expected a list of {cls.__name__}, got {type(items).__name__}")
    for item in items:
        if not isinstance(item, dict) or not all(
            isinstance(value, bool if key == "virtual" else str) for key, value in item.items()
        ):
            raise InputError(f"{where}: a {cls.__name__} must be an object of text fields, got {shown(item)}")
    return tuple(from_dict(cls, item, where) for item in items)


def find(name: str, known: Mapping[str, _Named], kind: str, holder: str) -> _Named:
    """Returns the record called `name`; an unknown name raises `InputError` with the count and the nearest name."""
    if name not in known:
        raise InputError(f"{holder} holds {len(known)} {kind}, {shown(name)} is not one of them{nearest(name, known)}")
    return known[name]


@dataclass(frozen=True)
class PromptTable:
    """`prompts.json`: what turns (pid, camera) into text, and the base model and adapter that it belongs to."""

    identities: tuple[Identity, ...]
    cameras: tuple[Camera, ...]
    template: str
    base_fingerprint: str
    adapter_fingerprint: str

    def __post_init__(self) -> None:
        check_vocabulary(self.identities, self.cameras, [self.template], "prompts")

    @cached_property
    def _by_pid(self) -> dict[str, Identity]:
        return {identity.pid: identity for identity in self.identities}

    @cached_property
    def _by_camera(self) -> dict[str, Camera]:
        return {camera.name: camera for camera in self.cameras}

    @cached_property
    def phrases(self) -> tuple[Identity, ...]:
        """One identity for each text around the learned words: the prompts of all others have as many tokens."""
        around = (tuple(re.sub(r"<[^<>]*>", "<>", text) for text in _texts(one)) for one in self.identities)
        return tuple(dict(zip(around, self.identities, strict=True)).values())

    def identity(self, pid: str) -> Identity:
        return find(pid, self._by_pid, "identities", "the model")

    def camera(self, name: str) -> Camera:
        return find(name, self._by_camera, "cameras", "the model")

    def keys(self, pids: Iterable[str] | None = None) -> tuple[tuple[str, str], ...]:
        """Returns every (pid, camera) of `pids`, by default of all identities, camera by camera for each."""
        everyone = [one.pid for one in self.identities] if pids is None else pids
        return tuple((pid, camera.name) for pid in everyone for camera in self.cameras)

    def prompt(self, pid: str, camera: str) -> str:
        """Returns the text of `pid` by `camera`; an unknown one raises `InputError` with the count and the nearest."""
        seen_by = self.camera(camera)
        return render(self.template, seen_by.code, self.identity(pid).text(seen_by.modality))

    @classmethod
    def read(cls, path: Path | str) -> PromptTable:
        """Reads `prompts.json`; anything missing, unknown or of the wrong type raises `InputError`."""
        data = read_json(path, "prompts")
        parsed = parse_table(data, ("template", "base_fingerprint", "adapter_fingerprint"), str(path))
        return from_dict(cls, {**data, **parsed}, str(path))

    def write(self, path: Path | str) -> None:
        write_json(path, to_dict(self))


class PromptEncoder:
    """The prompts of a model as text, token ids and embeddings; each distinct prompt is encoded once.

    `tokenizer` is a CLIP tokenizer that knows the table's placeholders, or the folder of one, read at the first use.
    """

    def __init__(self, tokenizer: Any, table: PromptTable) -> None:
        self.table = table
        self._tokenizer = tokenizer

    @cached_property
    def tokenizer(self) -> Any:
        if not isinstance(self._tokenizer, (str, Path)):
            return self._tokenizer
        from dive_fast.models.files import load_tokenizer

        return load_tokenizer(Path(self._tokenizer))

    def token_ids(self, keys: Sequence[PromptKey]) -> Tensor:
        """Returns the token ids of `keys`, padded to the model's length: int64 [P, L].

        Raises `InputError` for an unknown key, a placeholder that the tokenizer lacks, or a prompt that is too long.
        """
        import torch

        ids = [self._ids(key) for key in keys]
        return torch.tensor(ids, dtype=torch.int64).reshape(len(ids), self.tokenizer.model_max_length)

    def check(self) -> None:
        """Raises `InputError` unless the model reads the prompts of every identity by every camera."""
        self.token_ids(self.table.keys(one.pid for one in self.table.phrases))

    def encode(self, encode_text: Callable[[Tensor], Tensor], keys: Sequence[PromptKey]) -> tuple[Tensor, Tensor]:
        """Returns the embeddings of the U distinct keys, by first occurrence, and the row of each of the P keys.

        `encode_text` maps token ids int64 [U, L] to embeddings [U, L, D]; the rows are int64 [P].
        """
        import torch

        distinct = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        index = torch.tensor([distinct[key] for key in keys], dtype=torch.int64)
        return encode_text(self.token_ids(list(distinct))), index

    def _ids(self, key: PromptKey) -> list[int]:
        text = "" if key is None else self.table.prompt(*key)
        length = self.tokenizer.model_max_length
        ids: list[int] = self.tokenizer(text, padding="max_length", max_length=length, truncation=False)["input_ids"]
        if len(ids) > length:
            raise InputError(
                f"prompt {shown(text)} has {len(ids)} tokens and the model reads {length}; shorten the template or"
                " the code, or take an embedding of fewer vectors"
            )
        for word in learned_words(text):
            token = self.tokenizer.backend_tokenizer.token_to_id(word)
            if token is None or ids.count(token) != 1:  # the word would be spelled out, and the image be of nobody
                raise InputError(
                    f"the tokenizer does not read {shown(word)} as one token; fuse the adapter into its base again"
                )
        return ids
