"""`shepherd data`: inspect training rows and their partition over clients before a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shepherd.cli import output
from shepherd.cli.completion import complete_recipe
from shepherd.cli.data_tables import dataset_entry, partition_svg, print_counts, print_examples, print_partition
from shepherd.cli.group import Commands
from shepherd.cli.settings import Settings, gather, looks_like_recipe

if TYPE_CHECKING:
    from shepherd.config import Config
    from shepherd.data.sources import Dataset
    from shepherd.data.tokenize import Tokenized
    from shepherd.types import Partition


@click.group(cls=Commands)
def data() -> None:
    """Inspect instructions and their partition over clients."""


def _data_options(command):
    for option in reversed((
        click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set any key of the recipe."),
        click.option("--columns", multiple=True, metavar="FIELD=COLUMN", help="Map fields to columns of the data."),
        click.option("--model", metavar="BASE", help="Base whose tokenizer and chat template are used."),
        click.option("--seed", type=int, help="Root of every random stream."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    )):  # fmt: skip
        command = option(command)
    return command


@data.command()
@click.argument("source", metavar="SOURCE|RECIPE", shell_complete=complete_recipe)
@click.option(
    "--rows", default=2, show_default=True, type=click.IntRange(min=0), help="Number of tokenised examples to print."
)
@_data_options
def inspect(source: str, rows: int, as_json: bool, **flags: Any) -> None:
    """Print tokenised examples with their targets marked, and audit the data.

    SOURCE is anything that --data takes; a RECIPE sets source, template and lengths.
    """
    from shepherd.experiment.division import read_rows
    from shepherd.model.fetch import look_at

    config = _settings(source, **flags).config
    note = None if as_json else output.note
    dataset = read_rows(config, progress=note)
    look_at(config.model.base, config.model.revision)
    from shepherd.data.audit import audit
    from shepherd.data.prompts import build_template
    from shepherd.data.tokenize import tokenize

    output.announce_torch()
    tokenizer = _tokenizer(config.model.base, config.model.revision)
    template = build_template(config.data.template, tokenizer)
    tokenized = tokenize(dataset.examples, tokenizer, template, config.data.max_length, note)
    train, held_out, partition = _divided_if_possible(config, dataset, tokenized)
    found = audit(partition, train, held_out, tokenized, dataset)
    if as_json:
        output.print_json(dataset_entry(dataset, tokenized, found, tokenizer, rows, template.notes))
        return
    print_counts(dataset, tokenized, config.data, template.notes)
    click.echo("\naudit")
    click.echo(output.clean("  " + found.describe().replace("\n", "\n  ")))
    print_examples(dataset, tokenized, tokenizer, rows)


@data.command()
@click.argument("recipe", default="demo", metavar="RECIPE|SOURCE", shell_complete=complete_recipe)
@click.option(
    "--svg", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Also draw the table to FILE."
)
@click.option("--tokenize", is_flag=True, help="Leave out rows that a run would refuse; loads the tokenizer.")
@_data_options
def partition(recipe: str, svg: Path | None, tokenize: bool, as_json: bool, **flags: Any) -> None:
    """Print the number of rows per client and category.

    Rows that tokenisation refuses, such as those whose answer exceeds data.max_length, are counted as well; --tokenize
    gives the exact partition of a run.
    """
    from shepherd.data.partition import table
    from shepherd.data.sources import dataset_notes
    from shepherd.experiment.division import divide_rows, read_held_out, read_rows, remarks
    from shepherd.report.wording import plural

    config = _settings(recipe, **flags).config
    note = None if as_json else output.note
    if tokenize:
        from shepherd.model.fetch import look_at

        if not config.data.source.startswith("hub:"):
            read_rows(config, progress=note)  # mistakes in them are reported before PyTorch loads
        look_at(config.model.base, config.model.revision)
        from shepherd.experiment.rows import prepare_rows

        output.announce_torch()
        rows, _ = prepare_rows(config, _tokenizer(config.model.base, config.model.revision), note)
        dataset, divided, dropped, details = rows.dataset, rows.partition, rows.warnings, rows.details
        train = tuple(example for name, example in rows.examples.items() if name not in divided.held_out)
        held_out = tuple(rows.examples[name] for name in divided.held_out)
        refused = len(dataset.examples) - len(rows.tokenized.by_id)
    else:
        dataset, refused = read_rows(config, progress=note), None
        extra = read_held_out(config, dataset)
        train, held_out, divided = divide_rows(config, dataset.examples, extra.examples if extra is not None else None)
        where = config.data.held_out_source or "held-out rows"
        held_out_notes = [f"{where}: {line}" for line in dataset_notes(extra)] if extra is not None else ()
        details = remarks(config, dataset, dataset.examples, held_out if extra is None else None, divided)
        dropped = (*dataset_notes(dataset), *held_out_notes, *details)
    for line in dropped:
        output.note(line)
    clients, categories, counts = table(divided, train)
    labels = [divided.label(client) for client in clients]
    if svg is not None:
        svg.parent.mkdir(parents=True, exist_ok=True)
        svg.write_text(partition_svg(labels, categories, counts, config.partition.name), encoding="utf-8")
        output.note(f"written to {svg}")
    if as_json:
        output.print_json({
            "partition": dict(divided.settings), "dataset": dataset.name, "dataset_digest": divided.dataset_digest,
            "held_out": len(held_out), "clients": clients, "labels": divided.labels, "categories": categories,
            "counts": counts, "refused_when_tokenized": refused, "left_out": dropped, "details": details,
        })  # fmt: skip
        return
    print_partition(labels, categories, counts)
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
            raise UsageError(f"neither a recipe nor a data file: {argument}.{near}", hint="shepherd list recipes")
    settings = gather(argument, **flags) if recipe else gather(None, data=argument, **flags)
    for line in settings.notes if recipe else settings.notes[1:]:
        output.note(line)
    return settings


def _divided_if_possible(config: Config, dataset: Dataset, tokenized: Tokenized) -> tuple[tuple, tuple, Partition]:
    """(train, held out, partition) as in a run; rows that cannot be partitioned form one client."""
    from shepherd.errors import DataError
    from shepherd.experiment.division import divide_rows, read_held_out
    from shepherd.types import Partition

    usable = tuple(example for example in dataset.examples if example.id in tokenized.by_id)
    extra = read_held_out(config, dataset)
    try:
        return divide_rows(config, usable, extra.examples if extra is not None else None)
    except DataError as error:
        output.note(f"not partitioned over clients: {error.message}")
        return usable, (), Partition({"all": tuple(example.id for example in usable)}, dataset.digest)


def _tokenizer(base: str, revision: str) -> Any:
    from shepherd.model.base import check_folder, load_tokenizer
    from shepherd.model.fetch import resolve

    folder = resolve(base, revision)
    check_folder(folder)
    return load_tokenizer(folder)
