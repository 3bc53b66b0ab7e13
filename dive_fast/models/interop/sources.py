"""Which of the files that a user names is what: the LoRA, the embeddings, and what says more about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dive_fast.models.interop.lora_keys import is_lora
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
CAMERAS, PEFT, PEOPLE = "dataset_info.json", "adapter_config.json", "people.json"


@dataclass
class Sources:
    """What was found: at most one LoRA, any number of embedding files, and descriptions that go with them."""

    lora: State | None = None
    embeddings: list[State] = field(default_factory=list)
    cameras: Path | None = None
    people: Path | None = None
    peft: Path | None = None

    @property
    def files(self) -> list[Path]:
        """All the files that are read."""
        states = [self.lora, *self.embeddings] if self.lora else self.embeddings
        return [*(state.path for state in states), *(path for path in (self.cameras, self.people, self.peft) if path)]


def find_sources(paths: Sequence[Path]) -> Sources:
    """Sorts files by what they hold, and takes the files of known names out of folders.

    A folder without such files, two LoRAs, or a file that is neither LoRA nor embeddings raises `InputError`.
    """
    found = Sources()
    for path in _unfolded(paths):
        if path.name == CAMERAS:
            found.cameras = _only(found.cameras, path)
        elif path.name == PEOPLE:
            found.people = _only(found.people, path)
        elif path.name == PEFT:
            found.peft = _only(found.peft, path)
        else:
            state = read_state(path)
            if not is_lora(state.values):
                found.embeddings.append(state)
            elif found.lora is not None:
                raise InputError(f"{found.lora.path} and {path} are both LoRA, and an adapter has one; leave one out")
            else:
                found.lora = state
    if found.lora is not None and found.peft is None:  # PEFT puts it beside its weights
        found.peft = _first(found.lora.path.parent, (PEFT,))
    return found


def _only(before: Path | None, path: Path) -> Path:
    if before is not None:
        raise InputError(f"{before} and {path} say the same kind of thing; leave one out")
    return path


def _unfolded(paths: Sequence[Path]) -> Iterable[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        if (path / "adapter.json").is_file():
            raise InputError(f"{path} is an adapter of dive-fast already; use it as it is (dive-fast fuse --adapter)")
        weights = [file for file in (_first(path, LORA_FILES), _embeddings(path)) if file]
        if not weights:
            held = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
            raise InputError(
                f"{path} has neither {LORA_FILES[0]} nor {EMBEDDING_FILES[0]} (found {held}); name the files"
            )
        yield from weights
        yield from (path / name for name in (CAMERAS, PEOPLE) if (path / name).is_file())


def _embeddings(folder: Path) -> Path | None:
    """The embeddings of a folder; the last of a training, if it is named so, and else the only ones."""
    named = _first(folder, EMBEDDING_FILES)
    others = sorted(folder.glob("learned_embeds*"))
    if named is None and len(others) > 1:
        raise InputError(
            f"{folder} has {len(others)} files of embeddings ({others[0].name}, ...); name the one to take"
        )
    return named or next(iter(others), None)


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)
