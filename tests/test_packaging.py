"""The distributions: contents of sdist and wheel, one version, workflow files that parse."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("nanoegg_mlx", "data_prep")
SOURCES = ("setup.py", "MANIFEST.in", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md")
IGNORED = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")


def files_below(root: Path, *folders: str) -> set[str]:
    return {
        path.relative_to(root).as_posix() for name in folders for path in (root / name).rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, since a build writes beside them."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        shutil.copy(ROOT / name, folder)
    for name in (*PACKAGES, "tests", "configs", "examples", ".ci"):
        shutil.copytree(ROOT / name, folder / name, ignore=IGNORED)
    return folder


@pytest.fixture(scope="module")
def distributions(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist, and the wheel built from it without a compiler (a second instead of half a minute)."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(sources)]
    environment = {**os.environ, "CC": "/bin/false", "CXX": "/bin/false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_sdist_holds_all_sources_and_tests(sources: Path, distributions: Path) -> None:
    (path,) = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    expected = files_below(sources, *PACKAGES, "tests", "configs", "examples") | {*SOURCES, ".ci/smoke.py"}
    assert expected - names == set()


def test_the_wheel_holds_the_packages_and_nothing_else(sources: Path, distributions: Path) -> None:
    (path,) = distributions.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name and not name.endswith("/")}
    expected = {name for name in files_below(sources, *PACKAGES) if "/native/" not in name}
    assert names == expected


def test_one_version() -> None:
    assert metadata.version("nanoegg-mlx") == PROJECT["version"]
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert versions[1] == PROJECT["version"]


@pytest.mark.parametrize("path", [*sorted(ROOT.glob(".github/**/*.yml")), ROOT / ".pre-commit-config.yaml"])
def test_yaml_files_parse(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    if path.parent.name == "workflows":
        # YAML 1.1 reads the key `on` as true.
        assert {"name", True, "permissions", "jobs"} <= document.keys()
        assert all("runs-on" in job and "steps" in job for job in document["jobs"].values())
    else:
        assert document["repos"]
