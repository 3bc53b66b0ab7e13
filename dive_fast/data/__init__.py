"""Readers of person re-identification sets, all giving sorted `Sample`s, and writers of trainers' layouts."""

from dive_fast.data.folder import merge_samples, read_folder
from dive_fast.data.images import open_image
from dive_fast.data.llcm import read_llcm
from dive_fast.data.market import read_market
from dive_fast.data.msmt17 import read_msmt17
from dive_fast.data.prepared import open_prepared, prepared_images, prepared_samples
from dive_fast.data.regdb import read_regdb
from dive_fast.data.sets import NamedSet, SetSpec, mix, read_mixture, read_set
from dive_fast.data.sysu import read_ids, read_sysu
from dive_fast.data.writers import SysuTreeWriter

__all__ = [
    "NamedSet",
    "SetSpec",
    "SysuTreeWriter",
    "merge_samples",
    "mix",
    "open_image",
    "open_prepared",
    "prepared_images",
    "prepared_samples",
    "read_folder",
    "read_ids",
    "read_llcm",
    "read_market",
    "read_mixture",
    "read_msmt17",
    "read_regdb",
    "read_set",
    "read_sysu",
]
