"""Losses, answers and counts of a finished run -> metrics.json, generations.jsonl and summary.json, as plain dicts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from typing import Any

import numpy as np

from shepherd.clients.row_order import times_walked
from shepherd.config import Config
from shepherd.data.audit import Audit
from shepherd.data.prompts import Template
from shepherd.data.tokenize import encode_prompt
from shepherd.errors import plural
from shepherd.evaluation.losses import RowLosses
from shepherd.evaluation.statistics import difference_of_sums, paired_difference
from shepherd.evaluation.text import metrics, score
from shepherd.model.generate import Answer
from shepherd.prepare import Rows
from shepherd.rng import stream
from shepherd.types import Example, Message, Tokens

ROWS_SEEN = "evaluation/rows_seen.jsonl"
LEFT_OUT = "evaluation/left_out.jsonl"
FIRST = 5
"""Places and ids that summary.json names of each reason and finding; `shepherd data inspect --json` has more."""


def arm_metrics(losses: RowLosses, rows: Rows) -> dict[str, Any]:
    """An arm's entry in metrics.json: over all held-out rows, per category, and per client's own categories."""
    categories = np.array([row.category for row in rows.held_out])
    return {
        **finite(losses.summary()),
        "per_category": {
            str(name): finite(losses.select(categories == name).summary()) for name in sorted(set(categories))
        },
        "per_client": {
            client: finite(losses.select(np.array(indices)).summary())
            for client in sorted(rows.clients)
            if (indices := rows.held_out_of(client))
        },
        "generation": None,
    }


def personal_metrics(
    own: Mapping[str, RowLosses],
    arms: Mapping[str, RowLosses],
    local: Mapping[str, RowLosses],
    rows: Rows,
    shares: Mapping[str, float],
) -> dict[str, Any]:
    """Each client's losses on its own held-out rows under the base, its local, the global and its personal model.

    shares: the mean λ of models that mix, as "share".
    """
    found = {}
    for client, losses in sorted(own.items()):
        at = np.array(rows.held_out_of(client))
        models = {"base": arms["base"], "global": arms["federated"]}
        if client in local:
            models["local"] = local[client]
        found[client] = {
            **{name: finite(measured.select(at).summary())["loss"] for name, measured in models.items()},
            "personal": finite(losses.summary())["loss"],
            "rows": len(at),
            **finite({"share": shares[client]} if client in shares else {}),
        }
    return found


def differences(arms: Mapping[str, RowLosses], locals_: Mapping[str, RowLosses], seed: int) -> list[dict[str, Any]]:
    """Federated against every other arm, and against the local clients' mean and best, on the same rows.

    a − b by the rules of `paired_difference`: below 0, a is better.
    """
    others = {name: losses for name, losses in arms.items() if name != "federated"}
    if locals_:
        everyone = list(locals_.values())
        mean = RowLosses(
            np.mean([losses.nll for losses in everyone], axis=0),
            everyone[0].tokens,
            np.mean([losses.hits for losses in everyone], axis=0),
        )
        best = min(locals_, key=lambda client: locals_[client].stat.mean)
        others |= {"local mean": mean, f"local:{best}": locals_[best]}
    if "federated" not in arms:
        return []
    pairs = [("federated", name, arms["federated"], losses) for name, losses in others.items()]
    if "centralised" in arms:
        pairs.append(("centralised", "base", arms["centralised"], arms["base"]))
    return [
        {"a": a, "b": b, **paired_difference(first, second, stream(seed, "bootstrap", b))}
        for a, b, first, second in pairs
    ]


def own_rows(federated: RowLosses, locals_: Mapping[str, RowLosses], rows: Rows) -> dict[str, dict[str, Any]]:
    """Federated − alone of each client that trained alone, on the held-out rows of the categories that it holds."""
    at = {client: np.array(rows.held_out_of(client), np.int64) for client in sorted(locals_)}
    return {client: paired_difference(federated.select(own), locals_[client].select(own)) for client, own in at.items()}


def sample_rows(held_out: Sequence[Tokens], count: int, usable: Callable[[int], bool]) -> list[int]:
    """Indices of `count` held-out rows, taken in turn from each category; for one that is not usable comes the next
    of its category. Fewer where no more are usable."""
    by_category: dict[str, list[int]] = {}
    for index, row in enumerate(held_out):
        by_category.setdefault(row.category, []).append(index)
    turns = zip_longest(*(filter(usable, indices) for indices in by_category.values()))
    return sorted(islice((index for turn in turns for index in turn if index is not None), count))


def asked_rows(
    config: Config, rows: Rows, template: Template, tokenizer: Any, window: int | None
) -> tuple[list[Example], list[list[int]], str]:
    """(rows that are answered by generation, their prompts, why they are fewer than were asked for: a sentence, or
    nothing). Rows that were cut are not asked: nothing as long was trained on. Nor are plain texts, which have no
    prompt, and rows whose last answer is not to be learned, which nothing is to be like."""
    table, prompts = config.evaluation, {}
    unasked = Counter(why for row in rows.held_out if (why := _unasked(row, rows.examples[row.id], config)))

    def example(index: int) -> Example:
        return rows.examples[rows.held_out[index].id]

    def usable(index: int) -> bool:
        if _unasked(rows.held_out[index], example(index), config):
            return False
        row = example(index)
        prompts[index] = encode_prompt(template, tokenizer, row.messages, row.context, row.tools)
        return len(prompts[index]) + table.max_new_tokens <= (window or math.inf)

    picked = sample_rows(rows.held_out, table.generate, usable)
    lost = ""
    if len(picked) < table.generate:
        too_long = f"with evaluation.max_new_tokens = {table.max_new_tokens} beyond the {window} positions of the model"
        lost = (
            f"evaluation.generate = {table.generate} asks for more answers than the {len(picked)} that are possible: "
            f"{plural(len(rows.held_out), 'row')} held out"
        )
        reasons = {**unasked, too_long: len(prompts) - len(picked)}
        lost += "".join(f", {count} of them {why}" for why, count in reasons.items() if count)
    return [example(index) for index in picked], [prompts[index] for index in picked], lost


def _unasked(row: Tokens, example: Example, config: Config) -> str:
    """Why a held-out row is not answered by generation, or ""."""
    last = example.messages[-1]
    if last.role != "assistant":
        return "plain text without a prompt"
    if not last.learned:
        return "with a last answer that is not to be learned"
    return f"cut to data.max_length = {config.data.max_length}" if row.cut else ""


def generation_record(example: Example, answers: Mapping[str, Answer]) -> dict[str, Any]:
    """One line of generations.jsonl. finish_reason "length": cut off at evaluation.max_new_tokens."""
    messages = [_turn(m) for m in example.messages[:-1]]
    asked = next((turn for turn in reversed(messages) if turn["role"] == "user"), None)
    if example.context and asked:
        asked["content"] += f"\n\n{example.context}"
    return {
        "id": example.id,
        "category": example.category,
        "prompt": messages,
        **({"tools": example.tools} if example.tools else {}),
        "reference": example.messages[-1].content,
        "answers": {arm: answer.text for arm, answer in answers.items()},
        "finish_reason": {arm: answer.finish_reason for arm, answer in answers.items()},
    }


def _turn(message: Message) -> dict[str, str]:
    """A turn of generations.jsonl, with the fields that only some turns have where they have them."""
    more = {"reasoning": message.reasoning, "extra": message.extra}
    return {"role": message.role, "content": message.content, **{key: text for key, text in more.items() if text}}


def generation_scores(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Exact match, token F1 and ROUGE-L of each arm that answered; `cut_off`: answers that ended for their length."""
    arms = {arm for record in records for arm in record["answers"]}
    return {
        arm: {
            **score([record["answers"][arm] for record in records], [record["reference"] for record in records]),
            "cut_off": sum(record["finish_reason"][arm] == "length" for record in records),
        }
        for arm in sorted(arms)
    }


