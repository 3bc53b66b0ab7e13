"""A dataset in an object store or any other place that fsspec knows by URL: s3://, gs://, az://, sftp://, memory://."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager

from dive_fast.environment.optional import optional
from dive_fast.io import brief, is_incidental
from dive_fast.synth.store import Release
from dive_fast.types import DiveError


class RemoteStore:
    """Files behind a URL. Object stores put a file whole or not at all.

    They have no locks: every claim succeeds, so two runs of the same shards would both make them. Give array jobs
    separate parts (`--shards`), or let one Ray driver distribute the shards.
    """

    def __init__(self, url: str) -> None:
        url_to_fs = optional("fsspec.core", "a dataset behind a URL").url_to_fs
        self.where = url.rstrip("/")
        try:
            self._files, root = url_to_fs(self.where)
        except (ImportError, ValueError) as error:  # the protocol's own package, or no such protocol
            raise DiveError(
                f"{url} cannot be reached: {brief(error)}; install what fsspec names, or correct it"
            ) from error
        self._root = root.rstrip("/")

    def write(self, name: str, data: bytes, shard: int | None = None) -> None:
        path = self._path(name)
        with self._errors(name):
            self._files.makedirs(posixpath.dirname(path), exist_ok=True)
            self._files.pipe_file(path, data)

    def read(self, name: str) -> bytes:
        with self._errors(name):
            data: bytes = self._files.cat_file(self._path(name))
        return data

    def size(self, name: str) -> int | None:
        with self._errors(name):
            try:
                return int(self._files.info(self._path(name))["size"])
            except FileNotFoundError:
                return None

    def folder(self, name: str) -> Iterator[tuple[str, int]]:
        with self._errors(name):
            self._files.invalidate_cache(self._path(name))  # others write there too
            try:
                entries = self._files.ls(self._path(name), detail=True)
            except FileNotFoundError:
                return
        yield from ((self._name(e["name"]), int(e["size"])) for e in entries if e["type"] == "file")

    def walk(self) -> Iterator[str]:
        with self._errors(""):
            for _, _, files in self._files.walk(self._root, detail=True):
                names = (self._name(entry["name"]) for entry in files.values())
                yield from sorted(name for name in names if not any(map(is_incidental, name.split("/"))))

    def remove(self, name: str) -> None:
        with self._errors(name):
            self._files.rm_file(self._path(name))

    def claim(self, shard: int | None) -> Release | None:
        return lambda: None

    def tidy(self) -> None:
        """Nothing unfinished is kept here."""

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _name(self, path: str) -> str:
        return path.removeprefix(self._root).lstrip("/")

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Turns an exception of a provider's library into one sentence; a missing file stays `FileNotFoundError`."""
        try:
            yield
        except (FileNotFoundError, DiveError):
            raise
        except Exception as error:
            raise DiveError(
                f"{self.where}/{name}: {type(error).__name__}: {brief(error)}; check the address, credentials and network, "
                "then rerun: finished work is kept"
            ) from error
