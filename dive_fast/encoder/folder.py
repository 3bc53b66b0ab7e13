"""An encoder's folder: what predicts rows from photos, and the rows of the people that it was trained on.

`encoder.json`, `mapper.safetensors`, `people.safetensors` and, for features of a ReID net or a tagger, its files in
`features/`: such a folder needs no other file. CLIP's weights stay where they are; the folder has their path and
fingerprint. A LoRA that was learned beside the mapper is the adapter in `adapter/`.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from dive_fast.encoder.distribution import Distribution
from dive_fast.encoder.features import FeatureNet, Kind, open_features
from dive_fast.encoder.mapper import Mapper
from dive_fast.io import write_json
from dive_fast.json_files import read_json
from dive_fast.models.adapter import save_adapter
from dive_fast.models.files import fingerprint_of, read_tensors, resolve, write_tensors
from dive_fast.models.phrase import Phrase
from dive_fast.models.prompts import check_vocabulary
from dive_fast.outputs import holds, output_folder
from dive_fast.train.embedding import PhraseRows
from dive_fast.train.tagger import mixed_words
from dive_fast.types import InputError, shown

if TYPE_CHECKING:
    from dive_fast.models.adapter import Adapter

FORMAT, SHIPPED = "dive-fast encoder 1", "pocket-encoder"
RECORD, FEATURES, ADAPTER = "encoder.json", "features", "adapter"
_SIZES = {"features": 10_000_000, "width": 100_000, "row": 100_000}  # largest of a folder that is read


@dataclass(frozen=True)
class Encoder:
    """A trained encoder. `source` reads the photos; `people` are hashes of the names of those it was trained on.

    `distribution` has the rows of those people.
    """

    base_fingerprint: str
    phrase: str
    template: str
    source: FeatureNet
    mapper: Mapper
    people: frozenset[str]
    distribution: Distribution
    metadata: dict[str, Any]

    @property
    def words(self) -> int:
        """Learned words of a person."""
        return len(Phrase(self.phrase).choices)

    @property
    def row_width(self) -> int:
        return int(self.mapper.phrase.start.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of what decides the rows that it predicts."""
        parts = [self.base_fingerprint, self.phrase, self.template, self.source.fingerprint]
        return fingerprint_of(parts, self.mapper.state_dict())

    @torch.inference_mode()
    def rows(self, features: Tensor) -> Tensor:
        """Returns the rows float32 [words, D] on the CPU of a person from the features [P, F] of all photos."""
        return self._predicted(features[None])[0]

    @torch.inference_mode()
    def rows_of_each(self, features: Tensor) -> Tensor:
        """Returns the rows float32 [P, words, D] on the CPU from each of the photos [P, F] alone."""
        return self._predicted(features[:, None])

    def _predicted(self, features: Tensor) -> Tensor:
        device = self.mapper.mean.device
        given = torch.ones(features.shape[:2], dtype=torch.bool, device=device)
        rows: Tensor = self.mapper(features.to(device), given).cpu()
        return rows

    def known(self, pids: Iterable[str]) -> list[str]:
        """Returns those of `pids` whose names people have that the encoder or its feature net was trained on."""
        return sorted(pid for pid in pids if hashed(pid) in self.people)


def hashed(pid: str) -> str:
    """A name as a folder records it: enough to recognise a name, not to list them."""
    return hashlib.sha256(f"dive_fast person {pid}".encode()).hexdigest()[:16]


def save_encoder(encoder: Encoder, out: Path, adapter: Adapter | None = None, overwrite: bool = False) -> None:
    """Writes the folder whole or not at all; another encoder at `out` raises `InputError` without `overwrite`."""
    mapper, source = encoder.mapper, encoder.source
    described = {"kind": source.kind, "fingerprint": source.fingerprint}
    described |= {} if source.files else {"path": str(source.folder.resolve())}
    with output_folder(out, holds(RECORD), overwrite) as fresh:
        for name in source.files:
            (fresh / FEATURES).mkdir(exist_ok=True)
            shutil.copyfile(source.folder / name, fresh / FEATURES / name)
        if adapter is not None:
            save_adapter(adapter, fresh / ADAPTER)
        write_tensors(fresh / "mapper.safetensors", halved(mapper))
        encoder.distribution.save(fresh / "people.safetensors")
        record = {
            "format": FORMAT,
            "base_fingerprint": encoder.base_fingerprint,
            "phrase": encoder.phrase,
            "template": encoder.template,
            "features": described,
            "sizes": {"features": len(mapper.mean), "width": mapper.weigh.in_features, "row": encoder.row_width},
            "people": sorted(encoder.people),
            "facts": encoder.metadata,
        }
        write_json(fresh / RECORD, record)


def halved(mapper: Mapper) -> dict[str, Tensor]:
    """The tensors of a mapper as a folder has them: trained ones in float16."""
    trained = dict(mapper.named_parameters())
    return {name: each.half() if name in trained else each for name, each in mapper.state_dict().items()}


