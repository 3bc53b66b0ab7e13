"""What an export of Stable Diffusion 1.5's networks takes, with random weights: `python -m benchmarks.export --out FILE`.

Each graph is built and exported in a process of its own, so a peak is that graph's alone, and its record is added to FILE
as soon as it is there: a rerun goes on where the last one stopped. The UNets are measured against torch at one row, and
the bank too; nothing is downloaded. Needs about 16 GB of memory and 4 GB of disk.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.machine import metadata, options_of, write
from dive_fast.bench.sd15 import SIZE, sd15

ROWS_MAX = 144
PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")
CHECKED = ("prompt_bank", "unet")
NEEDED = {"prompt_bank": "unet", "vae_decoder": "vae", "vae_encoder": "vae"}  # the network that a part is of
VARIANTS = {"plain-fp32": ("plain", "fp32"), "bank-fp16": ("kv-cache", "fp16")}
GRAPHS = (  # what matters most comes first, should the run be cut short
    ("plain-fp32", "unet"),
    ("bank-fp16", "unet"),
    ("bank-fp16", "prompt_bank"),
    *((variant, part) for variant in VARIANTS for part in ("text_encoder", "vae_decoder", "vae_encoder")),
)


def measure(variant: str, part: str, folder: Path) -> dict[str, Any]:
    """Builds and exports one graph to `folder`; its record."""
    import onnx

    from dive_export import GraphOptions
    from dive_export.graphs import graphs
    from dive_export.onnx import export_graph, measure_parity
    from dive_export.resources import Resources

    form, precision = VARIANTS[variant]
    options = GraphOptions(form, precision)  # type: ignore[arg-type]
    with Resources() as building:
        parts, _ = graphs(sd15(real=(NEEDED.get(part, part),)), SIZE, ROWS_MAX, options)
        (graph,) = [graph for graph in parts if graph.part == part]
        del parts
    path = folder / "model.onnx"
    with Resources() as exporting:
        export_graph(graph, path, precision)
    nodes = Counter(node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node)
    record: dict[str, Any] = {
        "variant": variant,
        "part": part,
        "optimizations": options.applied,
        "build s": round(building.seconds, 1),
        "export s": round(exporting.seconds, 1),
        "export peak MB": round(exporting.peak_mb or 0),
        "files MB": {file.name: round(file.stat().st_size / 1e6, 2) for file in sorted(folder.iterdir())},
        "nodes": sum(nodes.values()),
        "node kinds": dict(nodes.most_common()),
    }
    if part in CHECKED:
        with Resources() as checking:
            parity = measure_parity(graph, path, precision, rows=[1])
        took = {"parity s": round(checking.seconds, 1), "parity peak MB": round(checking.peak_mb or 0)}
        record |= {"parity": asdict(parity), **took}
    return record


def main() -> None:
    parser = options_of(__doc__)
    parser.set_defaults(out=Path("benchmarks/results/export-sd15.json"))
    parser.add_argument("--work", type=Path, help="folder for the graphs while measured (default: a temporary one)")
    parser.add_argument("--only", nargs=2, metavar=("VARIANT", "PART"), help="print this graph's record, write nothing")
    options = parser.parse_args()
    if options.only:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            print(json.dumps(measure(*options.only, Path(folder))))
        return
    result = json.loads(options.out.read_text()) if options.out.exists() else {"graphs": []}
    done = {(record["variant"], record["part"]) for record in result["graphs"]}
    for variant, part in GRAPHS:
        if (variant, part) in done:
            continue
        work = ("--work", options.work) if options.work else ()
        command = (sys.executable, "-m", "benchmarks.export", "--only", variant, part, *work)
        record = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
        model = "Stable Diffusion 1.5's configuration, random weights"
        result = metadata(PACKAGES, model=model, size=SIZE, graphs=[*result["graphs"], record])
        write(options.out, result)
        print(f"{variant} {part}: {record['export s']} s, {record['export peak MB']} MB", flush=True)


if __name__ == "__main__":
    main()
