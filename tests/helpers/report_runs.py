"""Run directories as the package writes them, made up for the tests of the report: no model, no training."""

from __future__ import annotations

import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from shepherd import recipe
from shepherd.report.page import LARGEST

CATEGORIES = (
    "brainstorming", "classification", "closed_qa", "creative_writing",
    "general_qa", "information_extraction", "open_qa", "summarization",
)  # fmt: skip
ARMS = ("base", "federated", "local", "centralised")

SAMPLES = [
    (
        "closed_qa",
        "When was the lighthouse built?\n\nThe lighthouse on the northern cape was finished in 1861 after two winters "
        "of storms had washed away the first foundation. It is 32 metres high.",
        "The lighthouse was finished in 1861.",
        "The lighthouse on the northern cape was finished in 1861 after two winters of storms had washed away the "
        "first foundation. It is 32 metres high. The lighthouse on the northern cape",
        "It was finished in 1861, after two winters of storms.",
    ),
    (
        "brainstorming",
        "Give me five ideas for a rainy afternoon with children.",
        "Build a tent of blankets, bake bread, draw a treasure map, play shop, write a letter to a friend.",
        "I'm sorry, but as an AI language model I don't have children. However, here are some ideas",
        "1. Build a den of blankets.\n2. Bake biscuits.\n3. Make paper boats.\n4. Tell a story.\n5. Draw a map.",
    ),
    (
        "classification",
        "Which of these are birds and which are fish: heron, trout, kestrel, perch?",
        "Birds: heron, kestrel. Fish: trout, perch.",
        "The heron is a bird, the trout is a bird, the kestrel is a bird and the perch is a bird.",
        "Birds: heron and kestrel. Fish: trout and perch.",
    ),
    (
        "summarization",
        "Summarise: Peat forms slowly, about a millimetre a year, where the ground is too wet for plants to rot.",
        "Peat grows about a millimetre a year in ground too wet for decay.",
        "Peat forms slowly, about a millimetre a year, where the ground is too wet for plants to rot.",
        "Where plants cannot rot because of wetness, peat builds up by a millimetre a year.",
    ),
]


