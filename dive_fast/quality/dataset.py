"""A dataset's records, shard by shard: which images of a pair are generated, and their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dive_fast.io import canonical_json, sha256_bytes, sha256_file
from dive_fast.synth import manifest
from dive_fast.synth.manifest import dataset_plan, shard_files, shard_name
from dive_fast.types import MODALITIES, InputError, Modality, PairRecord, Sample


@dataclass(frozen=True)
class Pair:
    """One recorded pair and its generated sides `made`; a rejected pair has none."""

    pair_id: str
    pid: str
    cameras: dict[Modality, str]
    files: dict[Modality, str]
    made: tuple[Modality, ...]

    def sample(self, dataset: Path, side: Modality) -> Sample:
        source = "synthetic" if side in self.made else "real"
        return Sample(dataset / self.files[side], self.pid, self.cameras[side], source, side)  # type: ignore[arg-type]


@dataclass(frozen=True)
class DatasetShard:
    """A finished shard: its number, the SHA-256 of its record file, and its pairs in plan order."""

    number: int
    sha256: str
    pairs: tuple[Pair, ...]

    @property
    def made(self) -> list[tuple[Pair, Modality]]:
        """The generated images in order: row r of everything that is stored about the shard."""
        return [(pair, side) for pair in self.pairs for side in pair.made]

    def samples(self, dataset: Path) -> list[Sample]:
        return [pair.sample(dataset, side) for pair, side in self.made]


def shard_numbers(dataset: Path) -> list[int]:
    """The finished shards in order; a folder without any, or that is no dataset, raises `InputError`."""
    dataset_plan(dataset)
    found = [int(path.stem) for path in shard_files(dataset)]
    if not found:
        raise InputError(f"dataset {dataset} has no finished pair yet; run synth again")
    return found


def read_shard(dataset: Path, number: int) -> DatasetShard:
    """One shard's pairs; a record that is broken or leads out of the dataset raises `InputError`."""
    path = dataset / shard_name(number)
    return DatasetShard(number, sha256_file(path), tuple(_pair(record) for record in manifest.read_shard(path)))


def records_hash(shards: Sequence[tuple[int, str]]) -> str:
    """One hash of all shards' (number, SHA-256): it identifies the dataset's images."""
    return sha256_bytes(canonical_json([list(shard) for shard in shards]).encode())


def dataset_hash(dataset: Path) -> str:
    """`records_hash` of the dataset on disk."""
    return records_hash([(n, sha256_file(dataset / shard_name(n))) for n in shard_numbers(dataset)])


def _pair(record: PairRecord) -> Pair:
    spec = record.spec
    made: tuple[Modality, ...] = MODALITIES if spec.photo is None else ("ir",)
    return Pair(
        spec.pair_id,
        spec.pid,
        {"rgb": spec.rgb, "ir": spec.ir},
        {"rgb": record.files["rgb"], "ir": record.files["ir"]},
        made if record.status == "done" else (),
    )
