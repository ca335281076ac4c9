"""The model card of a merged model: summary of its run in, README.md out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shepherd._version import __version__
from shepherd.model.adapter_card import base_named, hub_name, plain
from shepherd.report.wording import plural


def merged_card(summary: Mapping[str, Any], dtype: str) -> str:
    """The merged model's README.md: what it was made of, and whose licences apply."""
    model, data, adapter, arms = (summary[key] for key in ("model", "data", "adapter", "arms"))
    base, before, after = model["name"], arms["base"]["loss"], arms["federated"]["loss"]
    return f"""---
library_name: transformers
base_model: {json.dumps(hub_name(base))}
tags: [lora, federated-learning, instruction-tuning, shepherd]
---

# A model tuned by {plural(summary["clients"], "client")} in {plural(summary["rounds"], "round")}, adapter merged

| | |
|---|---|
| base model | {base_named(base)} |
| base model's licence | {plain(model["licence"])} |
| base digest | `{model["digest"]}` |
| data | {plain(data["name"])}, {data["train_rows"]} training rows that stayed with their clients |
| data's licence | {plain(data["licence"])} |
| adapter | r = {adapter["r"]}, alpha = {adapter["alpha"]:g}, on {", ".join(adapter["targets"])} |
| adapter's sha256 | `{summary["adapter_sha256"]}` |
| held-out loss | {before:.4f} before, {after:.4f} after (nats per token, measured before merging) |
| weights | merged in float32, saved in {dtype} |
| made with | Shepherd {__version__}, federated instruction tuning (Zhang et al., 2023) |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

The licences of the base model and of the data apply to this model.
"""