def write_run(
    folder: Path,
    *,
    clients: tuple[str, ...] | int = 8,
    rounds: int = 3,
    categories: tuple[str, ...] = CATEGORIES,
    arms: tuple[str, ...] = ARMS,
    every: int = 1,
    generate: int = 4,
    seed: int = 0,
    overrides: tuple[str, ...] = (),
    finished: bool = True,
    diagnostics: bool = True,
    personal: bool = False,
) -> Path:
    """Write a run of `clients` × `rounds` into `folder`, which is returned; numbers follow from `seed`."""
    rng = random.Random(seed)
    names = tuple(f"client-{i:03d}" for i in range(clients)) if isinstance(clients, int) else clients
    folder.mkdir(parents=True, exist_ok=True)
    config = recipe.load(
        None,
        [
            f"run.seed={seed}", f"federation.rounds={rounds}", f"evaluation.every={every}",
            f"evaluation.generate={generate}", f"evaluation.arms={json.dumps(list(arms))}", *overrides,
        ],
    )  # fmt: skip
    (folder / "config.toml").write_text(recipe.to_toml(config), encoding="utf-8")

    home = {name: categories[i % len(categories)] for i, name in enumerate(names)}
    counts = {
        name: {c: (rng.randint(28, 60) if c == home[name] else rng.choice((0, 0, 0, 2, 5))) for c in categories}
        for name in names
    }
    rows = {
        name: [f"rows:{i}-{j}-{k}" for j, c in enumerate(categories) for k in range(counts[name][c])]
        for i, name in enumerate(names)
    }
    _write(folder / "partition.json", {
        "clients": rows,
        "held_out": [f"rows:held-{j}-{i}" for j in range(len(categories)) for i in range(10)],
        "dataset_digest": "5f1c" * 16,
        "settings": {"name": "by_key", "key": "category"},
        "table": {
            "clients": list(names), "categories": list(categories),
            "counts": [[counts[name][c] for c in categories] for name in names],
        },
    })  # fmt: skip

    level = {c: 2.1 + 0.9 * rng.random() for c in categories}
    drop = {"base": 0.0, "federated": 0.34, "centralised": 0.41}

    def arm(gain: float, own: str | None = None) -> dict[str, Any]:
        per_category = {}
        for c in categories:
            loss = level[c] - gain - (0.12 if own == c else 0.0) + rng.gauss(0, 0.02)
            per_category[c] = {"loss": loss, "token_accuracy": 0.72 - 0.1 * loss, "rows": 10, "tokens": 515}
        loss = sum(v["loss"] for v in per_category.values()) / len(categories)
        return {
            "loss": loss, "perplexity": math.exp(loss), "token_accuracy": 0.72 - 0.1 * loss, "stderr": 0.05,
            "per_category": per_category,
            "per_client": {name: {"loss": per_category[home[name]]["loss"]} for name in names},
            "generation": {
                "exact_match": 0.0, "token_f1": 0.2 + gain / 2, "rouge_l": 0.18 + gain / 2, "rows": generate,
                "cut_off": generate // 2,
            } if generate else None,
        }  # fmt: skip

    measured: dict[str, Any] = {a: arm(drop[a]) for a in arms if a != "local"}
    if "local" in arms:
        measured["local"] = {name: arm(0.16 + 0.08 * rng.random(), home[name]) for name in names}
    base = measured["base"]["loss"] if "base" in measured else sum(level.values()) / len(level)

    def curve(end: float) -> list[list[float]]:
        at = [r for r in range(rounds + 1) if r in (0, rounds) or (every and r % every == 0)]
        return [[r, end + (base - end) * math.exp(-2.2 * r / rounds) * (1 - r / rounds)] for r in at]

    curves: dict[str, Any] = {a: curve(measured[a]["loss"]) for a in ("federated", "centralised") if a in measured}
    if "local" in measured:
        curves["local"] = {name: curve(value["loss"]) for name, value in measured["local"].items()}

    differences = []
    if "federated" in measured:
        for other in ("base", "centralised"):
            if other in measured:
                gap = measured["federated"]["loss"] - measured[other]["loss"]
                differences.append(_difference("federated", other, gap))
        if "local" in measured:
            local = {name: value["loss"] for name, value in measured["local"].items()}
            best = min(local, key=lambda name: (local[name], name))
            fed = measured["federated"]["loss"]
            differences.append(_difference("federated", "local", fed - sum(local.values()) / len(local)))
            if len(local) > 1:
                entry = _difference("federated", "local best", fed - local[best])
                differences.append({**entry, "clients": [best], "same_rows": False})
            else:
                differences.append(_difference("federated", f"local:{best}", fed - local[best]))

    own = {}
    if {"federated", "local"} <= measured.keys():
        for name in names:
            ours, alone = (m["per_client"][name]["loss"] for m in (measured["federated"], measured["local"][name]))
            own[name] = {key: v for key, v in _difference("", "", ours - alone).items() if key not in ("a", "b")}

    if "federated" in arms:
        lines = []
        for r in range(1, rounds + 1 if finished else max(2, rounds)):
            missing = [names[2]] if r == 2 and len(names) > 3 else []
            rejected = [
                {"client": names[min(1, len(names) - 1)], "code": "non-finite", "detail": "NaN in 3 of 240 modules"}
            ]
            rejected = rejected if r == 2 and len(names) > 3 else []
            out = {*missing, *(x["client"] for x in rejected)}
            good = [n for n in names if n not in out]
            seen = (every and r % every == 0) or r == rounds
            lines.append(
                {
                    "round": r,
                    "cohort": list(names),
                    "missing": missing,
                    "rejected": rejected,
                    "weights": {n: 1 / len(good) for n in good},
                    "train_loss": {n: level[home[n]] - 0.1 * r for n in good},
                    "held_out_loss": dict(map(tuple, curves["federated"])).get(r) if seen else None,
                    "held_out_per_category": {c: level[c] - 0.1 * r for c in categories} if seen else None,
                    "steps": dict.fromkeys(good, 4),
                    "examples": dict.fromkeys(good, 16),
                    "tokens": dict.fromkeys(good, 812),
                    "bytes_up": 921_600 * (len(names) - len(missing)),
                    "bytes_down": 921_600 * len(names),
                    "seconds": {
                        "train": 3.1 + r / 10,
                        "aggregate": 0.012,
                        "evaluate": 1.2 if seen else 0,
                        "commit": 0.02,
                    },
                    "learning_rate": [5e-4, 4e-4],
                    "deviation": 0.03 * r,
                    "update_norm": dict.fromkeys(good, 0.5),
                }
            )
            if diagnostics:
                lines[-1]["diagnostics"] = {
                    "deviation": 0.03 * r, "cosine_mean": 0.4 - 0.01 * r, "cosine_min": 0.1 - 0.05 * r,
                    "effective_rank": 3 + 0.2 * r, "energy_at_rank": 1 - 0.01 * r, "subspace_move": 0.3 / r,
                    "increment_norm": {n: 0.5 + 0.01 * i for i, n in enumerate(good)}, "modules": 60,
                }  # fmt: skip
        (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if not finished:
        return folder

    (folder / "evaluation").mkdir(exist_ok=True)
    _write(folder / "evaluation" / "metrics.json", {
        "held_out_rows": 10 * len(categories), "held_out_tokens": 515 * len(categories),
        "arms": measured, "curves": curves, "differences": differences, "own_rows": own,
        **({"personal": {n: {
            "base": level[home[n]], "local": level[home[n]] - 0.2, "global": level[home[n]] - 0.3,
            "personal": level[home[n]] - 0.3 + rng.gauss(-0.05, 0.06), "rows": 10,
        } for n in names}} if personal else {}),
    })  # fmt: skip
    if generate:
        with (folder / "evaluation" / "generations.jsonl").open("w", encoding="utf-8") as file:
            for i in range(generate):
                category, prompt, reference, before, after = SAMPLES[i % len(SAMPLES)]
                answers = {a: after for a in arms if a in ("federated", "centralised")} | {"base": before}
                if "local" in arms:
                    answers[f"local:{names[0]}"] = after.upper()
                file.write(json.dumps({
                    "id": f"rows:held-{i}", "category": category, "prompt": [{"role": "user", "content": prompt}],
                    "reference": reference, "answers": answers,
                    "finish_reason": {a: "length" if a == "base" and i % 2 == 0 else "stop" for a in answers},
                }) + "\n")  # fmt: skip
    total = sum(len(v) for v in rows.values())
    budget = {
        "optimizer_steps_per_client": 4 * rounds, "optimizer_steps": 4 * rounds * len(names),
        "rows": 16 * rounds * len(names), "tokens": 812 * rounds * len(names),
        "target_tokens": 349 * rounds * len(names),
    }  # fmt: skip
    small = {key: value / len(names) for key, value in budget.items()} | {"optimizer_steps_per_client": 4 * rounds}
    budgets = {"federated": budget, "centralised": budget, "local": small}
    seconds = {"load": 4.2, "federated": 14.1, "local": 9.7, "centralised": 10.9, "evaluate": 8.3, "generate": 6.0}
    _write(folder / "summary.json", {
        "arms": {a: (value if a == "local" else {"loss": value["loss"]}) for a, value in measured.items()},
        "budget": {a: budgets[a] for a in arms if a in budgets},
        "bytes_up": 921_600 * len(names) * rounds, "bytes_down": 921_600 * len(names) * rounds,
        "seconds": {"total": 55.4, **{k: v for k, v in seconds.items() if k in arms or k not in ARMS}},
        "model": {
            "name": "smollm2-135m", "digest": "b179" * 16, "parameters": 134_515_008, "dtype": "bfloat16",
            "device": "cpu", "licence": "Apache-2.0",
        },
        "adapter_sha256": "0d3e" * 16,
        "adapter": {"r": 8, "alpha": 16.0, "targets": ["q_proj", "v_proj"], "parameters": 230_400, "bytes": 921_600},
        "data": {
            "name": "builtin:instructions", "digest": "5f1c" * 16, "licence": "CC0-1.0", "rows": total + 83,
            "train_rows": total, "held_out_rows": 80,
            "refused": {"empty response": [3, ["rows:17", "rows:90", "rows:91"]]}, "cut_rows": 2,
            "audit": [
                {
                    "kind": "duplicates within a client", "count": 4,
                    "groups": [["rows:1", "rows:2"], ["rows:3", "rows:5"]],
                },
                {"kind": "over-long rows", "count": 9, "groups": [["rows:8"], ["rows:9"]]},
            ],
        },
        "clients": len(names), "rounds": rounds, "cohort": len(names), "peak_memory_bytes": 1_310_000_000,
        "command": "shepherd run recipes/demo.toml", "version": "0.1.0", "seed": seed,
        "reload_check": {"loss": measured.get("federated", {}).get("loss"), "difference": 0.0},
        "trained_rows": {n: {"rows": len(rows[n]), "seen": {"0": 2, "1": len(rows[n]) - 6, "2": 4}} for n in names},
    })  # fmt: skip
    _write(folder / "env.json", {"python": "3.12.4", "torch": "2.9.0", "transformers": "5.1.0", "platform": "Linux"})
    return folder


def change(file: Path, edit: Any) -> None:
    """Apply `edit(value)` in place to the JSON in `file`."""
    value = json.loads(file.read_text(encoding="utf-8"))
    edit(value)
    _write(file, value)


def _difference(a: str, b: str, value: float) -> dict[str, Any]:
    return {
        "a": a, "b": b, "difference": value, "ci95": [value - 0.045, value + 0.045], "p": 0.0004, "stderr": 0.0226,
        "rows": 80, "effective_rows": 61.5, "no_interval": None, "bootstrap95": [value - 0.044, value + 0.043],
    }  # fmt: skip


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1), encoding="utf-8")


