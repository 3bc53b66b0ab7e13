"""Real sets and synthesized pairs as one new tree that trainers read, and a dataset's manifest as a Parquet table."""

from dive_fast.merge.inputs import Dataset, Inputs, parse_dataset, read_inputs
from dive_fast.merge.plan import MergeConfig, Survey, survey
from dive_fast.merge.table import write_parquet
from dive_fast.merge.write import asked_for, finished_report, merge

__all__ = [
    "Dataset",
    "Inputs",
    "MergeConfig",
    "Survey",
    "asked_for",
    "finished_report",
    "merge",
    "parse_dataset",
    "read_inputs",
    "survey",
    "write_parquet",
]
