"""A linear probe that tells infrared from visible features, and its accuracy on people outside its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dive_fast.environment.optional import optional

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]
DECAY = 1e-3  # of the weights, beside a mean loss of about 1e-2: holds them where the classes are separable
FOLDS = 5


@dataclass(frozen=True)
class ProbeReport:
    """On held-out people: area under the ROC curve, balanced accuracy, and the probability of each image's own modality."""

    auc: float
    accuracy: float
    own: F32


def fit(features: F32, infrared: Bools) -> Any:
    """Fits scikit-learn's logistic regression with weight decay, both classes weighted equally, in float64."""
    regression = _sklearn("linear_model").LogisticRegression(
        C=1 / (DECAY * len(features)), class_weight="balanced", fit_intercept=False, tol=1e-8, max_iter=10_000
    )
    return regression.fit(_inputs(features), infrared)


def probability_infrared(probe: Any, features: F32) -> F32:
    """Returns the probability of each row to be infrared, 0..1."""
    return probe.predict_proba(_inputs(features))[:, 1].astype(np.float32)


def held_out(features: F32, infrared: Bools, people: NDArray[np.int64], folds: int = FOLDS) -> ProbeReport:
    """Judges every person by a probe fitted to the others; needs two people in each modality.

    People are dealt to `folds` groups in turn, those with infrared images first: every fit then sees both modalities.
    """
    names, number = np.unique(people, return_inverse=True)
    order = np.argsort(~np.isin(names, people[infrared]), kind="stable")
    fold = np.argsort(order, kind="stable")[number] % folds
    probability = np.empty(len(features), np.float32)
    for k in range(folds):
        test = fold == k
        if test.any():
            probability[test] = probability_infrared(fit(features[~test], infrared[~test]), features[test])
    own = np.where(infrared, probability, 1 - probability)
    accuracy = np.mean([(own[side] > 0.5).mean() for side in (infrared, ~infrared)])
    area = _sklearn("metrics").roc_auc_score(infrared, probability)
    return ProbeReport(float(area), float(accuracy), own)


def _sklearn(module: str) -> Any:
    return optional(f"sklearn.{module}", "score modality", "leave modality out of --scores")


def _inputs(features: F32) -> F64:
    scaled = features.astype(np.float64) * np.sqrt(features.shape[1])
    return np.concatenate([scaled, np.ones((len(scaled), 1))], axis=1)
