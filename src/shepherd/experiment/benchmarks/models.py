"""The models of a benchmark: RUN, RUN:base, RUN:federated, RUN:merged, RUN:centralised, RUN:local/CLIENT.

The base that adapter_config.json names is an alias that other tools need not know: models are given by their folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from shepherd.config import Config
from shepherd.errors import ModelError
from shepherd.model.adapter import digest, load_adapter
from shepherd.model.digest import model_digest
from shepherd.model.fetch import resolve
from shepherd.store import read_json
from shepherd.store.adapters import FEDERATED, ArmName, find_adapter

BASE, MERGED = "base", "merged"


@dataclass(frozen=True)
class ModelPlace:
    """Where a model is read from, and how it is loaded.

    pretrained: the folder of the base, or of the merged model. adapter: the folder of the adapter on it, or "".
    adapter_digest: of the adapter, also of the one that is merged; "" for the base. merge_of: the run whose merged
    model is exported to `pretrained` before it is loaded, or "".
    """

    pretrained: str
    adapter: str
    device: str
    dtype: str
    quantize: str
    adapter_digest: str = ""
    merge_of: str = ""

    def arguments(self) -> dict[str, str]:
        """What the process of the harness needs of it."""
        return {key: value for key, value in asdict(self).items() if key != "adapter_digest"}

    def shown(self) -> dict[str, str]:
        """What a record says about it."""
        args = {key: value for key, value in asdict(self).items() if key != "merge_of"}
        return args if not self.merge_of else {**args, "pretrained": f"{MERGED} model of {self.merge_of}"}


def pick_models(arms: Sequence[str], config: Config) -> list[str]:
    """The arms to evaluate: those named, or base, federated and merged where no arm is named.

    A quantised run has no merged model, see `export`."""
    default = [BASE, FEDERATED, *([MERGED] if config.model.quantize == "none" else [])]
    return list(dict.fromkeys(name for arm in arms for name in ([arm] if arm else default)))


def locate(run_dir: Path, config: Config, arms: Sequence[str], scratch: Path) -> dict[str, ModelPlace]:
    """The place of each arm, in the precision that the run computed in; of a merged model, a new folder in `scratch`.

    Raises UsageError for an arm whose adapter was not kept, ModelError where an adapter belongs to another base.
    """
    base = resolve(config.model.base, config.model.revision)
    base_digest = model_digest(base)
    computed_in = (read_json(run_dir / "summary.json").get("model") or {}).get("dtype") or config.model.dtype
    places: dict[str, ModelPlace] = {}
    for arm in arms:
        place = ModelPlace(str(base.resolve()), "", config.model.device, str(computed_in), config.model.quantize)
        if arm != BASE:
            folder = _adapter(run_dir, FEDERATED if arm == MERGED else arm)
            adapter = load_adapter(folder)
            if adapter.base_digest != base_digest:
                raise ModelError(
                    f"the adapter of {arm} belongs to another base: digest {adapter.base_digest[:12] or 'unknown'}, "
                    f"{config.model.base} has {base_digest[:12]}",
                    hint="use the base model that the run used, in the same revision (model.base in its config.toml)",
                )
            place = replace(place, adapter=str(folder.resolve()), adapter_digest=digest(adapter))
        if arm == MERGED:
            run, into = str(run_dir.resolve()), str(scratch / MERGED)
            place = replace(place, pretrained=into, adapter="", quantize="none", merge_of=run)
        places[arm] = place
    return places


def _adapter(run_dir: Path, arm: str) -> Path:
    """The PEFT folder of an arm. Raises UsageError where the run does not hold it."""
    name, _, client = arm.partition("/")
    return find_adapter(ArmName(run_dir, name, client)).folder
