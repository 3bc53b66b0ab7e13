"""The walk from end to end, for the demo and the study: calls every room; only commands and benchmarks call it."""
