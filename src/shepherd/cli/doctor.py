"""Diagnosis of this machine: software, hardware, environment, models. Loads torch only if `full`.

    for section in examine():
        for line in section.lines: print(section.name, line.name, line.value, line.state)

A line's state is "ok", "note" (worth knowing) or "bad" (no run can work); the latter two carry a hint.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shepherd.errors import DISTRIBUTION, install_line
from shepherd.experiment.capacity import nearest_existing

PYTHON = (3, 11)
LEAST_MEMORY = 2 * 10**9
LEAST_DISK = 2 * 10**9
CORE = ("torch", "transformers", "peft", "tokenizers", "safetensors", "gguf", "numpy", "pydantic", "click", "rich")
"""Fallback list of requirements, for when the package's metadata is not installed."""


@dataclass(frozen=True)
class Line:
    """One fact."""

    name: str
    value: str
    state: str = "ok"
    hint: str = ""


@dataclass(frozen=True)
class Section:
    """Facts about one thing."""

    name: str
    lines: tuple[Line, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(full: bool = False) -> tuple[Section, ...]:
    """Every section. `full` loads torch and measures threads and precision."""
    sections = [_software(), _machine(), _environment(), _models(), _extras()]
    return (*sections, _torch()) if full else tuple(sections)


def to_text(sections: tuple[Section, ...], coloured: bool = False) -> str:
    """Sections as aligned lines; those that are not ok are marked and followed by their hint."""
    import click

    from shepherd.cli.output import clean

    marks = {"ok": " ", "note": "!", "bad": "✗"}
    colours = {"note": "yellow", "bad": "red"}
    width = max(len(line.name) for section in sections for line in section.lines)
    out = []
    for section in sections:
        out.append(click.style(section.name, bold=True) if coloured else section.name)
        for line in section.lines:
            text = f"{marks[line.state]} {line.name.ljust(width)}  {clean(line.value)}"
            out.append(click.style(text, fg=colours[line.state]) if coloured and line.state in colours else text)
            if line.hint:
                out.append(f"  {' ' * width}  hint: {clean(line.hint)}")
        out.append("")
    return "\n".join(out)


def _software() -> Section:
    from shepherd._version import __version__

    version = ".".join(map(str, sys.version_info[:3]))
    lines = [Line("shepherd", __version__)]
    if sys.version_info >= PYTHON:
        lines.append(Line("python", f"{version}, {sys.executable}"))
    else:
        lines.append(Line("python", version, "bad", f"install Python {PYTHON[0]}.{PYTHON[1]} or newer"))
    for requirement in _requirements() or CORE:
        name = requirement.split(";")[0].strip()
        plain = re.split(r"[<>=!~\[ ]", name, maxsplit=1)[0]
        floor = re.search(r">=\s*([\d.]+)", name)
        installed = _version(plain)
        if not installed:
            lines.append(Line(plain, "not installed", "bad", f"pip install '{name}'"))
            continue
        if floor and _numbers(installed) < _numbers(floor[1]):
            lines.append(Line(plain, f"{installed}, older than {floor[1]}", "bad", f"pip install '{name}'"))
        else:
            lines.append(Line(plain, installed))
    lines += _clashes()
    return Section("software", tuple(lines))


def _requirements(extra: str = "") -> list[str]:
    """Requirements of the installed package: the core ones, or those of an extra. Empty when it is not installed."""
    try:
        requires = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    if extra:
        return [r for r in requires if re.search(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]", r)]
    return [r for r in requires if "extra" not in r]


def _clashes() -> list[Line]:
    """Combinations of packages that are known to conflict."""
    lines = []
    if other := _version("shepherd"):
        lines.append(
            Line(
                "shepherd, twice",
                f"the distribution shepherd {other} has a package of the same name",
                "note",
                f"pip uninstall shepherd, then install {DISTRIBUTION} again",
            )
        )
    for name, module in (("peft", "bitsandbytes"), ("transformers", "flash_attn"), ("transformers", "deepspeed")):
        version = _version(module)
        if version and shutil.which("nvidia-smi") is None:
            lines.append(
                Line(
                    f"{name}, {module}",
                    f"{module} {version} without a GPU: {name} imports it and may fail",
                    "note",
                    f"if a run stops at an import: pip uninstall {module}",
                )
            )
    return lines


def _machine() -> Section:
    import psutil

    from shepherd.model.threads import available_cores
    from shepherd.report.wording import size

    model, flags = _processor()
    fast = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile") if flag in flags]
    lines = [
        Line("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        Line("processor", model),
        Line("instructions", ", ".join(fast) or "none of avx2, avx512, amx"),
        Line(
            "bfloat16", "in hardware" if {"avx512_bf16", "amx_bf16"} & flags else "not in hardware: float32 is faster"
        ),
        Line("cores", f"{available_cores()} usable, {os.cpu_count()} logical"),
        Line("threads", _threads(available_cores())),
    ]
    memory = psutil.virtual_memory()
    text = f"{size(memory.available)} free of {size(memory.total)}"
    little = memory.available < LEAST_MEMORY
    hint = f"the demo needs up to {size(LEAST_MEMORY)}; close other programs, or shepherd run --quick" if little else ""
    lines.append(Line("memory", text, "note" if little else "ok", hint))
    disk = shutil.disk_usage(nearest_existing(Path.cwd()))
    little = disk.free < LEAST_DISK
    hint = f"a run and the model need about {size(LEAST_DISK)}" if little else ""
    lines.append(Line("disk here", f"{size(disk.free)} free of {size(disk.total)}", "note" if little else "ok", hint))
    lines.append(_gpu())
    return Section("machine", tuple(lines))


def _threads(cores: int) -> str:
    """Number of threads of a run with run.threads = 0. The probe needs torch, so only `full` runs it."""
    if cores == 1:
        return "1, the only usable core (run.threads sets another number)"
    return f"{cores}, all usable cores, or 1 where the probe of a run finds that faster (run.threads sets a number)"


def _processor() -> tuple[str, set[str]]:
    """(name, flags) of the CPU; no flags where the system reports none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine(), set()
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    return (name[1] if name else platform.machine()), set(flags[1].split()) if flags else set()


def _gpu() -> Line:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Line("gpu", "none found (no nvidia-smi); runs use the CPU")
    try:
        query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, timeout=2, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Line("gpu", f"nvidia-smi does not answer ({type(error).__name__})", "note", "runs use the CPU")
    if found.returncode or not found.stdout.strip():
        return Line(
            "gpu", "nvidia-smi finds no GPU", "note", (found.stderr or found.stdout).strip()[:200] or "no GPU here"
        )
    return Line("gpu", "; ".join(found.stdout.strip().splitlines()))


def _environment() -> Section:
    from shepherd.model.fetch import cache_root

    lines = []
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    if policy.upper() == "PASSIVE":
        lines.append(Line("OMP_WAIT_POLICY", "PASSIVE"))
    else:
        hint = "unset it, or set PASSIVE: spinning threads make a busy machine several times slower"
        lines.append(Line("OMP_WAIT_POLICY", policy or "not set", "note", hint))
    spins = os.environ.get("GOMP_SPINCOUNT", "")
    hint = "" if spins else "set GOMP_SPINCOUNT=10000 before torch loads: a thread that sleeps at once wakes late"
    lines.append(Line("GOMP_SPINCOUNT", spins or "not set", "ok" if spins else "note", hint))
    if count := os.environ.get("OMP_NUM_THREADS"):
        lines.append(Line("OMP_NUM_THREADS", count, "note", f"ignored by runs: set run.threads = {count}"))
    for name in ("CUDA_VISIBLE_DEVICES", "HF_HOME", "NO_COLOR"):
        if name in os.environ:
            lines.append(Line(name, os.environ[name]))
    root = cache_root()
    lines.append(_writable("cache", root, "set SHEPHERD_CACHE to a writable folder"))
    lines.append(_writable("runs", Path("runs"), "run from a writable folder, or use --out"))
    return Section("environment", tuple(lines))


def _writable(name: str, folder: Path, hint: str) -> Line:
    """Whether `folder`, or its nearest existing parent, is writable. Creates nothing."""
    place = nearest_existing(folder)
    if place.is_dir() and os.access(place, os.W_OK):
        return Line(name, f"{folder} (writable)")
    return Line(name, f"{folder} is not writable", "bad", hint)


def _models() -> Section:
    from shepherd.model.fetch import list_models
    from shepherd.report.wording import size

    lines = [
        Line(entry.name, f"{size(entry.bytes)}, {entry.path}")
        if entry.path
        else Line(entry.name, "not downloaded", "note", f"shepherd model pull {entry.name}")
        for entry in list_models()
    ]
    return Section("models", tuple(lines))


def _extras() -> Section:
    """Optional parts: whether the packages of each extra are installed."""
    try:
        metadata = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return Section("extras", (Line("shepherd", "running from source, not installed", "note", "pip install ."),))
    lines = []
    for extra in metadata.get_all("Provides-Extra") or []:
        names = [re.split(r"[<>=!~;\[ ]", r, maxsplit=1)[0] for r in _requirements(extra)]
        missing = [name for name in names if not _version(name)]
        value = f"missing {', '.join(missing)}: {install_line(extra)}" if missing else "installed"
        lines.append(Line(extra, value))
    return Section("extras", tuple(lines))


def _version(name: str) -> str:
    """The version of an installed distribution, or ""."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _torch() -> Section:
    import torch

    from shepherd.model import threads
    from shepherd.model.base import pick_dtype

    chosen = threads.use_threads()
    cuda = torch.cuda.is_available()
    speedup = threads.bfloat16_speedup()
    auto = str(pick_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    lines = [
        Line("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'not built in'}"),
        Line("threads", f"{chosen} of {threads.available_cores()} usable cores, by measurement"),
        Line("products", f"{threads.matmul_peak():,.0f} GFLOP/s in float32"),
        Line("bfloat16 probe", f"{speedup:.2f} times the speed of float32: auto takes {auto}"),
        Line("cuda", ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none")
        if cuda
        else Line("cuda", "not available"),
    ]
    if not cuda and shutil.which("nvidia-smi"):
        lines[-1] = Line("cuda", "a GPU is present, but this torch cannot use it", "note", "install torch with CUDA")
    return Section("torch", tuple(lines))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])
