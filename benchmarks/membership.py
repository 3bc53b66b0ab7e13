"""Do an encoder's images betray whom it was trained on? `python -m benchmarks.membership --encoder E ... --out FILE`.

People whom the encoder was trained on (`--members`) and as many others (`--others`, rendered or photographed alike) are
encoded from their RGB photos, and the model draws both sides of pairs of them. The attacker has the images and one photo set
of each person: is a person's image nearer to the person's photos, in the features of a ReID net (`--net`, trained on
nobody of them), when the encoder knew the person? The area under the curve (AUC) of that guess is 0.5 for no leak, 1 for
certainty; the interval is a bootstrap over people. As the membership test of Shokri et al. (arXiv 1610.05820).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import metadata, options_of, write
from dive_fast.data.sets import read_photos
from dive_fast.encoder.encode import encode_onto
from dive_fast.encoder.folder import load_encoder
from dive_fast.experiments.config import PairConfig
from dive_fast.experiments.pipeline import build_engine, make_pairs
from dive_fast.quality.reid_extractor import ReidExtractor, open_extractor
from dive_fast.sampling.config import Sampling
from dive_fast.types import InputError, Sample

F64 = NDArray[np.float64]
DRAWS = 2000  # of the bootstrap


def first_people(specs: Sequence[str], people: int) -> list[Sample]:
    """The RGB photos of the first `people` of sets like those of `dive-fast encode --photos`."""
    photos = [sample for sample in read_photos(*specs) if sample.modality == "rgb"]
    wanted = {*sorted({sample.pid for sample in photos})[:people]}
    if len(wanted) < people:
        raise InputError(f"{', '.join(specs)} have {len(wanted):,} people with RGB photos, not {people:,}")
    return [sample for sample in photos if sample.pid in wanted]


def likeness(net: ReidExtractor, images: Sequence[Sample], photos: Sequence[Sample], pids: Sequence[str]) -> F64:
    """Mean cosine of each person's images with the mean feature of the person's photos, float64 [people]."""
    drawn, real = (net.features(samples, False).identity.astype(np.float64) for samples in (images, photos))
    of_drawn, of_real = (np.array([sample.pid for sample in samples]) for samples in (images, photos))
    found = []
    for pid in pids:
        centre = real[of_real == pid].mean(axis=0)
        found.append(float((drawn[of_drawn == pid] @ centre).mean() / np.linalg.norm(centre)))
    return np.array(found)


def auc(members: F64, others: F64) -> float:
    """The probability that a member's score is above another's, ties counted half."""
    above = members[:, None] - others
    return float((above > 0).mean() + (above == 0).mean() / 2)


def interval(members: F64, others: F64) -> list[float]:
    """The 95 % interval of `auc` by a bootstrap over people."""
    rng = np.random.default_rng(0)
    draws = [auc(rng.choice(members, len(members)), rng.choice(others, len(others))) for _ in range(DRAWS)]
    return [round(float(value), 3) for value in np.quantile(draws, [0.025, 0.975])]


def measure(options: Any, work: Path) -> dict[str, Any]:
    encoder, net = load_encoder(options.encoder), open_extractor(options.net)
    groups = {name: first_people(getattr(options, name), options.people) for name in ("members", "others")}
    pids = {name: sorted({sample.pid for sample in photos}) for name, photos in groups.items()}
    if len(encoder.known(pids["members"])) < options.people or encoder.known(pids["others"]):
        raise InputError("--members must be people of the encoder's training, and --others must not")
    photos = [*groups["members"], *groups["others"]]
    adapter, _ = encode_onto(encoder, options.onto, photos, work / "adapter")
    engine = build_engine(options.model, adapter, work, PairConfig.rows)
    config = PairConfig(mode="synthetic", per_camera=options.images, sampling=Sampling(15))
    made, _ = make_pairs(engine, photos, Path(), work / "pairs", config)
    found: dict[str, Any] = {}
    for modality in ("rgb", "ir"):
        images = {
            name: [sample for sample in made if sample.modality == modality and sample.pid in own]
            for name, own in pids.items()
        }
        scores = {name: likeness(net, images[name], groups[name], pids[name]) for name in groups}
        means = {name: round(float(values.mean()), 4) for name, values in scores.items()}
        found[modality] = {"auc": round(auc(**scores), 3), "interval": interval(**scores), "likeness": means}
        print(modality, found[modality], flush=True)
    return found


def main() -> None:
    parser = options_of(__doc__, people=150, images=2)
    for name in ("encoder", "onto", "model", "net"):
        parser.add_argument(f"--{name}", default=None if name == "net" else "pocket", required=name == "net")
    for name in ("members", "others"):
        parser.add_argument(f"--{name}", action="append", required=True, help="LAYOUT:PATH[,prefix=P]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        result = measure(options, Path(work))
    about = metadata(("torch", "onnxruntime", "numpy"), people=options.people, images=options.images)
    write(options.out, about | {"auc": result})


if __name__ == "__main__":
    main()
