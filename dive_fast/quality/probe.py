"""A linear probe that tells infrared from visible features, and how well it does on people that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dive_fast.types import DiveError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]
DECAY = 1e-3  # of the weights, beside a mean loss of about 1e-2: holds them where the classes are separable
FOLDS = 5


@dataclass(frozen=True)
class Probe:
    """Logistic regression on unit features scaled to entries of about 1."""

    weights: F64  # [D + 1], the last one is the bias

    def infrared(self, features: F32) -> F32:
        """How probable it is that each row is infrared, 0..1."""
        return _sigmoid(_inputs(features) @ self.weights).astype(np.float32)


@dataclass(frozen=True)
class ProbeReport:
    """On held-out people: area under the ROC curve, balanced accuracy, and the probability of each image's own modality."""

    auc: float
    accuracy: float
    own: F32


def fit(features: F32, infrared: Bools) -> Probe:
    """Maximum likelihood with weight decay, both classes weighing the same, by scipy's L-BFGS in float64."""
    try:
        from scipy.optimize import minimize  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        raise DiveError(
            "score modality is fitted by scipy, which is not installed; pip install 'dive-fast[reid]', or leave modality "
            "out of --scores"
        ) from error
    inputs, wanted = _inputs(features), infrared.astype(np.float64)
    share = infrared.mean()
    balance = np.where(infrared, 0.5 / share, 0.5 / (1 - share)) / len(infrared)

    def loss(weights: F64) -> tuple[float, F64]:
        """Cross entropy plus decay, and the gradient."""
        logits = inputs @ weights
        value = balance @ (np.logaddexp(0, logits) - wanted * logits) + 0.5 * DECAY * weights @ weights
        return float(value), inputs.T @ (balance * (_sigmoid(logits) - wanted)) + DECAY * weights

    found = minimize(
        loss, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B", options={"gtol": 1e-8, "ftol": 1e-15}
    )
    return Probe(found.x)


def _sigmoid(logits: F64) -> F64:
    return np.exp(-np.logaddexp(0, -logits))


def held_out(features: F32, infrared: Bools, people: NDArray[np.int64], folds: int = FOLDS) -> ProbeReport:
    """Every person is judged by a probe that was fitted to the others; needs two people in each modality.

    People are dealt to `folds` groups in turn, those with infrared images first, so that every fit sees both modalities.
    """
    names, number = np.unique(people, return_inverse=True)
    order = np.argsort(~np.isin(names, people[infrared]), kind="stable")
    fold = np.argsort(order, kind="stable")[number] % folds
    probability = np.empty(len(features), np.float32)
    for k in range(folds):
        test = fold == k
        if test.any():
            probability[test] = fit(features[~test], infrared[~test]).infrared(features[test])
    own = np.where(infrared, probability, 1 - probability)
    accuracy = np.mean([(own[side] > 0.5).mean() for side in (infrared, ~infrared)])
    return ProbeReport(area_under_curve(probability, infrared), float(accuracy), own)


def area_under_curve(values: F32, positive: Bools) -> float:
    """The probability that a positive row has the higher value than a negative one; ties count half."""
    levels, level = np.unique(values, return_inverse=True)
    ones = np.bincount(level[positive], minlength=len(levels))
    zeros = np.bincount(level[~positive], minlength=len(levels))
    below = np.cumsum(zeros) - zeros
    return float((ones * (below + zeros / 2)).sum() / (ones.sum() * zeros.sum()))


def _inputs(features: F32) -> F64:
    scaled = features.astype(np.float64) * np.sqrt(features.shape[1])
    return np.concatenate([scaled, np.ones((len(scaled), 1))], axis=1)
