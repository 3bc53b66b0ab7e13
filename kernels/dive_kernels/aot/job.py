"""One compilation by Triton as plain data, which another process can run; and the assembler's report of any."""

from __future__ import annotations

import hashlib
import json
import re
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


def resources(log: str) -> tuple[int, int]:
    """Returns registers and spilled bytes (stores and loads) a thread of the one kernel in a report of `ptxas -v`."""
    registers = re.search(r"Used (\d+) registers", log)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if registers is None or spills is None:
        raise ValueError(f"the assembler reported no registers and spills: {log.strip()[:200]!r}")
    return int(registers[1]), int(spills[1]) + int(spills[2])
