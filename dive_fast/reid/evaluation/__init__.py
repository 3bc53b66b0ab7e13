"""ReID evaluation: metrics, protocols, re-ranking, feature files, checkpoints of other projects."""
