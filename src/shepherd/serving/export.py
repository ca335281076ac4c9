"""The adapter of a run, taken elsewhere: a PEFT folder, or a whole model with the adapter in its weights.

    export("runs/demo", "merged", "demo-model")

Nothing appears at `out` that was not loaded again, by the library that others will load it with, and gave the logits
of the run's own model.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shepherd.config import Config
from shepherd.errors import EvaluationError, ModelError, ResourceError, UsageError, did_you_mean
from shepherd.model.adapter import CONFIG, WEIGHTS, digest, load_adapter, named_base, rename_base
from shepherd.model.digest import model_digest
from shepherd.model.fetch import resolve
from shepherd.model.quiet import quiet_transformers
from shepherd.recipe import load as load_config
from shepherd.report.wording import size
from shepherd.serving.conversations import conversations_of
from shepherd.serving.merged_card import model_card
from shepherd.serving.released import GUARANTEE, check_released, guarantee_of
from shepherd.serving.tuned import load_tuned
from shepherd.store import MANIFEST, commit_folder, open_run, read_json
from shepherd.store.adapters import FEDERATED, ArmName, KeptAdapter, arm_name, find_adapter
from shepherd.store.site_folder import site_place

FORMS = ("peft", "merged")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = 1e-4  # times 1 + the largest logit; float32 sums in another order stay well below


@dataclass(frozen=True)
class Export:
    """What was written: `difference` is the largest |its logits − the run's|, in float32, over `tokens` positions.

    `rounding` is how far the logits moved before that because the weights were rounded to `dtype`: 0 in float32.
    """

    path: Path
    form: str
    dtype: str
    difference: float
    rounding: float
    tokens: int


@dataclass(frozen=True, eq=False)
class _Reference:
    """What the run's model says to a few conversations (token ids), and where its base lies."""

    base: Path
    public_name: str
    digest: str
    licence: str
    tokenizer: Any
    conversations: tuple[tuple[int, ...], ...]
    logits: tuple[torch.Tensor, ...]


def export(
    run_dir: ArmName | Path | str,
    to: str,
    out: Path | str,
    *,
    dtype: str = "float32",
    base: str | None = None,
    note: Callable[[str], None] = lambda _sentence: None,
) -> Export:
    """Write the final adapter of a run, or another of its adapters by name (`store.adapters`: RUN:centralised,
    RUN:local/NAME): `to` is "peft" or "merged", `dtype` the precision of merged weights.

    `base` replaces the location of the base in adapter_config.json, for use on another machine; the logits are
    compared on the run's base all the same. `note` receives what was measured, one sentence a call.

    Of a run with differential privacy only the federated adapter leaves, with privacy.json, unless it publishes
    nothing.

    Raises UsageError when `out` holds something or when a quantised base would have to be merged, ModelError when
    the base is no longer that of the adapter, ResourceError when the disk is too small, EvaluationError when what was
    written does not give the run's logits. After an error there is nothing at `out`.
    """
    if to not in FORMS:
        raise UsageError(f"unknown form: {to!r}.{did_you_mean(to, FORMS)}", hint=f"one of {', '.join(FORMS)}")
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype: {dtype!r}.{did_you_mean(dtype, DTYPES)}", hint="float32 or bfloat16")
    if to == "peft" and dtype != "float32":
        raise UsageError("a PEFT folder keeps the adapter as it was learned, in float32", hint="leave out the dtype")
    if base is not None and to != "peft":
        raise UsageError("a merged model needs no base: its weights are inside", hint="leave out the base")
    wanted = run_dir if isinstance(run_dir, ArmName) else arm_name(run_dir)
    if wanted.round is not None:
        raise UsageError(
            f"{wanted} is a checkpoint, and adapters are exported as they are at the end of a run",
            hint="in Python, shepherd.load_tuned of it gives a peft model: .peft()",
        )
    at_site = site_place(wanted.run) is not None
    folder, target = open_run(wanted.run, needs="config.toml" if at_site else "summary.json"), _free(out)
    config = load_config(folder / "config.toml")
    check_released(wanted, config, note)
    kept = find_adapter(wanted)
    if to == "merged":
        _refuse_quantised(folder, config)
    guarantee = guarantee_of(folder, config, note)
    ours = _reference(wanted)
    try:
        with commit_folder(target) as pending:
            if to == "peft":
                _copy(kept, ours, pending, whole=not at_site)
                _name_base(pending, base or ours.public_name)
                expected, got = ours.logits, _logits(_with_adapter(ours.base, pending), ours.conversations)
            else:
                expected = _write_merged(ours, kept.folder, pending, DTYPES[dtype])
                card = model_card(folder, dtype, kept, digest(load_adapter(kept.folder)))
                (pending / "README.md").write_text(card, encoding="utf-8")
                got = _logits(_load(pending), ours.conversations)
            if guarantee is not None:
                (pending / GUARANTEE).write_bytes(guarantee)
            difference = _check(got, expected, "the exported files give")
    except OSError as error:
        if error.errno is None:  # not the disk's: a library's way to say that it cannot load something
            raise
        raise ResourceError(f"cannot write {target}: {error.strerror}", hint="choose another --out") from None
    tokens, rounding = sum(map(len, ours.conversations)), _largest(expected, ours.logits)
    rounded = f"; rounding the weights to {dtype} moved them by up to {rounding:.1e}" if rounding else ""
    if base is not None:
        note(_as_named(base, ours.digest))
    note(
        f"loaded again: the logits of {len(ours.conversations)} conversations ({tokens} tokens) differ by at most "
        f"{difference:.1e}{rounded}"
    )
    return Export(target, to, dtype, difference, rounding, tokens)


