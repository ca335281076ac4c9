"""What is kept of a file: its sha256 once times and places are masked, and numbers for machines that round otherwise.

files = masked(run_directory, work)      # {name: bytes}: equal for equal runs, whenever and wherever they ran
entry = entry_of(name, files[name])      # one line of a golden
problems(kept, now)                      # [] when all is as it was; with a tolerance: the numbers

Masked by key, so that no other change can hide: the values of MASKED; in strings the path of the folder of the run; in
manifests the sizes and digests of files that hold something masked (those that they state are compared with the files
first). The report is written again, by `shepherd report`, from the masked files.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from golden.command import shepherd

MACHINE = ("python", "platform", "numpy", "torch", "transformers", "peft", "tokenizers", "safetensors", "processor")
MASKED: dict[str, dict[str, Any]] = {
    "env.json": dict.fromkeys(MACHINE, ""),
    "identity.json": {**dict.fromkeys(MACHINE, ""), "code": "", "run": ""},
    "journal.jsonl": {"at": 0.0, "crc": ""},
    "rounds.jsonl": {"seconds": 0.25},
    "summary.json": {"seconds": 0.25, "peak_memory_bytes": 10**9},
}
"""{file: {key at the top of it: what stands there instead}}; of a table, each value."""
PLACE = "/here"
"""Stands in strings for the folder that a run was started in."""
EVENTS = "(events).jsonl"
BLOCK = 64
"""Numbers that are summed into one; so many times the tolerance is less than 1e-3, so one that is off shows."""


def masked(run: Path, work: Path) -> dict[str, bytes]:
    """The files of a run directory without what differs between two equal runs in two places."""
    raw = {path.relative_to(run).as_posix(): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    manifests = {name: data for name, data in raw.items() if Path(name).name == "MANIFEST.json"}
    files = {name: _masked(name, data, str(work)) for name, data in raw.items() if name not in manifests}
    for name, data in manifests.items():
        files[name] = _masked_manifest(Path(name).parent, data, raw, files)
    files["report.html"] = _report(run, raw, files, work)
    return dict(sorted(files.items()))


def _masked(name: str, data: bytes, work: str) -> bytes:
    if name.endswith((".safetensors", "tokenizer.json")):
        return data
    text = data.decode()
    masks = MASKED.get(name, {})

    def mask(value: Any) -> Any:
        missing = [key for key in masks if key not in value and name in ("journal.jsonl", "rounds.jsonl")]
        assert not missing, f"{name} has no {missing} any more: mend MASKED"
        return _placed({key: _instead(old, masks[key]) if key in masks else old for key, old in value.items()}, work)

    if name.endswith(".json") and text:
        return _json_mapped(text, mask if masks else lambda value: _placed(value, work)).encode()
    if name.endswith(".jsonl"):
        assert not text or text.endswith("\n"), f"{name} ends within a line"
        return "".join(
            _json_mapped(line, mask if masks else lambda value: _placed(value, work)) + "\n"
            for line in text.splitlines()
        ).encode()
    return text.replace(work, PLACE).encode()


def _instead(old: Any, new: Any) -> Any:
    return {key: _instead(value, new) for key, value in old.items()} if isinstance(old, dict) else new


def _placed(value: Any, work: str) -> Any:
    if isinstance(value, dict):
        return {key: _placed(old, work) for key, old in value.items()}
    if isinstance(value, list):
        return [_placed(old, work) for old in value]
    return value.replace(work, PLACE) if isinstance(value, str) else value


def _json_mapped(text: str, change: Callable[[Any], Any]) -> str:
    """The JSON with `change` applied to its value, and to nothing of how it is written."""
    value = json.loads(text)
    for style in ({"indent": 1}, {}, {"indent": 2}, {"separators": (",", ":")}):
        for plain in (False, True):
            for end in ("", "\n"):
                if json.dumps(value, ensure_ascii=plain, **style) + end == text:
                    return json.dumps(change(value), ensure_ascii=plain, **style) + end
    raise AssertionError(f"JSON in a style that masking does not know: {text[:80]!r}")


def _masked_manifest(folder: Path, data: bytes, raw: Mapping[str, bytes], files: Mapping[str, bytes]) -> bytes:
    """The manifest with the sizes and digests of masked files; what it says of the files as they are is checked."""

    def mask(manifest: dict[str, Any]) -> dict[str, Any]:
        for name, stated in manifest["files"].items():
            there = (folder / name).as_posix()
            assert stated == _seal(raw[there], stated), f"{folder}/MANIFEST.json does not say what {name} is"
            manifest["files"][name] = _seal(files[there], stated)
        for name, stated in manifest.get("facts", {}).items():
            begun = raw[name][: stated["bytes"]]
            assert stated == _seal(begun, stated), f"{folder}/MANIFEST.json does not say how far {name} had come"
            lines = files[name].splitlines(keepends=True)[: begun.count(b"\n")]
            manifest["facts"][name] = _seal(b"".join(lines), stated)
        chain = ("sha256", "prev")  # over the digests before they were masked
        return manifest | {key: "" for key in chain if manifest.get(key)}

    return _json_mapped(data.decode(), mask).encode()


def _seal(data: bytes, like: Mapping[str, Any]) -> dict[str, Any]:
    seal = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    return {key: seal[key] for key in like}


def _report(run: Path, raw: Mapping[str, bytes], files: Mapping[str, bytes], work: Path) -> bytes:
    """The report of the masked files. That of the run itself is what `shepherd report` writes now, byte for byte."""
    assert shepherd(work, "report", run).status == 0
    assert (run / "report.html").read_bytes() == raw["report.html"], "shepherd report writes another page than the run"
    copy = work / "masked" / run.name
    shutil.rmtree(copy, ignore_errors=True)
    for name, data in files.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(data)
    done = shepherd(work, "report", copy)
    assert done.status == 0, done.err
    return (copy / "report.html").read_bytes().replace(b"masked/", b"runs/")


def told(events: Sequence[Mapping[str, Any]]) -> bytes:
    """The events of a run in order, one line each: what, where, and the keys. How often a step is told is a matter of
    time, so of those only the keys are kept."""
    steps = sorted({key for event in events if event["event"] == "step" for key in event})
    lines = [
        {**{key: event[key] for key in ("event", "phase", "arm", "round") if key in event}, "keys": list(event)}
        for event in events
        if event["event"] != "step"
    ]
    return "".join(json.dumps(line) + "\n" for line in [*lines, {"event": "step", "keys": steps}]).encode()


# One line of a golden


def entry_of(name: str, data: bytes, products: bool = False) -> dict[str, Any]:
    """{sha256; shape: a digest of keys, texts, whole numbers and shapes; numbers: sums over BLOCK values each}."""
    shape, numbers = _parts(name, data, products)
    return {
        "sha256": hashlib.sha256(data).hexdigest(),
        "shape": hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:12],
        "count": len(numbers),
        "numbers": [float(f"{total:.7g}") for total in _sums(numbers)],
    }


def _parts(name: str, data: bytes, products: bool) -> tuple[Any, list[float]]:
    """(what is the same on every machine, the numbers that rounding moves)."""
    if name.endswith(".safetensors"):
        from safetensors.numpy import load

        tensors = dict(sorted(load(data).items()))
        shapes = [(n, str(t.dtype), t.shape) for n, t in tensors.items()]
        others = {n: t.tolist() for n, t in tensors.items() if t.dtype.kind != "f"}
        floats = {n: t for n, t in tensors.items() if t.dtype.kind == "f"}
        for n in [n for n in floats if n.endswith("lora_A.weight")] if products else []:
            floats[n] = floats.pop(n.replace("lora_A", "lora_B")) @ floats[n]
        return [shapes, others], [float(x) for t in floats.values() for x in t.ravel()]
    if Path(name).name == "MANIFEST.json":
        return list(json.loads(data)["files"]), []
    if name.endswith((".json", ".jsonl")) and data:
        numbers: list[float] = []
        lines = [data] if name.endswith(".json") else data.splitlines()
        return [_apart(json.loads(line), numbers) for line in lines], numbers
    return without_numbers(name, data.decode()), []


NUMBER = re.compile(r"\d[\d.,]*(?:e[+-]?\d+)?")
DIGEST = re.compile(r"\b[0-9a-f]{32,64}\b")


def without_numbers(name: str, text: str) -> str:
    """What stays of a text where rounding moves digits; of a page its headings, as charts are drawn from numbers."""
    if name.endswith(".html"):
        return "\n".join(re.findall(r"<h[1-6][^>]*>[^<]*", text))
    return NUMBER.sub("0", DIGEST.sub("", text))


def _apart(value: Any, numbers: list[float]) -> Any:
    """The value with 0.0 for each float, which goes into `numbers`, and "" for each digest."""
    if isinstance(value, float):
        numbers.append(value)
        return 0.0
    if isinstance(value, dict):
        return {key: _apart(old, numbers) for key, old in value.items()}
    if isinstance(value, list):
        return [_apart(old, numbers) for old in value]
    return DIGEST.sub("", value) if isinstance(value, str) else value


def _sums(numbers: Sequence[float]) -> Iterator[float]:
    """One number for BLOCK of them, in which the place of each counts, and of large ones their relative change."""
    values = np.arcsinh(np.nan_to_num(np.array(numbers, np.float64), nan=3.0, posinf=5.0, neginf=-5.0))
    weights = 1 + np.arange(len(values)) * ((math.sqrt(5) - 1) / 2) % 1
    for at in range(0, len(values), BLOCK):
        yield float((values * weights)[at : at + BLOCK].sum())


def problems(kept: Mapping[str, Any], now: Mapping[str, Any], tolerance: float | None = None) -> list[str]:
    """What differs between two {file: entry}: by bytes; with a tolerance by shapes and numbers, so much off each."""
    found = [f"{name}: is no longer written" for name in kept.keys() - now.keys()]
    found += [f"{name}: is new" for name in now.keys() - kept.keys()]
    for name in sorted(kept.keys() & now.keys()):
        then, here = kept[name], now[name]
        if tolerance is None:
            if then["sha256"] != here["sha256"]:
                parts = {"shape": "other keys, texts or shapes", "numbers": "other numbers"}
                found.append(", ".join([f"{name}: other bytes", *(w for k, w in parts.items() if then[k] != here[k])]))
        elif (then["shape"], then["count"]) != (here["shape"], here["count"]):
            found.append(f"{name}: other keys, texts or shapes")
        else:
            off = [abs(a - b) for a, b in zip(then["numbers"], here["numbers"], strict=True)]
            sizes = [min(BLOCK, then["count"] - at) for at in range(0, then["count"], BLOCK)]
            worst = max((o / size for o, size in zip(off, sizes, strict=True)), default=0.0)
            if not worst <= tolerance:
                found.append(f"{name}: numbers off by {worst:.1e} on average, {tolerance:g} allowed")
    return found


# Where the bytes hold


def fingerprint() -> dict[str, Any]:
    """What the bytes of a run depend on beside this code: processor, libraries, threads. All recipes use one thread."""
    import scipy
    import torch
    import transformers

    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "transformers": transformers.__version__,
        "threads": 1,
    }


def _processor() -> str:
    """Maker and model by which BLAS libraries choose their kernels, and the vector instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [f for f in about.get("flags", "").split() if re.match(r"(sse4|avx|fma|amx|f16c)", f)]
    return " ".join([*(about.get(key, "") for key in ("vendor_id", "cpu family", "model")), *sorted(flags)])
