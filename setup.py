"""Builds the native kernels as one optional extension: without a compiler the install succeeds and MLX does the work.

Every instruction set is compiled into the one binary and chosen when it runs. The rest is in pyproject.toml.
"""

from glob import glob

import pybind11
from setuptools import Extension, setup

SOURCES = "nanoegg_mlx/engines/native"

setup(
    ext_modules=[
        Extension(
            "nanoegg_mlx.engines._native",
            sources=sorted(glob(f"{SOURCES}/*.cpp")),
            depends=sorted(glob(f"{SOURCES}/*.h")),
            include_dirs=[pybind11.get_include()],
            extra_compile_args=["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra"],
            language="c++",
            optional=True,
        )
    ],
)