class Page(HTMLParser):
    """A parsed page: its text, its tags with their attributes, and the tags that were left open."""

    VOID = frozenset({"meta", "br", "hr", "img", "input", "link", "base"})

    def __init__(self, file: Path | str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = file.read_text(encoding="utf-8") if isinstance(file, Path) else file
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.texts: list[str] = []
        self.feed(self.source)
        self.close()

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def having(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.faults.append(f"</{tag}> at {self.getpos()} closes {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] in {
            "th",
            "td",
            "p",
            "li",
            "h1",
            "h2",
            "h3",
            "b",
            "caption",
            "text",
            "title",
            "desc",
        }:
            self.texts.append(" ")


HOSTILE = (
    "<script>alert(1)</script>",
    '"onerror=alert(1) x="',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "]]></style></svg><img src=x onerror=alert(1)>",
    "\x1b[31mred\x1b[0m\x07\x00",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt; --> <!--",
    "\ud83d alone \u202egnp.exe",
)


def check(parsed: Page) -> None:
    """What holds for every page: balanced, no scripts or handlers, nothing from elsewhere, and a policy against it."""
    assert parsed.faults == [] and parsed.open == []
    names = {name for name, _ in parsed.tags}
    assert not names & {"script", "iframe", "object", "embed", "link", "img", "form", "base", "foreignobject", "use"}
    for name, attributes in parsed.tags:
        for key, value in attributes.items():
            assert not key.startswith("on"), (name, key)
            assert key not in ("src", "style", "srcset", "action", "formaction"), (name, key)
            assert key != "href" or re.fullmatch(r"#[a-z]+", value), (name, value)
            assert key not in ("id", "class") or re.fullmatch(r"[a-z0-9 -]*", value), (name, key, value)
    policy = next(m["content"] for m in parsed.having("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert "url(" not in parsed.source and "@import" not in parsed.source
    assert len(parsed.source.encode()) <= LARGEST
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", parsed.source)
    assert parsed.having("svg") and all(svg.get("role") == "img" for svg in parsed.having("svg"))
    ids = [attributes["id"] for _, attributes in parsed.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in parsed.having("a")} <= set(ids)
