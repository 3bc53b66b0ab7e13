"""Stand-ins for the CUDA libraries that onnxruntime's CUDA provider links: it opens sessions without a GPU.

They report one GPU of compute capability 9.0, whose memory is the host's. Every other function succeeds and does nothing,
so kernels "run" and leave what was in memory: placement and graphs are real, numbers are not.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from dive_fast.types import DiveError

PROVIDER = "libonnxruntime_providers_cuda.so"
CUDNN = "libcudnn.so.9"  # newer releases open it by name, its functions too
HEADER = r"""
#include <stdlib.h>
#include <string.h>
static int take(void **at, size_t bytes) { return (*at = aligned_alloc(256, (bytes + 255) / 256 * 256)) ? 0 : 2; }
"""
ALLOCATE, FREE = "(void **at, size_t bytes) { return take(at, bytes); }", "(void *at) { free(at); return 0; }"
COPY = "(void *to, void *from, size_t bytes) { memcpy(to, from, bytes); return 0; }"
FILL = "(void *to, int value, size_t bytes) { memset(to, value, bytes); return 0; }"
# CUDA 13's cudaDeviceProp up to the multiprocessors; the rest is zero.
PROPERTIES = r"""(struct { char name[256], ids[24]; unsigned mask; size_t memory, shared; int registers, warp; size_t pitch;
    int threads, block[3], grid[3]; size_t constant; int major, minor; size_t aligned, pitched; int multiprocessors; } *p) {
    memset(p, 0, 1008);
    p->memory = 141ul << 30, p->shared = 48 << 10, p->registers = 65536, p->warp = 32, p->threads = 1024;
    p->block[0] = p->block[1] = 1024, p->block[2] = 64, p->grid[0] = 0x7fffffff, p->grid[1] = p->grid[2] = 65535;
    p->major = 9, p->multiprocessors = 132;
    return 0;
}"""
BODIES = {
    "cudaGetDeviceCount": "(int *count) { *count = 1; return 0; }",
    "cudaGetDevice": "(int *device) { *device = 0; return 0; }",
    "cudaGetDeviceProperties": PROPERTIES,
    "cudaDeviceGetAttribute": "(int *value, int which) { *value = which == 75 ? 9 : which == 76 ? 0 : 132; return 0; }",
    "cudaDriverGetVersion": "(int *version) { *version = 13000; return 0; }",
    "cudaRuntimeGetVersion": "(int *version) { *version = 13000; return 0; }",
    "cudaMemGetInfo": "(size_t *free, size_t *all) { *free = *all = 141ul << 30; return 0; }",
    **dict.fromkeys(("cudaMalloc", "cudaMallocHost", "cudaHostAlloc"), ALLOCATE),
    **dict.fromkeys(("cudaFree", "cudaFreeHost"), FREE),
    **dict.fromkeys(("cudaMemcpy", "cudaMemcpyAsync"), COPY),
    **dict.fromkeys(("cudaMemset", "cudaMemsetAsync"), FILL),
}


def cuda_double(provider: Path, folder: Path) -> None:
    """Compiles the libraries that the file `provider` asks for into `folder`, to be named by LD_LIBRARY_PATH."""
    missing = [tool for tool in ("cc", "nm", "readelf") if shutil.which(tool) is None]
    if missing:
        raise DiveError(f"no stand-in CUDA libraries: {' and '.join(missing)} not found; install a C compiler")
    libraries = _functions(provider)
    if "libcudart.so.13" not in libraries:
        raise DiveError(f"{provider} is not for CUDA 13, whose structures the stand-ins have; install another release")
    for name, functions in libraries.items():
        source, versions = folder / "source.c", folder / "versions"
        source.write_text(HEADER + "".join(_function(one) for one in sorted(functions)))
        versions.write_text(f"{name} {{ global: *; }};")
        command = ("cc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{name}", f"-Wl,--version-script={versions}")
        subprocess.run([*command, "-o", folder / name, source], check=True)


def _functions(provider: Path) -> dict[str, set[str]]:
    """Returns the CUDA functions that a provider calls, by library."""
    needed, symbols = (
        subprocess.run([*tool, provider], capture_output=True, text=True, check=True).stdout
        for tool in (("readelf", "-d"), ("nm", "-D", "--undefined-only"))
    )
    found: dict[str, set[str]] = {name: set() for name in re.findall(r"\[(lib(?:cu|nv)\S+)\]", needed)}
    for symbol in symbols.split():
        name, _, library = symbol.partition("@")
        if re.match(r"(__)?(cu|nv)[a-z]*[A-Z]", name):
            found.setdefault(library or "libcuda.so.1", set()).add(name)
    names = re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", provider.read_bytes())
    found.setdefault(CUDNN, set()).update({name.decode() for name in names}, {"cudnnGetVersion"})
    return found


def _function(name: str) -> str:
    if name in BODIES:
        return f"int {name}{BODIES[name]}\n"
    if "Error" in name or "Status" in name:
        return f'const char *{name}() {{ return "{name}"; }}\n'
    if "Create" in name:
        return f"int {name}(void **made) {{ return take(made, 4096); }}\n"
    return f"long {name}() {{ return {91600 if name == 'cudnnGetVersion' else 0}; }}\n"
