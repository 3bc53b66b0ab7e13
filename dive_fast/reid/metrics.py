"""The public name of the ReID metrics, which scripts import: `dive_fast.reid.metrics.evaluate`."""

from dive_fast.reid.evaluation.metrics import QueryScores, RankMetrics, evaluate, score_trials, summary

__all__ = ["QueryScores", "RankMetrics", "evaluate", "score_trials", "summary"]
