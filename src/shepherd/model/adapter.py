"""Initialisation, digest and PEFT serialisation of a LoRA adapter.

A PEFT folder is `adapter_config.json` and `adapter_model.safetensors`; any PEFT user can load it:

    PeftModel.from_pretrained(base, "runs/demo/adapter")
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from shepherd.errors import ModelError
from shepherd.model.arrays import from_file, to_bytes
from shepherd.model.digest import read_small
from shepherd.rng import stream
from shepherd.types import Adapter, Factors

PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MODULE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def fresh_adapter(
    sizes: Mapping[str, tuple[int, int]],
    r: int,
    alpha: float,
    seed: int,
    *,
    rslora: bool = False,
    base_digest: str = "",
) -> Adapter:
    """A new adapter with zero increment: A[r, in] Kaiming-uniform (bound 1/√in), B[out, r] zero (LoRA, §4.1).

    sizes: {module: (in, out)}. The random stream of a module depends on the seed and the module name.
    """
    factors = {}
    for name, (n_in, n_out) in sizes.items():
        A = stream(seed, "init", name).uniform(-1, 1, (r, n_in)) / np.sqrt(n_in)
        factors[name] = Factors(A.astype(np.float32), np.zeros((n_out, r), np.float32))
    return Adapter(factors, r, alpha, rslora, base_digest)


def digest(adapter: Adapter) -> str:
    """sha256 (hex) over names, shapes and float32 values, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(adapter.factors):
        for matrix in adapter.factors[name]:
            total.update(f"{name}{matrix.shape}".encode())
            total.update(np.ascontiguousarray(matrix, "<f4").tobytes())
    return total.hexdigest()


def save_adapter(folder: Path, adapter: Adapter, *, base_name: str, conv1d: bool = False) -> None:
    """Write a PEFT folder. `conv1d`: the adapted layers store their weights transposed (GPT-2)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in adapter_files(adapter, base_name=base_name, conv1d=conv1d).items():
        (folder / name).write_bytes(data)


def adapter_files(adapter: Adapter, *, base_name: str, conv1d: bool = False) -> dict[str, bytes]:
    """The files of a PEFT folder, {name: bytes}; equal adapters give equal bytes.

    `base_name` is a folder or a hub id, which may end with `@revision` (`fetch.public_name`).
    """
    tensors = {}
    for name, (A, B) in adapter.factors.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = np.asarray(A, np.float32)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = np.asarray(B, np.float32)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        **named_base(base_name),
        "r": adapter.r,
        "lora_alpha": adapter.alpha,
        "use_rslora": adapter.rslora,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": conv1d,
        "inference_mode": True,
        "target_modules": sorted(adapter.factors),
    }
    return {
        WEIGHTS: to_bytes(tensors, {"format": "pt", "base_digest": adapter.base_digest}),
        CONFIG: (json.dumps(config, indent=2) + "\n").encode("utf-8"),
    }


def named_base(base_name: str) -> dict[str, str]:
    """The entries of adapter_config.json by which PEFT finds the base."""
    hub = re.fullmatch(r"([\w.-]+/[\w.-]+)@(.+)", base_name)
    return {"base_model_name_or_path": hub[1], "revision": hub[2]} if hub else {"base_model_name_or_path": base_name}


def rename_base(folder: Path, base_name: str) -> None:
    """Replace the name of the base in the adapter_config.json of `folder`."""
    path = folder / CONFIG
    config = json.loads(read_small(path))
    config.pop("revision", None)
    config |= named_base(base_name)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8", newline="\n")


def load_adapter(folder: Path) -> Adapter:
    """Read a PEFT LoRA folder. Raises ModelError with the file and its defect."""
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"not an adapter folder: {folder} has no {name}{_instead(folder)}")
    try:
        config = json.loads(read_small(folder / CONFIG))
        tensors, metadata = from_file(folder / WEIGHTS)
    except (ValueError, RecursionError, OSError, SafetensorError, TypeError) as error:  # numpy has no bfloat16
        raise ModelError(f"the adapter in {folder} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{folder / CONFIG} is not a JSON object")
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{folder / CONFIG}: peft_type is {config.get('peft_type')!r}; only LORA can be read")
    unread = [key for key in ("use_dora", "alpha_pattern", "rank_pattern", "modules_to_save") if config.get(key)]
    unread += sorted(key for key in tensors if not key.endswith((".lora_A.weight", ".lora_B.weight")))
    if unread:
        raise ModelError(f"the adapter in {folder} has parts that are not plain LoRA: {', '.join(unread[:3])}")
    factors = {}
    try:
        for key in tensors:
            if key.endswith(".lora_A.weight"):
                name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
                B = tensors[key.replace(".lora_A.", ".lora_B.")]
                factors[name] = Factors(tensors[key].astype(np.float32), B.astype(np.float32))
        r, alpha = int(config["r"]), float(config["lora_alpha"])
    except KeyError as error:
        raise ModelError(f"the adapter in {folder} lacks {error}") from None
    except (TypeError, ValueError) as error:
        raise ModelError(f"{folder / CONFIG}: r or lora_alpha is not a number: {error}") from None
    if len(tensors) != 2 * len(factors):
        raise ModelError(f"{folder / WEIGHTS} has {len(tensors) - len(factors)} B for {len(factors)} A")
    if not factors:
        raise ModelError(f"{folder / WEIGHTS} holds no LoRA factors")
    for name, (A, B) in factors.items():
        if not _MODULE.fullmatch(name):
            raise ModelError(f"{folder / WEIGHTS}: {name[:80]!r} cannot be the name of a module")
        if A.ndim != 2 or B.ndim != 2 or A.shape[0] != r or B.shape[1] != r:
            raise ModelError(f"{folder}: {name} has A{list(A.shape)}, B{list(B.shape)}, but r = {r}")
    return Adapter(factors, r, alpha, bool(config.get("use_rslora", False)), metadata.get("base_digest", ""))


def _instead(folder: Path) -> str:
    """A note on weights in a format that can hold code: they are not loaded."""
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.npz") for p in folder.glob(pattern))
    return f", only {pickled[0]}, which can hold code and is not loaded" if pickled else ""
