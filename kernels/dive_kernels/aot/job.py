"""One compilation by Triton as plain data, which another process can run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

from dive_kernels.package import Compilation, Kernel


@dataclass(frozen=True)
class Job(Compilation):
    """`keep_ptx` writes the PTX beside the cubin."""

    keep_ptx: bool = False

    def build(self, compiler: str) -> str:
        """Returns the hash of everything that the result depends on; `compiler` holds its version and options."""
        data = [self.identity, self.architecture, self.source_sha256, self.keep_ptx, compiler]
        return hashlib.sha256(json.dumps(data).encode()).hexdigest()

    def named_like(self, kernel: Kernel) -> Kernel:
        """Returns a kernel of an earlier index under this job's name and key, which the compilation does not depend on."""
        return replace(kernel, name=self.name, op=self.op, dtype=self.dtype, key=self.key)
