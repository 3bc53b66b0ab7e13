"""dive_fast: RGB-infrared pairs of persons in bulk, from identities learned in RGB only."""

__version__ = "0.1.0"
