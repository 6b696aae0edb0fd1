"""A CPU emulator of the CUDA sources behind the interface of the CUDA driver, so that plans run on it unchanged.

compiler  the .cu files through g++, with `cuda_shim` in front
library   a compiled module: its kernels, and a launch of one
memory    device memory: host memory between inaccessible pages
driver    the driver functions that `backends.cuda` calls
backend   the CUDA backend over that driver
"""
