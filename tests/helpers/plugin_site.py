"""Packages with entry points in a folder of site-packages, as an installer would leave them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shepherd import registry
from shepherd.data.partitioners import partitioners
from shepherd.server.aggregators import aggregators

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"


def install(site: Path, module: str, source: str, name: str, version: str = "0.1") -> None:
    """A package with one module, which is its plug-in."""
    (site / f"{module}.py").write_text(source, encoding="utf-8")
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\nrules = {module}\n")


def build_example(folder: Path) -> Path:
    """The folder with the installed package of examples/plugin, built by its own build system, without a network."""
    source, site = folder / "source", folder / "site"
    shutil.copytree(EXAMPLE, source)
    # In a process of its own: setuptools replaces distutils, with a warning where that was imported before.
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", build, str(folder)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    shutil.unpack_archive(wheel, site, "zip")
    return site


def project() -> dict:
    """The [project] table of the example."""
    return tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@contextmanager
def on_the_path(site: Path) -> Iterator[None]:
    """Context in which the packages of `site` are installed, and after which their names are gone again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.setattr(registry, "_plugins", None)
        for table in (aggregators, partitioners):
            patch.setattr(table, "_factories", dict(table._factories))
            patch.setattr(table, "_packages", dict(table._packages))
        for file in site.glob("*.py"):
            patch.delitem(sys.modules, file.stem, raising=False)
        yield
