"""The model card of a merged model: summary of its run and the adapter inside in, README.md out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shepherd._version import __version__
from shepherd.model.adapter_card import base_named, hub_name, plain
from shepherd.report.guarantee import guarantee_sentence
from shepherd.report.wording import plural
from shepherd.store import read_json
from shepherd.store.adapters import FEDERATED, KeptAdapter
from shepherd.store.site_folder import CARD, site_place
from shepherd.updates.privacy.publication import place_of


def model_card(run: Path, dtype: str, kept: KeptAdapter, sha256: str) -> str:
    """The merged model's README.md, for a run directory or the folder of a site's run."""
    if site_place(run) is not None:
        return site_card(read_json(run / CARD), dtype, kept, sha256)
    # The released part of the summary has no figures of other arms.
    file = run / "summary.json" if kept.arm == FEDERATED else place_of(run, "summary.json")
    return merged_card(read_json(file), dtype, kept, sha256)


def merged_card(summary: Mapping[str, Any], dtype: str, kept: KeptAdapter, sha256: str) -> str:
    """The merged model's README.md: what it was made of, and whose licences apply. sha256: of the adapter inside."""
    model, data, adapter, arms = (summary[key] for key in ("model", "data", "adapter", "arms"))
    measured = arms[kept.arm][kept.client] if kept.client else arms[kept.arm]
    guarantee = guarantee_sentence(summary["privacy"]) if kept.arm == FEDERATED and "privacy" in summary else ""
    base, before, after = model["name"], arms["base"]["loss"], measured["loss"]
    clients = plural(summary["clients"], "client")
    rows = f"{data['train_rows']} training rows" if "train_rows" in data else "training rows"
    if kept.client:
        title, rows = f"A model tuned by one client alone, {plain(kept.label)}", "the training rows of this client"
    elif kept.arm != FEDERATED:
        title = f"A model tuned on rows of {clients}, without federation ({plain(kept.arm)})"
    else:
        title = f"A model tuned by {clients} in {plural(summary['rounds'], 'round')}"
        rows += " that stayed with their clients"
    loss = f"{before:.4f} before, {after:.4f} after (nats per token, measured before merging)"
    facts = {
        "base model": base_named(base),
        "base model's licence": plain(model["licence"]),
        "base digest": f"`{model['digest']}`",
        "data": f"{plain(data['name'])}, {rows}",
        "data's licence": plain(data["licence"]),
        "adapter": f"r = {adapter['r']}, alpha = {adapter['alpha']:g}, on {', '.join(adapter['targets'])}",
        "adapter's sha256": f"`{sha256}`",
        "held-out loss": loss,
        **({"privacy": plain(guarantee)} if guarantee else {}),
    }
    return _text(base, title, facts, dtype)


def site_card(card: Mapping[str, Any], dtype: str, kept: KeptAdapter, sha256: str) -> str:
    """The README.md of a merged model of a site: from the run card alone, so without numbers of rows and places."""
    base, lora = card["base"]["name"], card["lora"]
    rounds = plural(card["federation"]["rounds"], "round")
    title = f"A model tuned by sites in a federation of {rounds}"
    if kept.arm != FEDERATED:
        title = f"A model that one site made of its own after a federation of {rounds}"
    facts = {
        "base model": base_named(base),
        "base digest": f"`{card['base']['digest']}`",
        "data": "rows of sites, which stayed there",
        "adapter": f"r = {lora['r']}, alpha = {lora['alpha']:g}",
        "adapter's sha256": f"`{sha256}`",
    }
    return _text(base, title, facts, dtype)


def _text(base: str, title: str, facts: Mapping[str, str], dtype: str) -> str:
    made = {
        **facts,
        "weights": f"merged in float32, saved in {dtype}",
        "made with": f"Shepherd {__version__}, federated instruction tuning (Zhang et al., 2023)",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in made.items())
    return f"""---
library_name: transformers
base_model: {json.dumps(hub_name(base))}
tags: [lora, federated-learning, instruction-tuning, shepherd]
---

# {title}, adapter merged

| | |
|---|---|
{table}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

The licences of the base model and of the data apply to this model.
"""
