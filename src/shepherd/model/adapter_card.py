"""The README.md of an adapter folder: base, data, clients, rounds, licences, and how to load it."""

from __future__ import annotations

import json

from shepherd.types import Adapter

BUILT_FROM = {
    "smollm2-135m": (
        "SmolLM2-135M-Instruct (HuggingFaceTB), as dequantised from its Q4_1 GGUF file: "
        "`shepherd model pull smollm2-135m` prints the folder to load it from"
    )
}


def adapter_card(
    adapter: Adapter,
    *,
    base: str,
    base_licence: str,
    data: str,
    data_licence: str,
    rows: int,
    clients: int,
    rounds: int,
    loss_before: float,
    loss_after: float,
    version: str,
) -> str:
    """Markdown with the front matter that model hubs read. Losses are held-out, in nats per target token."""
    targets = sorted({name.rsplit(".", 1)[-1] for name in adapter.factors})
    rank_stabilised = ", rank-stabilised" if adapter.rslora else ""
    return f"""---
library_name: peft
base_model: {json.dumps(base)}
tags: [lora, federated-learning, instruction-tuning, shepherd]
---

# LoRA adapter, tuned by {clients} clients in {rounds} rounds

| | |
|---|---|
| base model | {base_named(base)} |
| base model's licence | {plain(base_licence)} |
| data | {plain(data)}, {rows} training rows that stayed with their clients |
| data's licence | {plain(data_licence)} |
| adapter | r = {adapter.r}, alpha = {adapter.alpha:g}{rank_stabilised}, on {", ".join(targets)} |
| base digest | `{adapter.base_digest}` |
| held-out loss | {loss_before:.4f} before, {loss_after:.4f} after (nats per token) |
| made with | Shepherd {version}, federated instruction tuning (Zhang et al., 2023) |

```python
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "path/to/this/folder")
```

The licences of the base model and of the data apply to what is made with this adapter.
"""


def base_named(base: str) -> str:
    """What a card calls the base: where a built-in one comes from, else its name."""
    return BUILT_FROM.get(base) or plain(base)


def plain(text: str) -> str:
    """One line without the characters that Markdown tables and HTML read."""
    return " ".join(text.split()).translate(str.maketrans({"|": "/", "<": "‹", ">": "›", "`": "'"}))
