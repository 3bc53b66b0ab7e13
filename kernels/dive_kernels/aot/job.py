"""One compilation as plain data, so that another process can do it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dive_kernels.package import Constant, Kernel, identity

if TYPE_CHECKING:
    from dive_kernels.aot.examples import Example
    from dive_kernels.launch import Launch


@dataclass(frozen=True)
class Job:
    """What `Launch` says of a compilation, beside what it is called and which files are wanted."""

    name: str
    op: str
    dtype: str
    key: dict[str, int]
    architecture: int
    kernel: str
    arguments: tuple[tuple[str, str], ...]
    constants: dict[str, Constant]
    warps: int
    stages: int
    source_sha256: str
    keep_ptx: bool = False

    @classmethod
    def of(cls, example: Example, launch: Launch, architecture: int, source_sha256: str) -> Job:
        key = "".join(f"-{name.replace('_', '')}{value}" for name, value in example.key.items())
        function = launch.kernel.partition(":")[2].removesuffix("_kernel")
        part = "" if function == example.op else f"-{function}"
        return cls(
            name=f"{example.op}{part}{key}-{example.dtype}-sm{architecture}",
            op=example.op,
            dtype=example.dtype,
            key=example.key,
            architecture=architecture,
            kernel=launch.kernel,
            arguments=tuple(launch.signature.items()),
            constants=launch.constants,
            warps=launch.warps,
            stages=launch.stages,
            source_sha256=source_sha256,
            keep_ptx=example.ptx,
        )

    def build(self, compiler: str) -> str:
        """Hash of everything that the result depends on; `compiler` says its version and options."""
        data = [self.identity, self.architecture, self.source_sha256, self.keep_ptx, compiler]
        return hashlib.sha256(json.dumps(data).encode()).hexdigest()

    @property
    def identity(self) -> tuple[object, ...]:
        return identity(self.kernel, self.arguments, self.constants, self.warps, self.stages)

    def named_like(self, kernel: Kernel) -> Kernel:
        """A kernel from an earlier index under this job's name and key: those are no part of the compilation."""
        return replace(kernel, name=self.name, op=self.op, dtype=self.dtype, key=self.key)
