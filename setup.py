"""Builds the native kernels as one optional extension: without a compiler the install succeeds and MLX does the work.

Every instruction set is compiled into the one binary and chosen when it runs. The rest is in pyproject.toml.
"""

from glob import glob
from pathlib import Path
from runpy import run_path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = "nanoegg_mlx/engines/native"


class BuildWithTables(build_ext):
    """Writes the header of the truncated normal's steps before the extension is compiled."""

    def build_extension(self, ext: Extension) -> None:
        generated = Path(self.build_temp)
        run_path(f"{SOURCES}/write_normal_steps.py")["write_normal_steps"](generated / "normal_steps.h")
        ext.include_dirs.append(str(generated))
        super().build_extension(ext)


setup(
    cmdclass={"build_ext": BuildWithTables},
    ext_modules=[
        Extension(
            "nanoegg_mlx.engines._native",
            sources=sorted(glob(f"{SOURCES}/*.cpp")),
            # A change in one of them rebuilds the extension; all are in the source distribution.
            depends=[
                *sorted(glob(f"{SOURCES}/*.h")),
                f"{SOURCES}/write_normal_steps.py",
                "nanoegg_mlx/core/normal_thresholds.json",
            ],
            include_dirs=[pybind11.get_include()],
            extra_compile_args=[
                *("-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra"),
                # GCC's own AVX-512 header sets this one off; other compilers do not have it.
                *("-Wno-unknown-warning-option", "-Wno-maybe-uninitialized"),
            ],
            language="c++",
            optional=True,
        )
    ],
)
