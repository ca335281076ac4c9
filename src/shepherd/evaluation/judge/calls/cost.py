"""What a plan of calls will take: calls, tokens and, with the user's prices, money.

    currency = "USD"
    [models."judge-model"]
    input = 2.5       # per million tokens
    output = 10

No price is built in: prices change, and differ between contracts.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shepherd.errors import DataError, UsageError, did_you_mean

BYTES_PER_TOKEN = 4.0
"""Of an estimate; English text has about 4.2 characters per token."""
LEAST_BYTES_PER_TOKEN = 3.0
"""Of a bound: about one token per character of Chinese or Japanese."""
USUAL_TOKENS_OUT = 150
"""Of one judgement: reviews of GPT-4 in FastChat's recordings have 142 on average."""


@dataclass(frozen=True)
class Price:
    """Per million tokens."""

    input: float
    output: float
    currency: str = ""

    def of(self, tokens_in: int, tokens_out: int) -> float:
        """The cost of these tokens."""
        return (tokens_in * self.input + tokens_out * self.output) / 1e6


@dataclass(frozen=True)
class Estimate:
    """calls: to be made; recorded: found in the file. most: with a re-ask of every call and every reply at its limit.
    cost: None without prices."""

    calls: int
    recorded: int
    tokens_in: int
    tokens_out: int
    most_tokens_in: int
    most_tokens_out: int
    cost: float | None
    most_cost: float | None
    currency: str = ""


def estimate(prompts: Iterable[str], recorded: int, max_tokens: int, price: Price | None) -> Estimate:
    """Of the prompts of the calls to be made."""
    sizes = [len(prompt.encode()) for prompt in prompts]
    tokens_in = sum(math.ceil(size / BYTES_PER_TOKEN) for size in sizes)
    tokens_out = len(sizes) * min(USUAL_TOKENS_OUT, max_tokens)
    most_out = 2 * len(sizes) * max_tokens
    most_in = 2 * sum(most_tokens(size) for size in sizes) + len(sizes) * max_tokens
    return Estimate(
        len(sizes),
        recorded,
        tokens_in,
        tokens_out,
        most_in,
        most_out,
        cost=price.of(tokens_in, tokens_out) if price else None,
        most_cost=price.of(most_in, most_out) if price else None,
        currency=price.currency if price else "",
    )


def most_tokens(size: int) -> int:
    """A bound on the tokens of this many bytes of text, for the window of a model whose tokenizer is not known."""
    return math.ceil(size / LEAST_BYTES_PER_TOKEN)


def read_price(file: Path, model: str) -> Price:
    """The price of a model in a user's TOML file. DataError: malformed. UsageError: the model is not in it."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"file not found: {file}", hint=_example(model)) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{file}: {error}", hint=_example(model)) from None
    models = content.get("models")
    if not isinstance(models, Mapping) or model not in models:
        known = list(models) if isinstance(models, Mapping) else []
        raise UsageError(
            f"{file} has no price of {model!r}.{did_you_mean(model, known)}".rstrip("."), hint=_example(model)
        )
    row = models[model] if isinstance(models[model], Mapping) else {}
    prices = [row.get(side) for side in ("input", "output")]
    if not all(isinstance(p, int | float) and not isinstance(p, bool) and 0 <= p < math.inf for p in prices):
        raise DataError(f"{file}: the price of {model!r} is not input and output, numbers per million tokens",
                        hint=_example(model))  # fmt: skip
    return Price(float(row["input"]), float(row["output"]), str(content.get("currency", "")))


def _example(model: str) -> str:
    return f'currency = "USD", and below [models."{model}"]: input = 2.5, output = 10, per million tokens'
