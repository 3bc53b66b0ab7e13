"""Compiles the kernels ahead of time, without a GPU, into the folder that `dive_kernels.package` reads."""
