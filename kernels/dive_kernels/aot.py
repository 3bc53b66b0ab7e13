"""Compiles the Triton kernels ahead of time into cubins, one file a kernel, type and architecture. Needs no GPU.

`python -m dive_kernels.aot OUT` (what `make kernels` runs through CMake) writes OUT/<name>.cubin and OUT/kernels.json,
which says how to launch each of them. `--check` only says whether it could.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Compute capability -> PTX version. Left alone, Triton 3.9 emits PTX 9.4, which CUDA 13.0's ptxas and driver 580
# refuse; these versions know the architecture, and every driver for it reads them.
PTX_VERSIONS = {80: 80, 89: 80, 90: 80, 100: 87, 120: 87}
TYPES = {"fp32": "*fp32", "fp16": "*fp16", "bf16": "*bf16"}
ALIGNMENT = 16  # bytes; what torch allocates is aligned to more, and unaligned loads would not be vectorised


@dataclass(frozen=True)
class Variant:
    """One compilation: predictions in `eps_type`, latents in float32, first or second order, for one architecture."""

    eps_type: str
    second_order: bool
    capability: int

    @property
    def name(self) -> str:
        return f"solver_step-{self.eps_type}-order{1 + self.second_order}-sm{self.capability}"


def variants(capabilities: Sequence[int]) -> Iterator[Variant]:
    for capability in capabilities:
        for eps_type in TYPES:
            for second_order in (False, True):
                yield Variant(eps_type, second_order, capability)


def missing() -> str | None:
    """Why nothing can be compiled here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install 'dive-fast[kernels]'"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 replaces the compiler by an interpreter; unset it"
    return None


def compile_variant(variant: Variant) -> tuple[bytes, dict[str, Any]]:
    """The cubin and what a launch needs to know."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dive_kernels.solver_step.fused import solver_step_kernel
    from dive_kernels.solver_step.plan import BLOCK

    eps, latents = TYPES[variant.eps_type], "*fp32"
    constants = {"HAS_PREVIOUS": variant.second_order, "BLOCK": BLOCK}
    signature = {
        "eps_uncond_ptr": eps,
        "eps_cond_ptr": eps,
        **dict.fromkeys(("x_ptr", "previous_ptr", "next_ptr", "x0_ptr"), latents),
        "count": "i64",
        **dict.fromkeys(("guidance", "inverse_alpha", "sigma", "keep", "add", "history"), "fp32"),
        **dict.fromkeys(constants, "constexpr"),
    }
    pointers = [i for i, kind in enumerate(signature.values()) if kind.startswith("*")]
    aligned = {(i,): [["tt.divisibility", ALIGNMENT]] for i in pointers}
    compiled = triton.compile(
        ASTSource(solver_step_kernel, signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", variant.capability, 32),
        options={"ptx_version": PTX_VERSIONS[variant.capability], "enable_fp_fusion": True},
    )
    launch = {
        "function": compiled.metadata.name,
        "arguments": {name: kind for name, kind in signature.items() if kind != "constexpr"},
        "constants": constants,
        "elements_per_program": BLOCK,
        "pointer_alignment": ALIGNMENT,
        "warps": compiled.metadata.num_warps,
        "shared_bytes": compiled.metadata.shared,
        "null_pointers_appended": 2,  # Triton's scratch arguments
        "capability": variant.capability,
        "triton": triton.__version__,
    }
    return compiled.asm["cubin"], launch


def compile_all(out: Path, capabilities: Sequence[int]) -> list[str]:
    """Writes every cubin, then `kernels.json`; returns the names."""
    out.mkdir(parents=True, exist_ok=True)
    table = {}
    for variant in variants(capabilities):
        cubin, table[variant.name] = compile_variant(variant)
        (out / f"{variant.name}.cubin").write_bytes(cubin)
    temporary = out / ".kernels.json.tmp"
    temporary.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n")
    os.replace(temporary, out / "kernels.json")
    return sorted(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dive_kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", help="folder for the cubins")
    parser.add_argument("--arch", type=int, nargs="+", choices=PTX_VERSIONS, default=list(PTX_VERSIONS))
    parser.add_argument("--check", action="store_true", help="only say whether the kernels could be compiled here")
    options = parser.parse_args(arguments)
    reason = missing()
    if reason:
        print(f"dive_kernels.aot: {reason}", file=sys.stderr)
        return 1
    if options.check:
        return 0
    if options.out is None:
        parser.error("the folder for the cubins is missing")
    names = compile_all(options.out, options.arch)
    print(f"{len(names)} cubins in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
