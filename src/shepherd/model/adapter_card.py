"""The model card (README.md) of an adapter folder: base, data, clients, rounds, licences, loading."""

from __future__ import annotations

import json

from shepherd.model import catalogue
from shepherd.types import Adapter

BUILT_FROM = {
    "smollm2-135m": (
        "SmolLM2-135M-Instruct (HuggingFaceTB), as dequantised from its Q4_1 GGUF file: "
        "`shepherd model pull smollm2-135m` prints the folder to load it from"
    )
}
_ELSEWHERE = """
The base is Shepherd's built-in {name}: the weights of [{hub_id}](https://huggingface.co/{hub_id}), dequantised from a
Q4_1 GGUF file. `adapter_config.json` names the folder in which they lie on the machine of the run. On another machine,
`shepherd model pull {name}` makes the same folder; {hub_id} itself also fits the adapter, but its weights are not
rounded to Q4_1, so that the losses above are not exactly those that it has there.
"""


def adapter_card(
    adapter: Adapter,
    *,
    base: str,
    base_licence: str,
    data: str,
    data_licence: str,
    rows: int | None,
    clients: int,
    rounds: int,
    loss_before: float,
    loss_after: float,
    version: str,
    privacy: str = "",
) -> str:
    """Markdown with the front matter that model hubs read. Losses are held-out, in nats per target token.

    rows: of all clients, None where that is withheld. privacy: the guarantee of the run in a sentence, or "".
    """
    targets = sorted({name.rsplit(".", 1)[-1] for name in adapter.factors})
    rank_stabilised = ", rank-stabilised" if adapter.rslora else ""
    return f"""---
library_name: peft
base_model: {json.dumps(hub_name(base))}
tags: [lora, federated-learning, instruction-tuning, shepherd]
---

# LoRA adapter, tuned by {clients} clients in {rounds} rounds

| | |
|---|---|
| base model | {base_named(base)} |
| base model's licence | {plain(base_licence)} |
| data | {plain(data)}, {"training" if rows is None else f"{rows} training"} rows that stayed with their clients |
| data's licence | {plain(data_licence)} |
| adapter | r = {adapter.r}, alpha = {adapter.alpha:g}{rank_stabilised}, on {", ".join(targets)} |
| base digest | `{adapter.base_digest}` |
| held-out loss | {loss_before:.4f} before, {loss_after:.4f} after (nats per token) |{private_row(privacy)}
| made with | Shepherd {version}, federated instruction tuning (Zhang et al., 2023) |

```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/folder")
```
{elsewhere(base)}
The licences of the base model and of the data apply to what is made with this adapter.
"""


def private_row(privacy: str) -> str:
    """The row of a card's table that states the guarantee; "" without one."""
    return f"\n| privacy | {plain(privacy)} |" if privacy else ""


def base_named(base: str) -> str:
    """The base as described in a model card: the origin of a built-in one, else its name."""
    return BUILT_FROM.get(base) or plain(base)


def hub_name(base: str) -> str:
    """The hub id of the base: for a built-in one, the model that it was converted from; else its name."""
    return catalogue.BUILTIN[base].hub_id if base in catalogue.BUILTIN else base


def elsewhere(base: str) -> str:
    """Instructions for finding a built-in base on another machine; empty for other bases, whose name is enough."""
    return _ELSEWHERE.format(name=base, hub_id=catalogue.BUILTIN[base].hub_id) if base in catalogue.BUILTIN else ""


def plain(text: str) -> str:
    """The text on one line, without the characters that Markdown tables and HTML interpret."""
    return " ".join(text.split()).translate(str.maketrans("|<>`", "/‹›'"))
