"""Tables and figures of `shepherd data`."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from shepherd.cli import output

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from shepherd.config import DataTable
    from shepherd.data.sources import Dataset
    from shepherd.data.tally import RowsByReason
    from shepherd.data.tokenize import Tokenized


SHADES = " ░▒▓█"
MOST_COLUMNS = 24


def print_counts(dataset: Dataset, tokenized: Tokenized, table: DataTable, notes: Sequence[str]) -> None:
    import numpy as np

    from shepherd.data.tally import first_of
    from shepherd.report.wording import plural

    examples = dataset.examples
    rows = plural(len(examples), "row")
    click.echo(f"{output.clean(dataset.name)}: {rows}, format {dataset.format}, licence {dataset.licence}")
    for line in filter(None, (dataset.unread, *dataset.notes, *notes)):
        click.echo(f"  {output.clean(line)}")
    for what, rows_by_reason in (
        ("refused", dataset.refused), ("changed", dataset.changed),
        ("refused", tokenized.refused), ("changed", tokenized.changed),
    ):  # fmt: skip
        for reason, ids in rows_by_reason.items():
            click.echo(output.clean(f"  {what} {len(ids):,}: {reason} ({first_of(ids)})"))
    click.echo()
    sources = Counter(example.source for example in examples if example.source)
    categories = Counter(example.category for example in examples)
    output.print_table(("category", "rows"), categories.most_common(MOST_COLUMNS))
    if len(categories) > MOST_COLUMNS:
        click.echo(f"and {len(categories) - MOST_COLUMNS} more categories")
    if sources:
        click.echo(f"sources: {len(sources)}, with {min(sources.values()):,} to {max(sources.values()):,} rows each")
    lengths, targets = tokenized.lengths, [t.targets for t in tokenized.tokens]
    click.echo(
        f"\ntokens per row: median {np.median(lengths):,.0f}, 95 % at most {np.percentile(lengths, 95):,.0f}, "
        f"longest {lengths.max():,}; learned: {sum(targets):,} of {sum(len(t.input_ids) for t in tokenized.tokens):,}"
    )
    click.echo(
        f"truncation to data.max_length = {table.max_length} takes {plural(tokenized.cut_tokens, 'token')} from "
        f"{plural(tokenized.cut_rows, 'row')} (context of {tokenized.cut_contexts:,}, prompt of "
        f"{tokenized.cut_prompts:,}, response of {tokenized.cut_responses:,})"
    )
    if tokenized.escaped:
        click.echo(f"{plural(tokenized.escaped, 'row')} with a control token spelled out, encoded as ordinary text")


def print_examples(dataset: Dataset, tokenized: Tokenized, tokenizer: Any, rows: int) -> None:
    from shepherd.data.tokenize import pieces

    coloured = output.colours()
    legend = click.style("learned", fg="green", bold=True) if coloured else "⟦learned⟧"
    for example in _spread(dataset, tokenized, rows):
        row = tokenized.by_id[example.id]
        title = f"{example.id}, {example.category}: {len(row.input_ids)} tokens, {row.targets} {legend}"
        click.echo(f"\n── {output.clean(title) if not coloured else title}" + (f", {row.cut} cut" if row.cut else ""))
        click.echo(_marked(pieces(row.input_ids.tolist(), row.loss_mask.tolist(), tokenizer), coloured))


def _spread(dataset: Dataset, tokenized: Tokenized, rows: int) -> list:
    """The first row of each category in turn, then the second ones: `rows` of those that were tokenised."""
    seen: Counter[str] = Counter()
    ranked = []
    for position, example in enumerate(dataset.examples):
        if example.id in tokenized.by_id:
            ranked.append((seen[example.category], position, example))
            seen[example.category] += 1
    return [example for _, _, example in sorted(ranked, key=lambda item: item[:2])[:rows]]


def _marked(parts: list[tuple[str, bool]], coloured: bool) -> str:
    """The text of a row; runs of learned tokens are green, or in ⟦ ⟧ where there is no colour."""
    runs: list[tuple[str, bool]] = []
    for text, learned in parts:
        if runs and runs[-1][1] == learned:
            runs[-1] = (runs[-1][0] + text, learned)
        else:
            runs.append((text, learned))
    marked = []
    for text, learned in runs:
        text = output.clean(text)
        if coloured:
            marked.append(click.style(text, fg="green", bold=True) if learned else click.style(text, dim=True))
        else:
            marked.append(f"⟦{text}⟧" if learned else text)
    return "".join(marked)


def dataset_entry(
    dataset: Dataset, tokenized: Tokenized, found: Any, tokenizer: Any, rows: int, notes: Sequence[str]
) -> dict[str, Any]:
    from shepherd.data.tokenize import pieces

    def counted(rows: RowsByReason) -> dict[str, Any]:
        return {reason: {"rows": len(ids), "ids": ids} for reason, ids in rows.items()}

    return {
        "name": dataset.name,
        "format": dataset.format,
        "licence": dataset.licence,
        "digest": dataset.digest,
        "rows": len(dataset.examples),
        "categories": Counter(example.category for example in dataset.examples),
        "refused": counted(dataset.refused) | counted(tokenized.refused),
        "changed": counted(dataset.changed) | counted(tokenized.changed),
        "unread": dataset.unread,
        "notes": [*dataset.notes, *notes],
        "tokens": sum(len(t.input_ids) for t in tokenized.tokens),
        "target_tokens": sum(t.targets for t in tokenized.tokens),
        "cut_rows": tokenized.cut_rows,
        "cut_tokens": tokenized.cut_tokens,
        "audit": [{"kind": f.kind, "rows": f.count, "groups": f.groups} for f in found.findings],
        "examples": [
            {
                "id": e.id,
                "category": e.category,
                "pieces": pieces(row.input_ids.tolist(), row.loss_mask.tolist(), tokenizer),
            }
            for e in _spread(dataset, tokenized, rows)
            for row in [tokenized.by_id[e.id]]
        ],
    }


def print_partition(clients: list[str], categories: list[str], counts: np.ndarray) -> None:
    """The client × category table, each cell with a shade for its share of the largest one.

    Where a terminal is too narrow for the names of the categories, numbers stand for them.
    """
    import numpy as np

    from shepherd.report.wording import cells, shorten

    if len(categories) > MOST_COLUMNS:  # the largest, and one column for all others
        order = np.argsort(-counts.sum(axis=0), kind="stable")
        shown, rest = np.sort(order[: MOST_COLUMNS - 1]), np.sort(order[MOST_COLUMNS - 1 :])
        categories = [*(categories[j] for j in shown), f"{len(rest)} others"]
        counts = np.column_stack([counts[:, shown], counts[:, rest].sum(axis=1)])
    most = max(int(counts.max()), 1)
    columns = [shorten(category, 14, middle=True) for category in categories]
    long = lambda text: sum(map(cells, text))  # noqa: E731
    clients = [shorten(client, 48, middle=True) for client in clients]
    width = max(map(long, clients)) + sum(2 + max(7, long(name)) for name in columns) + 8
    narrow = sys.stdout.isatty() and width > shutil.get_terminal_size().columns

    def cell(count: int) -> str:
        shade = SHADES[0 if count == 0 else 1 + min(3, 4 * count // (most + 1))]
        return f"{count or '·'}{shade}" if narrow else f"{count or '·'} {shade * 2}"

    rows = [
        (shorten(client, 16, middle=True) if narrow else client, int(line.sum()), *(cell(int(count)) for count in line))
        for client, line in zip(clients, counts, strict=True)
    ]
    numbers = [f"{number}" for number in range(1, len(columns) + 1)]
    output.print_table(("client", "rows", *(numbers if narrow else columns)), rows, right=range(2, 2 + len(columns)))
    if narrow:
        lines = [""]
        for number, name in zip(numbers, categories, strict=True):
            named = f" {number}\N{NO-BREAK SPACE}{output.clean(name)}" + ("," if number != numbers[-1] else "")
            if lines[-1] and long(lines[-1] + named) > shutil.get_terminal_size().columns:
                lines.append("")
            lines[-1] = (lines[-1] + named).lstrip()
        click.echo("\n" + "\n".join(lines))


def partition_svg(clients: list[str], categories: list[str], counts: np.ndarray, name: str) -> str:
    from shepherd.report.charts import heat_map, standalone

    drawn = heat_map(
        clients,
        categories,
        counts.tolist(),
        title="Rows per client and category",
        description=f"{counts.sum():,} rows divided over {len(clients)} clients by the partitioner {name}",
        x_label="category",
        y_label="client",
    )
    return standalone(drawn)
