"""GPU kernels beside their references. One op = one folder: `reference.py` defines it, `api.py` chooses."""
