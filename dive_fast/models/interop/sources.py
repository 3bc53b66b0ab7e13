"""Sorts the files that a user names: the LoRA, the embeddings, and the JSON files that describe them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dive_fast.models.interop.lora_names import is_lora
from dive_fast.models.interop.states import State, read_state
from dive_fast.types import InputError

LORA_FILES = (
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
EMBEDDING_FILES = (
    "learned_embeds.safetensors",
    "learned_embeds-steps-last.safetensors",
    "learned_embeds-steps-last.bin",
    "learned_embeds.bin",
)
CAMERAS, PEFT_CONFIG, IDENTITIES = "dataset_info.json", "adapter_config.json", "identities.json"
TONES = "tones.safetensors"


@dataclass
class Sources:
    """At most one LoRA, any number of embedding files, and the `descriptions` (and tones) beside them by file name."""

    lora: State | None = None
    embeddings: list[State] = field(default_factory=list)
    descriptions: dict[str, Path] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        states = [self.lora, *self.embeddings] if self.lora else self.embeddings
        return [*(state.path for state in states), *self.descriptions.values()]

    def describe(self) -> str:
        return ", ".join(map(str, self.files))


def find_sources(paths: Sequence[Path]) -> Sources:
    """Sorts files by what they hold, and takes the files of known names out of folders.

    A folder without such files, two LoRAs, or two descriptions of one name raise `InputError`.
    """
    found = Sources()
    for path in (file for source in paths for file in _files(source)):
        if path.name in (CAMERAS, PEFT_CONFIG, IDENTITIES, TONES):
            if path.name in found.descriptions:
                raise InputError(f"{found.descriptions[path.name]} and {path} are of one kind; leave one out")
            found.descriptions[path.name] = path
            continue
        state = read_state(path)
        if not is_lora(state.values):
            found.embeddings.append(state)
        elif found.lora is not None:
            raise InputError(f"{found.lora.path} and {path} are both LoRA, an adapter has one; leave one out")
        else:
            found.lora = state
    if found.lora is not None and (found.lora.path.parent / PEFT_CONFIG).is_file():  # PEFT puts it beside its weights
        found.descriptions.setdefault(PEFT_CONFIG, found.lora.path.parent / PEFT_CONFIG)
    return found


def _files(path: Path) -> Iterable[Path]:
    """`path` itself, or the files of a folder that an import reads."""
    if not path.is_dir():
        return [path]
    if (path / "adapter.json").is_file():
        raise InputError(f"{path} is already an adapter of dive-fast; give it to dive-fast fuse --adapter")
    weights = [*_existing(path, LORA_FILES)[:1], *_embeddings(path)]
    if not weights:
        held = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise InputError(f"{path} has neither {LORA_FILES[0]} nor {EMBEDDING_FILES[0]} (found {held}); name the files")
    return [*weights, *_existing(path, (CAMERAS, IDENTITIES, TONES))]


def _embeddings(folder: Path) -> list[Path]:
    """The embeddings of a folder: those of a training's last step by name, else the only file."""
    named, others = _existing(folder, EMBEDDING_FILES), sorted(folder.glob("learned_embeds*"))
    if not named and len(others) > 1:
        raise InputError(f"{folder} has {len(others)} files of embeddings ({others[0].name}, ...); name one of them")
    return (named or others)[:1]


def _existing(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]
