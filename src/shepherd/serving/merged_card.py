"""The model card of a merged model: summary of its run and the adapter inside in, README.md out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shepherd._version import __version__
from shepherd.model.adapter_card import base_named, hub_name, plain, private_row
from shepherd.report.guarantee import guarantee_sentence
from shepherd.report.wording import plural
from shepherd.store.adapters import FEDERATED, KeptAdapter


def merged_card(summary: Mapping[str, Any], dtype: str, kept: KeptAdapter, sha256: str) -> str:
    """The merged model's README.md: what it was made of, and whose licences apply. sha256: of the adapter inside."""
    model, data, adapter, arms = (summary[key] for key in ("model", "data", "adapter", "arms"))
    measured = arms[kept.arm][kept.client] if kept.client else arms[kept.arm]
    guarantee = guarantee_sentence(summary["privacy"]) if kept.arm == FEDERATED and "privacy" in summary else ""
    base, losses = model["name"], f"{arms['base']['loss']:.4f} before, {measured['loss']:.4f} after"
    clients = plural(summary["clients"], "client")
    rows = f"{data['train_rows']} training rows" if "train_rows" in data else "training rows"
    if kept.client:
        title, rows = f"A model tuned by one client alone, {plain(kept.label)}", "the training rows of this client"
    elif kept.arm != FEDERATED:
        title = f"A model tuned on rows of {clients}, without federation ({plain(kept.arm)})"
    else:
        title = f"A model tuned by {clients} in {plural(summary['rounds'], 'round')}"
        rows += " that stayed with their clients"
    return f"""---
library_name: transformers
base_model: {json.dumps(hub_name(base))}
tags: [lora, federated-learning, instruction-tuning, shepherd]
---

# {title}, adapter merged

| | |
|---|---|
| base model | {base_named(base)} |
| base model's licence | {plain(model["licence"])} |
| base digest | `{model["digest"]}` |
| data | {plain(data["name"])}, {rows} |
| data's licence | {plain(data["licence"])} |
| adapter | r = {adapter["r"]}, alpha = {adapter["alpha"]:g}, on {", ".join(adapter["targets"])} |
| adapter's sha256 | `{sha256}` |
| held-out loss | {losses} (nats per token, measured before merging) |{private_row(guarantee)}
| weights | merged in float32, saved in {dtype} |
| made with | Shepherd {__version__}, federated instruction tuning (Zhang et al., 2023) |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

The licences of the base model and of the data apply to this model.
"""