def read_record(path: Path | str) -> tuple[Path, dict[str, Any]]:
    """Returns the folder of an encoder ("pocket": the shipped one) and its record; what is none raises `InputError`."""
    folder = resolve(path, SHIPPED)
    if not (folder / RECORD).is_file():
        raise InputError(f"encoder {folder} has no {RECORD}; give a folder that `dive-fast train-encoder` wrote")
    record = read_json(folder / RECORD, "encoder")
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise InputError(f"{folder / RECORD}: format is {shown(found)}, this version reads {FORMAT!r}; train it again")
    problems = list(_problems(record))
    if problems:
        raise InputError(f"{folder / RECORD}: {'; '.join(problems)}; copy the folder again")
    return folder, record


def _problems(record: dict[str, Any]) -> Iterable[str]:
    texts = {name: record.get(name) for name in ("base_fingerprint", "phrase", "template")}
    yield from (f"{name} is {shown(value)}, not a text" for name, value in texts.items() if not isinstance(value, str))
    sizes, features, people = record.get("sizes"), record.get("features"), record.get("people")
    for name, most in _SIZES.items():
        size = sizes.get(name) if isinstance(sizes, dict) else None
        if type(size) is not int or not 1 <= size <= most:
            yield f"size {name} is {shown(size)}, not within 1..{most:,}"
    if not isinstance(features, dict) or features.get("kind") not in get_args(Kind):
        yield f"features are {shown(features)}, of none of {', '.join(get_args(Kind))}"
    elif not isinstance(features.get("fingerprint"), str) or not isinstance(features.get("path", ""), str):
        yield "features have no fingerprint, or a path that is no text"
    if not isinstance(people, list) or not all(isinstance(name, str) for name in people):
        yield "people is no list of texts"
    if not isinstance(record.get("facts"), dict):
        yield "facts is no JSON object"


def load_encoder(path: Encoder | Path | str, features: Path | str | None = None, device: str = "cpu") -> Encoder:
    """Opens an encoder's folder, "pocket" is the shipped one; `features` is CLIP's folder if that has moved.

    An opened encoder comes back as it is. A missing, damaged or inconsistent file, and features of another network, raise
    `InputError`.
    """
    if isinstance(path, Encoder):
        return path
    folder, record = read_record(path)
    check_vocabulary((), (), [record["template"]], str(folder / RECORD))
    mapper = _mapper(folder, record)
    return Encoder(
        base_fingerprint=record["base_fingerprint"],
        phrase=record["phrase"],
        template=record["template"],
        source=_source(folder, record["features"], features, device),
        mapper=mapper.to(device),
        people=frozenset(record["people"]),
        distribution=Distribution.load(folder / "people.safetensors", mapper.phrase),
        metadata=record["facts"],
    )


def _mapper(folder: Path, record: dict[str, Any]) -> Mapper:
    sizes, phrase = record["sizes"], Phrase(record["phrase"])
    tensors = read_tensors(folder / "mapper.safetensors")
    said = "trust" in tensors and tensors["trust"].numel() > 0
    with torch.device("meta"):  # a record may ask for more memory than there is
        expected = {name: tensor.shape for name, tensor in _empty(sizes, phrase, said).state_dict().items()}
    words = sum(map(len, mixed_words(phrase)))
    if {name: tensor.shape for name, tensor in tensors.items()} != expected or (said and words > sizes["features"]):
        raise InputError(f"{folder}: mapper.safetensors does not belong to {RECORD}; copy the folder again")
    mapper = _empty(sizes, phrase, said)
    mapper.load_state_dict(tensors)
    return mapper.eval().requires_grad_(False)


def _empty(sizes: dict[str, int], phrase: Phrase, said: bool) -> Mapper:
    choices = [torch.zeros(len(words), sizes["row"]) for words in phrase.choices]
    return Mapper(sizes["features"], sizes["width"], PhraseRows(choices), said=said)


def _source(folder: Path, described: dict[str, Any], moved: Path | str | None, device: str) -> FeatureNet:
    own = described["kind"] != "clip"
    if own and moved is not None:
        raise InputError(f"encoder {folder} has its own feature net; leave --features out")
    place = folder / FEATURES if own else Path(moved or described.get("path", ""))
    if not place.is_dir():
        raise InputError(f"encoder {folder} reads photos by CLIP in {place}, which is no folder; give it as --features")
    source = open_features(place, device)
    if source.fingerprint != described["fingerprint"]:
        raise InputError(f"encoder {folder} was trained on another network's features than {place}; give its own")
    return source


def check_onto(encoder: Encoder, adapter: Adapter, path: Path | str) -> None:
    """Raises `InputError` unless rows of the encoder fit into an adapter: one base, one width."""
    if encoder.base_fingerprint != adapter.base_fingerprint:
        raise InputError(
            f"the encoder belongs to base {encoder.base_fingerprint[:12]}…, adapter {path} to base"
            f" {adapter.base_fingerprint[:12]}…; give two of one base"
        )
    width = adapter.embeddings.shape[1]
    if encoder.row_width != width:
        raise InputError(f"the encoder's rows are {encoder.row_width} wide, those of adapter {path} {width}")
