"""What the server of the crash tests imports once, as every child would: seconds of each run.

The commands import most of it only when they need it.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from pkgutil import walk_packages

import dive_fast

OTHERS = (
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.schedulers.scheduling_dpmsolver_multistep",
    "dive_kernels.fp8",
    "matplotlib.pyplot",
    "PIL.ImageFont",
    "scipy.stats",
    "sklearn.linear_model",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "transformers.models.resnet.modeling_resnet",
)

for name in [module.name for module in walk_packages(dive_fast.__path__, "dive_fast.")] + [*OTHERS]:
    with suppress(ImportError):  # of an extra that is not installed
        import_module(name)
