"""What tests of builders and quantisers share."""

from tests.support.tensorrt_double import double

__all__ = ["double"]  # a fixture