def _free(out: Path | str) -> Path:
    """Where to write: a place where there is nothing yet, or an empty folder."""
    target = Path(out).resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UsageError(f"{target} exists already; nothing is overwritten", hint="choose another --out")
    return target


def _refuse_quantised(folder: Path, config: Config) -> None:
    quantize = config.model.quantize
    if quantize != "none":
        raise UsageError(
            f"the adapter of {folder} was trained on a base in {quantize}: merged into full weights it would be a "
            "model that nobody measured, merged into quantised weights most of it would be rounded away",
            hint="export --to peft, and load the base quantised as the run did",
        )


def _copy(kept: KeptAdapter, ours: _Reference, pending: Path, whole: bool) -> None:
    """The adapter folder as it is; of another arm, and where it is not `whole`, the adapter with the tokenizer."""
    if kept.arm == FEDERATED and whole:
        shutil.copytree(kept.folder, pending, dirs_exist_ok=True)
        return
    for name in (CONFIG, WEIGHTS):
        shutil.copy(kept.folder / name, pending)
    ours.tokenizer.save_pretrained(pending)


def _name_base(pending: Path, base_name: str) -> None:
    """Name the base in a copied adapter. What runs before 0.1 wrote of a built-in one nobody else can find."""
    named = dict(read_json(pending / CONFIG))
    if named | named_base(base_name) != named:
        rename_base(pending, base_name)
        (pending / MANIFEST).unlink(missing_ok=True)  # of the folder as it was in the run


def _as_named(base: str, digest: str) -> str:
    """Whether a base by that name is the one of the run, as far as this machine can tell."""
    try:
        same = model_digest(resolve(base)) == digest
    except ModelError:
        return f"{base} is not on this machine: whether it is the base of the run was not looked at"
    return f"{base} is the base of the run" if same else f"warning: {base} is not the base that the run tuned"


def _reference(wanted: ArmName) -> _Reference:
    """On the CPU in float32, whatever the run computed in: what is compared are files, not ways to round."""
    tuned = load_tuned(wanted, device="cpu", dtype="float32", quantize="none")
    conversations = conversations_of(wanted.run, tuned.template, tuned.base.tokenizer)
    logits = tuple(tuned.logits(ids) for ids in conversations)
    found = tuned.base
    return _Reference(
        found.path, found.public_name, found.digest, found.licence, found.tokenizer, conversations, logits
    )


@torch.no_grad()
def _logits(model: torch.nn.Module, conversations: Sequence[Sequence[int]]) -> tuple[torch.Tensor, ...]:
    """float32[n, vocabulary] for each conversation of n tokens."""
    return tuple(model(input_ids=torch.tensor([list(ids)])).logits[0].float() for ids in conversations)


def _largest(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def _check(got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], what: str) -> float:
    """The largest difference, when it is small enough to be rounding."""
    difference = _largest(got, expected)
    allowed = TOLERANCE * (1 + max(float(logits.abs().max()) for logits in expected))
    if not difference <= allowed:  # NaN is not small
        raise EvaluationError(
            f"{what} other logits than the run's model: the largest difference is {difference:.2e}, rounding explains "
            f"{allowed:.1e}; the export was removed",
            hint="this is a bug, please report it with the versions that `shepherd doctor` prints",
        )
    return difference


# Models, as others load them


def _load(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
        ).eval()


def _with_adapter(base: Path, adapter: Path) -> torch.nn.Module:
    from peft import PeftModel

    with warnings.catch_warnings():  # peft asks transformers by an old name
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        return PeftModel.from_pretrained(_load(base), str(adapter)).eval()


def _write_merged(ours: _Reference, adapter: Path, pending: Path, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Save base + adapter, merged in float32; the logits that the files have to give."""
    tuned: Any = _with_adapter(ours.base, adapter)
    model = tuned.merge_and_unload(safe_merge=True)
    _check(_logits(model, ours.conversations), ours.logits, "merging gives")
    for parameter in model.parameters():  # not model.to(): buffers such as rotary frequencies are not saved
        parameter.data = parameter.data.to(dtype)
    need, free = sum(p.numel() * p.element_size() for p in model.parameters()), shutil.disk_usage(pending).free
    if need > free:
        raise ResourceError(
            f"the merged model takes {size(need)}, {pending.parent} has {size(free)} left",
            hint="choose another --out, or export --to peft, which takes a few MB",
        )
    with quiet_transformers():
        model.save_pretrained(pending)
    ours.tokenizer.save_pretrained(pending)
    for pattern in ("LICEN[SC]E*", "NOTICE*"):
        for path in ours.base.glob(pattern):
            shutil.copy(path, pending)
    if dtype == torch.float32:
        return ours.logits
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    return _logits(model, ours.conversations)