def generation_differences(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Federated − each other arm in the mean of every text metric over the same rows: above 0, federated is nearer."""
    found = []
    for name in metrics if records else ():
        metric = metrics.build(name)
        scores = {
            arm: np.array([metric(record["answers"][arm], record["reference"]) for record in records])
            for arm in records[0]["answers"]
        }
        ours = scores.pop("federated")
        found += [
            {"metric": name, "a": "federated", "b": arm, **difference_of_sums(ours, theirs, np.ones(len(records)))}
            for arm, theirs in scores.items()
        ]
    return found


def rows_seen(lines: Sequence[Mapping[str, Any]], rows: Rows, seed: int) -> dict[str, np.ndarray]:
    """int[rows] of each client: how often the rounds trained on each row, by the lines of rounds.jsonl.

    A row is seen when a local step is done with it, whether or not the update counts in the end. Where a round trains
    more than one adapter on its rows that is once, and probes of slots and tuning after the last round are left out.
    """
    at = dict.fromkeys(sorted(rows.clients), 0)

    def walked(client: str, count: int) -> np.ndarray:
        return times_walked(len(rows.clients[client]), client, count, seed)

    seen = {client: walked(client, 0) for client in at}
    for line in lines:
        for client, count in line.get("unused_examples", {}).items():  # its walk does not go on
            seen[client] += walked(client, at[client] + count) - walked(client, at[client])
        for client, count in line["examples"].items():
            at[client] += count
    return {client: times + walked(client, at[client]) for client, times in seen.items()}


def times_seen(seen: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Per client: its rows, and how many of them were seen how often."""
    counts = {client: Counter(sorted(times.tolist())) for client, times in seen.items()}
    return {
        client: {"rows": n.total(), "seen": {str(times): rows for times, rows in n.items()}}
        for client, n in counts.items()
    }


def seen_by_id(seen: Mapping[str, np.ndarray], rows: Rows) -> Iterator[dict[str, Any]]:
    """The lines of rows_seen.jsonl: of each client the ids by how often they were seen, but for the largest group.

    `otherwise` is how often the rows that are not named were seen.
    """
    for client, times in seen.items():
        usual = Counter(times.tolist()).most_common(1)[0][0]
        named: dict[str, list[str]] = {str(n): [] for n in sorted(set(times.tolist()) - {usual})}
        for row, n in zip(rows.clients[client], times.tolist(), strict=True):
            if n != usual:
                named[str(n)].append(row.id)
        yield {"client": client, "rows": len(times), "otherwise": usual, "seen": named}


def reasons(counted: Mapping[str, tuple[int, Sequence[str]]]) -> dict[str, list[Any]]:
    """{reason: [rows, the first places]} of rows that were refused or changed."""
    return {reason: [count, list(places[:FIRST])] for reason, (count, places) in counted.items()}


def audit_findings(audit: Audit) -> list[dict[str, Any]]:
    """The findings of an audit, each with the first groups of ids that share it and at most as many ids of a group."""
    return [
        {"kind": f.kind, "count": f.count, "groups": [list(group[:FIRST]) for group in f.groups[:FIRST]]}
        for f in audit.findings
    ]


def left_out(rows: Rows) -> Iterator[dict[str, Any]]:
    """The lines of left_out.jsonl: all rows that were refused or changed, and all groups that the audit found."""
    for what in ("refused", "changed"):
        for counted in (getattr(rows.dataset, what), getattr(rows.tokenized, what)):
            for reason, (_, ids) in counted.items():
                yield {"what": what, "reason": reason, "groups": [[id] for id in ids]}
    for finding in rows.audit.findings:
        yield {"what": "audit", "reason": finding.kind, "groups": [list(group) for group in finding.groups]}


def brief(measured: Mapping[str, Any]) -> dict[str, Any]:
    """An arm in summary.json: its loss, and the loss of each category."""
    return {"loss": measured["loss"], "per_category": {k: v["loss"] for k, v in measured["per_category"].items()}}


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """NaN and infinity become null: JSON has neither."""
    return {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in values.items()}
