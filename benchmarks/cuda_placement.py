"""What onnxruntime's CUDA provider makes of our graphs, without a GPU: `python -m benchmarks.cuda_placement GRAPH ...`.

Opens each graph as the engine does on CUDA, with stand-ins for the CUDA libraries (`tests/support/cuda_double.py`), and
counts the nodes of the graph that onnxruntime then runs, by provider and operator; beside it, the same of the file as
exported. No kernel runs. With `--sd15 FOLDER`, the UNet and the decoder of Stable Diffusion 1.5's configuration too,
random weights, fp16, exported there unless they lie there (6 GB of memory). Needs onnxruntime-gpu for CUDA 13 and a C
compiler.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.machine import metadata, options_of, write
from dive_fast.types import DiveError
from tests.support.cuda_double import PROVIDER, cuda_double

PACKAGES = ("onnxruntime-gpu", "onnx", "torch")
PARTS = {"unet": "unet", "vae_decoder": "vae"}


def sd15_graphs(folder: Path) -> list[Path]:
    from dive_export import GraphOptions
    from dive_export.graphs import graphs
    from dive_export.onnx import export_graph
    from dive_fast.bench.sd15 import SIZE, sd15

    paths = {part: folder / part / "model.onnx" for part in PARTS}
    for part, path in paths.items():
        if path.exists():
            continue
        made, _ = graphs(sd15(real=(PARTS[part],)), SIZE, 144, GraphOptions("kv-cache", "fp16"))
        path.parent.mkdir(parents=True, exist_ok=True)
        export_graph(next(one for one in made if one.part == part), path, "fp16")
    return list(paths.values())


def opened(path: Path, rewritten: bool) -> dict[str, Any]:
    """Opens a graph on the CUDA provider, `rewritten` as the engine does it; what onnxruntime runs then."""
    import onnx
    import onnxruntime
    import torch

    from dive_fast.engines.onnx_session import Place, cuda_provider, open_session, placement

    where = Place("cuda", torch.device("cuda", 0), [cuda_provider(0, stream=1)])
    with TemporaryDirectory(dir=path.parent) as folder:
        optimized = Path(folder) / "model.onnx"
        if rewritten:
            session = open_session(path, where, 1, optimized)
        else:
            options = onnxruntime.SessionOptions()
            options.optimized_model_filepath = str(optimized)
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
            session = onnxruntime.InferenceSession(str(path), options, providers=where.providers)
        graph = onnx.load(str(optimized), load_external_data=False).graph
    placed = {provider: sum(ops.values()) for provider, ops in placement(session).items()}
    ops = Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in graph.node)
    copies = ops["MemcpyToHost"] + ops["MemcpyFromHost"]
    run = {"nodes": len(graph.node), "placed": placed, "copies to and from the host": copies}
    return run | {"operators": dict(ops.most_common()), "transposes": transposes(graph)}


def transposes(graph: Any) -> dict[str, int]:
    """Counts transposes by what makes and what reads their tensors."""
    makers = {name: node.op_type for node in graph.node for name in node.output}
    readers = {name: node.op_type for node in graph.node for name in node.input}
    found = (node for node in graph.node if node.op_type == "Transpose")
    named = Counter(
        f"{makers.get(node.input[0], 'input')} {list(node.attribute[0].ints)} {readers.get(node.output[0], 'output')}"
        for node in found
    )
    return dict(named.most_common())


def with_stand_ins() -> int:
    """Runs this program again where the dynamic linker finds the stand-ins; returns its exit code."""
    package = importlib.util.find_spec("onnxruntime")
    provider = Path(package.origin).parent / "capi" / PROVIDER if package and package.origin else Path(PROVIDER)
    if not provider.exists():
        raise DiveError(f"{provider} is missing: pip install onnxruntime-gpu, in place of onnxruntime")
    with TemporaryDirectory() as folder:
        cuda_double(provider, Path(folder))
        environment = {**os.environ, "LD_LIBRARY_PATH": folder, "DIVE_CUDA_DOUBLE": "1"}
        command = [sys.executable, "-m", "benchmarks.cuda_placement", *sys.argv[1:]]
        return subprocess.run(command, env=environment, check=False).returncode


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("graphs", type=Path, nargs="*", help="ONNX files of an engine folder")
    parser.add_argument(
        "--sd15", type=Path, metavar="FOLDER", help="also SD 1.5's UNet and decoder, exported to FOLDER"
    )
    options = parser.parse_args()
    try:
        if "DIVE_CUDA_DOUBLE" not in os.environ:
            sys.exit(with_stand_ins())
        paths = [*options.graphs, *(sd15_graphs(options.sd15) if options.sd15 else ())]
        found = [
            {"graph": "/".join(path.parts[-3:-1]), "rewritten": opened(path, True), "as exported": opened(path, False)}
            for path in paths
        ]
    except DiveError as error:
        sys.exit(str(error))
    for one in found:
        for how in ("as exported", "rewritten"):
            run: Any = one[how]
            print(
                f"{one['graph']} {how}: { ({**run, 'operators': ..., 'transposes': sum(run['transposes'].values())}) }"
            )
    write(options.out, metadata(PACKAGES, device="stand-in CUDA libraries, no kernel ran", graphs=found))


if __name__ == "__main__":
    main()
