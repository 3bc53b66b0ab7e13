"""`people.json`: what diffusers' own files do not say of an adapter: who its tokens are, and its cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dive_fast.io import read_json, write_json
from dive_fast.models.adapter import Adapter
from dive_fast.models.interop.inversion import Learned
from dive_fast.models.prompts import parse_records
from dive_fast.types import Camera, Identity, InputError, to_dict

FORMAT = "dive-fast people 1"
_TEXTS = ("base_fingerprint", "template", "phrase")


@dataclass(frozen=True)
class People:
    """Who and which cameras an exported adapter knows, how a prompt names them, and the base model that they belong to."""

    base_fingerprint: str
    identities: tuple[Identity, ...]
    cameras: tuple[Camera, ...]
    template: str
    phrase: str

    @classmethod
    def of(cls, adapter: Adapter) -> People:
        return cls(adapter.base_fingerprint, adapter.identities, adapter.cameras, adapter.template, adapter.phrase)

    def write(self, path: Path) -> None:
        write_json(path, {"format": FORMAT, **to_dict(self)})

    @classmethod
    def read(cls, path: Path, base_fingerprint: str) -> People:
        """From untrusted JSON; what is missing, of another format or of another base model raises `InputError`."""
        data = read_json(path, "people")
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f"{path} is not of the format {FORMAT!r}; export the adapter again")
        odd = next((name for name in _TEXTS if not isinstance(data.get(name), str)), None)
        if odd is not None:
            raise InputError(f"{path}: {odd} must be text, got {data.get(odd)!r}; export the adapter again")
        if data["base_fingerprint"] != base_fingerprint:
            raise InputError(
                f"{path} belongs to base {data['base_fingerprint'][:12]}…, this base is {base_fingerprint[:12]}…;"
                " give the base model it was trained on"
            )
        return cls(
            identities=parse_records(Identity, data.get("identities"), f"{path} identities"),
            cameras=parse_records(Camera, data.get("cameras"), f"{path} cameras"),
            **{name: data[name] for name in _TEXTS},
        )

    def words_of(self, learned: Sequence[Learned], path: Path) -> list[Learned]:
        """The embeddings in the order of the people's words; one too many or too few raises `InputError`."""
        by_token = {one.token: one for one in learned}
        words = [word for identity in self.identities for word in identity.words]
        odd = sorted(set(words) ^ set(by_token)) or [one.token for one in learned if len(one.rows) != 1]
        if odd:
            raise InputError(f"{path} and the embeddings beside it disagree on {len(odd)} words, first {odd[0]!r};"
                             " export the adapter again")  # fmt: skip
        return [by_token[word] for word in words]
