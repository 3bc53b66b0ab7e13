"""What every results file says of where and on what it was measured, and calls timed in turns: `dive_fast.bench`'s."""

from dive_fast.bench.machine import commit, processor, versions
from dive_fast.bench.timing import interleaved

__all__ = ["commit", "interleaved", "processor", "versions"]
