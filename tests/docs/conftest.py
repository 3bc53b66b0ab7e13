"""The dataset and the real set that docs/quality.md works on."""

from tests.support.quality import dataset, real

__all__ = ["dataset", "real"]
