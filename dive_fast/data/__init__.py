"""Readers of person re-identification sets, all giving sorted `Sample`s, and writers of trainers' layouts."""

from dive_fast.data.folder import merge_samples, read_folder
from dive_fast.data.images import open_image
from dive_fast.data.market import read_market
from dive_fast.data.sysu import read_ids, read_sysu
from dive_fast.data.writers import SysuTreeWriter

__all__ = ["SysuTreeWriter", "merge_samples", "open_image", "read_folder", "read_ids", "read_market", "read_sysu"]
