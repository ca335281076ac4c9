"""`shepherd data`: look at what would be trained on, and at who would hold it, before anything is trained."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shepherd.cli import output
from shepherd.cli.group import Commands
from shepherd.cli.settings import Settings, complete_recipe, gather, looks_like_recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from shepherd.config import Config, DataTable
    from shepherd.data.sources import Dataset
    from shepherd.data.tokenize import Tokenized
    from shepherd.types import Partition

SHADES = " ░▒▓█"
MOST_COLUMNS = 24


@click.group(cls=Commands)
def data() -> None:
    """Look at instructions and at who holds them."""


def _data_options(command):
    for option in reversed((
        click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set any key of the recipe."),
        click.option("--columns", multiple=True, metavar="FIELD=COLUMN", help="Which column holds which field."),
        click.option("--model", metavar="BASE", help="Whose tokenizer and chat template."),
        click.option("--seed", type=int, help="Root of every random stream."),
        click.option("--json", "as_json", is_flag=True, help="JSON on stdout."),
    )):  # fmt: skip
        command = option(command)
    return command


@data.command()
@click.argument("source", metavar="SOURCE|RECIPE", shell_complete=complete_recipe)
@click.option("--rows", default=2, show_default=True, type=click.IntRange(min=0), help="Tokenised examples to print.")
@_data_options
def inspect(source: str, rows: int, as_json: bool, **flags: Any) -> None:
    """Print examples as the model will see them, with what is learned marked, and count what is wrong with the rest.

    SOURCE is whatever --data takes; a recipe brings its own source, template and lengths.
    """
    from shepherd.experiment.division import read_rows
    from shepherd.model.fetch import look_at

    config = _settings(source, **flags).config
    tell = None if as_json else output.note
    dataset = read_rows(config, tell=tell)
    look_at(config.model.base, config.model.revision)
    from shepherd.data.audit import audit
    from shepherd.data.prompts import build_template
    from shepherd.data.tokenize import tokenize

    output.announce_torch()
    tokenizer = _tokenizer(config.model.base, config.model.revision)
    template = build_template(config.data.template, tokenizer)
    tokenized = tokenize(dataset.examples, tokenizer, template, config.data.max_length, tell)
    train, held_out, partition = _divided_if_possible(config, dataset, tokenized)
    found = audit(partition, train, held_out, tokenized, dataset)
    if as_json:
        output.print_json(_as_json(dataset, tokenized, found, tokenizer, rows, template.notes))
        return
    _print_counts(dataset, tokenized, config.data, template.notes)
    click.echo("\naudit")
    click.echo(output.clean("  " + found.describe().replace("\n", "\n  ")))
    _print_examples(dataset, tokenized, tokenizer, rows)


@data.command()
@click.argument("recipe", default="demo", metavar="RECIPE|SOURCE", shell_complete=complete_recipe)
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Draw the table to FILE.")
@click.option("--tokenize", is_flag=True, help="Leave out the rows that a run would refuse; loads the tokenizer.")
@_data_options
def partition(recipe: str, svg: Path | None, tokenize: bool, as_json: bool, **flags: Any) -> None:
    """Show how many rows of each category every client would hold.

    Rows that turn out to be of no use when they are tokenised, such as those whose answer does not fit into
    data.max_length, are counted too; with --tokenize it is exactly the partition of a run.
    """
    from shepherd.data.partition import table
    from shepherd.data.sources import losses
    from shepherd.experiment.division import divide_rows, read_held_out, read_rows, remarks
    from shepherd.report.wording import plural

    config = _settings(recipe, **flags).config
    tell = None if as_json else output.note
    if tokenize:
        from shepherd.model.fetch import look_at

        if not config.data.source.startswith("hub:"):
            read_rows(config, tell=tell)  # what is wrong with them is said before PyTorch loads
        look_at(config.model.base, config.model.revision)
        from shepherd.experiment.rows import prepare_rows

        output.announce_torch()
        rows, _ = prepare_rows(config, _tokenizer(config.model.base, config.model.revision), tell)
        dataset, divided, lost, details = rows.dataset, rows.partition, rows.warnings, rows.details
        train = [example for id, example in rows.examples.items() if id not in divided.held_out]
        held_out = [rows.examples[id] for id in divided.held_out]
        refused = len(dataset.examples) - len(rows.tokenized.by_id)
    else:
        dataset, refused = read_rows(config, tell=tell), None
        extra = read_held_out(config, dataset)
        train, held_out, divided = divide_rows(config, dataset.examples, extra.examples if extra is not None else None)
        where = config.data.held_out_source or "held-out rows"
        beside = [f"{where}: {line}" for line in losses(extra)] if extra is not None else ()
        details = remarks(config, dataset, dataset.examples, held_out if extra is None else None, divided)
        lost = (*losses(dataset), *beside, *details)
    for line in lost:
        output.note(line)
    clients, categories, counts = table(divided, train)
    labels = [divided.label(client) for client in clients]
    if svg is not None:
        svg.parent.mkdir(parents=True, exist_ok=True)
        svg.write_text(_svg(labels, categories, counts, config.partition.name), encoding="utf-8")
        output.note(f"drawn to {svg}")
    if as_json:
        output.print_json({
            "partition": dict(divided.settings), "dataset": dataset.name, "dataset_digest": divided.dataset_digest,
            "held_out": len(held_out), "clients": clients, "labels": divided.labels, "categories": categories,
            "counts": counts, "refused_when_tokenized": refused, "left_out": lost, "details": details,
        })  # fmt: skip
        return
    _print_table(labels, categories, counts)
    sizes = counts.sum(axis=1)
    click.echo(
        f"\n{plural(len(clients), 'client')} ({config.partition.name}): {sizes.sum():,} rows, {sizes.min():,} to "
        f"{sizes.max():,} per client; {plural(len(held_out), 'row')} held out"
    )
    if refused is None:
        output.note("not tokenised: rows that a run would refuse are counted; --tokenize leaves them out")
    else:
        click.echo(f"{plural(refused, 'row')} refused when tokenised")


def _settings(argument: str, **flags: Any) -> Settings:
    from shepherd.data.sources import is_path
    from shepherd.errors import UsageError, did_you_mean
    from shepherd.recipe import recipes

    recipe = looks_like_recipe(argument)
    if not recipe and is_path(argument) and not Path(argument).expanduser().exists():
        near = did_you_mean(argument, recipes())
        if near and Path(argument).name == argument:  # a path into a folder means a file of that folder
            raise UsageError(
                f"neither a recipe nor data that are here: {argument}.{near}", hint="shepherd list recipes"
            )
    settings = gather(argument, **flags) if recipe else gather(None, data=argument, **flags)
    for line in settings.notes if recipe else settings.notes[1:]:
        output.note(line)
    return settings


def _divided_if_possible(config: Config, dataset: Dataset, tokenized: Tokenized) -> tuple[tuple, tuple, Partition]:
    """(train, held out, partition) as a run would have them; rows that cannot be divided are one client."""
    from shepherd.errors import DataError
    from shepherd.experiment.division import divide_rows, read_held_out
    from shepherd.types import Partition

    usable = tuple(example for example in dataset.examples if example.id in tokenized.by_id)
    extra = read_held_out(config, dataset)
    try:
        return divide_rows(config, usable, extra.examples if extra is not None else None)
    except DataError as error:
        output.note(f"not divided over clients: {error.message}")
        return usable, (), Partition({"all": tuple(example.id for example in usable)}, dataset.digest)


def _tokenizer(base: str, revision: str) -> Any:
    from shepherd.model.base import check_folder, load_tokenizer
    from shepherd.model.fetch import resolve

    folder = resolve(base, revision)
    check_folder(folder)
    return load_tokenizer(folder)


def _print_counts(dataset: Dataset, tokenized: Tokenized, table: DataTable, notes: Sequence[str]) -> None:
    import numpy as np

    from shepherd.data.tally import first_of
    from shepherd.report.wording import plural

    examples = dataset.examples
    rows = plural(len(examples), "row")
    click.echo(f"{output.clean(dataset.name)}: {rows}, format {dataset.format}, licence {dataset.licence}")
    for line in filter(None, (dataset.unread, *dataset.notes, *notes)):
        click.echo(f"  {output.clean(line)}")
    for what, counts in (
        ("refused", dataset.refused), ("changed", dataset.changed),
        ("refused", tokenized.refused), ("changed", tokenized.changed),
    ):  # fmt: skip
        for reason, (count, ids) in counts.items():
            click.echo(output.clean(f"  {what} {count:,}: {reason} ({first_of(ids)})"))
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


def _print_examples(dataset: Dataset, tokenized: Tokenized, tokenizer: Any, rows: int) -> None:
    from shepherd.data.tokenize import pieces

    coloured = output.colours()
    legend = click.style("learned", fg="green", bold=True) if coloured else "⟦learned⟧"
    for example in _spread(dataset, tokenized, rows):
        row = tokenized.by_id[example.id]
        title = f"{example.id}, {example.category}: {len(row.input_ids)} tokens, {row.targets} {legend}"
        click.echo(f"\n── {output.clean(title) if not coloured else title}" + (f", {row.cut} cut" if row.cut else ""))
        click.echo(_marked(pieces(row.input_ids, row.loss_mask, tokenizer), coloured))


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


def _as_json(
    dataset: Dataset, tokenized: Tokenized, found: Any, tokenizer: Any, rows: int, notes: Sequence[str]
) -> dict[str, Any]:
    from shepherd.data.tokenize import pieces

    def counted(counts: Any) -> dict[str, Any]:
        return {reason: {"rows": count, "ids": ids} for reason, (count, ids) in counts.items()}

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
            {"id": e.id, "category": e.category, "pieces": pieces(row.input_ids, row.loss_mask, tokenizer)}
            for e in _spread(dataset, tokenized, rows)
            for row in [tokenized.by_id[e.id]]
        ],
    }


def _print_table(clients: list[str], categories: list[str], counts: np.ndarray) -> None:
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


def _svg(clients: list[str], categories: list[str], counts: np.ndarray, name: str) -> str:
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
