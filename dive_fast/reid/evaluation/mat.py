"""MATLAB files, read by a process of its own: scipy crashes on damaged ones, and a small file may unpack to any size."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.data.files import require_plain
from dive_fast.environment.optional import optional
from dive_fast.io import brief
from dive_fast.types import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 1 << 33  # bytes of a file; MATLAB 5 holds 2 GB a variable
SECONDS, MEGABYTES = 60, 2048  # what the process may take beyond its file's share


def read_mat(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The variables `names` that a MATLAB 5 file holds; another or damaged file raises `InputError`. Needs scipy."""
    try:
        require_plain(path, str(path), MOST)
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; copy it again or correct the path") from error
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_load, args=(sender, str(path), list(names), size), daemon=True)
    process.start()
    sender.close()
    try:
        found: Any = receiver.recv() if receiver.poll(SECONDS + size / 1e7) else "reading it did not end"
    except (EOFError, OSError):
        found = "it crashes scipy"
    finally:
        process.kill()
        process.join()
        receiver.close()
    if isinstance(found, str):
        raise InputError(f"{path} is no readable MATLAB 5 file ({found}); save it again with the option '-v7'")
    arrays: dict[str, NDArray[Any]] = found
    return arrays


def _load(sender: Connection, path: str, names: list[str], size: int) -> None:
    """Sends the variables, or the reason why there are none."""
    io = optional("scipy.io", ".mat files")
    _limit_memory(4 * size + (MEGABYTES << 20))
    try:
        found = io.loadmat(path, variable_names=names)
        sender.send({name: found[name] for name in names if name in found})
    except Exception as error:  # noqa: BLE001  scipy raises many kinds, and the parent raises what is sent
        sender.send(brief(error, 80) or type(error).__name__)


def _limit_memory(more: int) -> None:
    """Lets this process take `more` bytes than it has now, where the system can count them."""
    import resource

    pages = Path("/proc/self/statm")
    if pages.exists():
        limit = int(pages.read_text().split()[0]) * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
