"""The site.toml of a new site: its own rows and base, and a strict policy with a line about each key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from shepherd.federation.cards import Policy

STRICT: dict[str, tuple[object, str]] = {
    "approve": ("ask", '"ask": a person approves each run. "policy": what this policy allows needs no person'),
    "bases": ([], "digests of base models, or their first 12 characters; empty: the base above, and no other"),
    "methods": ([], "names of methods (shepherd list methods); empty: every built-in one"),
    "personalizations": ([], "the same for own models of sites"),
    "transforms": ([], "the same for transforms of updates"),
    "max_rounds": (100, "rounds of a run"),
    "max_local_steps": (1000, "optimizer steps in a round"),
    "max_rows": (100_000, "rows that pass through training in a round"),
    "min_rows_round": (8, "the fewest of them: an update of a single row shows much of it"),
    "max_learning_rate": (1.0, "the largest learning rate"),
    "max_runs": (100, "runs of which this site keeps anything; remove folders of old ones from runs/"),
    "max_trainings": (300, "tasks in a run, repeated ones included"),
    "max_measures": (300, "models that are measured in a run"),
    "max_parameters": (2**28, "trainable numbers of the adapter"),
    "max_message_mib": (256, "a larger message is refused before it is read"),
    "min_rows": (1, "take part only with this many usable rows"),
    "min_rows_tell": (0, "state a smaller number of rows as this one"),
    "least_group": (10, "measures of fewer held-out rows stay here"),
    "categories": ("hidden", '"shown": names of categories may leave with measures'),
    "require": (["tls1.3"], 'protections without which this site takes no part; "dp": differential privacy'),
    "epsilon_max": (0.0, 'the largest epsilon of a private run, as this site computes it; 0: any. "dp" needs it'),
    "delta_max": (0.0, 'the largest delta of a private run; 0: any. "dp" needs it'),
    "least_cohort": (2, "no round with fewer sites"),
    "window": ("", 'hours of local time in which this site trains, e.g. "Mon-Fri 20:00-06:00"; empty: always'),
}
"""Key of the policy -> its value in a new site.toml, and a line about it."""


@dataclass(frozen=True)
class NewSite:
    """What a new site.toml says beside the strict policy, of which `policy` changes some.

    rows, base: where they lie, as the site's process finds them from any folder.
    """

    name: str
    rows: str
    base: str
    columns: Mapping[str, str] = field(default_factory=dict)
    threads: int = 0
    policy: Mapping[str, object] = field(default_factory=dict)


def site_toml(new: NewSite) -> str:
    """The text of a new site.toml."""
    assert STRICT.keys() == Policy.model_fields.keys()
    columns = ", ".join(f"{key} = {_value(name)}" for key, name in new.columns.items())
    lines = [
        "# This machine's own settings; nothing here comes from a message, and nothing of it leaves.",
        "[site]",
        f"name = {_value(new.name)}",
        f"{f'threads = {new.threads}':<31}# processor threads for training; 0: all",
        "",
        "[data]",
        f"source = {_value(new.rows)}",
        *([f"columns = {{ {columns} }}"] if columns else []),
        "",
        "[model]",
        f"base = {_value(new.base)}",
        "",
        "# What this site takes part in, checked before a row is read. A refusal leaves as a code, never this text.",
        "[policy]",
    ]
    policy = {key: (new.policy.get(key, value), about) for key, (value, about) in STRICT.items()}
    lines += [f"{f'{key} = {_value(value)}':<31}# {about}" for key, (value, about) in policy.items()]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
