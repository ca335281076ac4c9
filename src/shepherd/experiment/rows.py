"""The rows of a run: read, tokenized, held out and divided over the clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from shepherd.config import Config
from shepherd.data.audit import Audit, audit
from shepherd.data.prompts import Template, build_template
from shepherd.data.sources import Dataset, dataset_notes
from shepherd.data.tally import sentences
from shepherd.data.tokenize import Tokenized, tokenize
from shepherd.errors import plural
from shepherd.evaluation.answers import Generation
from shepherd.experiment.audit_canaries import Canary, canary_tokens, draw_canaries, plant
from shepherd.experiment.division import Sources, divide_rows, natural_key, read_sources, remarks
from shepherd.types import ClientId, Example, Partition, Tokens


@dataclass(frozen=True)
class FederatedData:
    """The data of a run: the training rows of each client, and the rows held out for all.

    notes: the sentences among the warnings that no count of `dataset` or `tokenized` stands for. details: a warning
    that stands for several cases -> a sentence for each of them. day: the day that the template writes into every
    prompt, or "". canaries: codes for an audit, those with copies among the rows of their clients.
    """

    dataset: Dataset
    examples: Mapping[str, Example]
    partition: Partition
    clients: Mapping[ClientId, tuple[Tokens, ...]]
    held_out: tuple[Tokens, ...]
    tokenized: Tokenized
    audit: Audit
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    details: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    day: str = ""
    canaries: tuple[Canary, ...] = ()

    @property
    def sizes(self) -> dict[ClientId, int]:
        """The number of training rows of each client."""
        return {client: len(rows) for client, rows in self.clients.items()}

    @property
    def other_labels(self) -> dict[str, str]:
        """The names, as the data write them, of the clients whose ids are not their names."""
        return {client: label for client, label in self.partition.labels.items() if label != client}

    @property
    def groups(self) -> tuple[str, ...]:
        """The category of each held-out row, or its source where sources divide the rows."""
        key = natural_key(self.partition.settings)
        return tuple(getattr(row, key) for row in self.held_out)

    def groups_of(self, client: ClientId) -> set[str]:
        """The categories of a client's training rows, or their sources where those divide."""
        key = natural_key(self.partition.settings)
        return {getattr(row, key) for row in self.clients[client]}

    def held_out_of(self, client: ClientId) -> list[int]:
        """Indices of the client's own held-out rows: those of its groups."""
        own = self.groups_of(client)
        return [i for i, group in enumerate(self.groups) if group in own]


def prepare_rows(
    config: Config,
    tokenizer: Any,
    progress: Callable[[str], None] | None = None,
    sources: Sources | None = None,
    *,
    some_held_out: bool = True,
) -> tuple[FederatedData, Template]:
    """Tokenize, hold out, divide and audit the rows of `sources`, which are read where they were not read before.

    `progress` is called with lines about what takes long. some_held_out: whether there must be held-out rows.

    Raises DataError for data that cannot be used."""
    data = config.data
    sources = sources or read_sources(config, progress)
    dataset, extra = sources.dataset, sources.held_out
    template = build_template(data.template, tokenizer)
    tokenized = tokenize(dataset.examples, tokenizer, template, data.max_length, progress)
    usable = [e for e in dataset.examples if e.id in tokenized.by_id]
    tokens = dict(tokenized.by_id)
    lost, beside = [*dataset_notes(dataset), *losses_of_tokens(tokenized)], []
    apart = None
    if extra is not None:
        kept = tokenize(extra.examples, tokenizer, template, data.max_length)
        tokens |= kept.by_id
        apart = [e for e in extra.examples if e.id in kept.by_id]
        where = data.held_out_source or "held-out rows"
        beside = [f"{where}: {note}" for note in (*dataset_notes(extra), *losses_of_tokens(kept))]
    train, held_out, partition = divide_rows(config, usable, apart, some_held_out=some_held_out)
    details = remarks(config, dataset, usable, held_out if extra is None else None, partition)
    examples = {e.id: e for e in (*train, *held_out)}
    found = audit(partition, train, held_out, tokenized, dataset)
    if overlap := found["train and held-out overlap"].count:
        lost.append(
            f"{overlap} of {len(held_out)} held-out rows ask what is also trained on: their loss flatters the model"
        )
    if line := found.summary(
        without=("train and held-out overlap", "empty answers", "other refusals", "over-long rows")
    ):
        lost.append(f"{line} (shepherd data inspect names them)")
    canaries = draw_canaries(config, partition)
    planted, partition = plant(canaries, partition, examples)
    examples |= {e.id: e for e in planted}
    tokens |= canary_tokens(planted, tokenizer, template, data.max_length)
    return FederatedData(
        dataset=dataset,
        examples=examples,
        partition=partition,
        clients={c: tuple(tokens[i] for i in ids) for c, ids in partition.clients.items()},
        held_out=tuple(tokens[e.id] for e in held_out),
        tokenized=tokenized,
        audit=found,
        warnings=(*details, *lost, *beside, *template.notes),
        notes=(*filter(None, [dataset.unread]), *dataset.notes, *beside, *template.notes),
        details=details,
        day=template.day,
        canaries=canaries,
    ), template  # fmt: skip


def prepare_generation(config: Config) -> Generation:
    """The settings of a recipe for answers by generation."""
    table = config.evaluation
    return Generation(table.generate, table.max_new_tokens, config.data.max_length)


def losses_of_tokens(tokenized: Tokenized) -> Iterator[str]:
    """What tokenising left out or changed, a sentence for each reason."""
    yield from sentences("refused", tokenized.refused)
    yield from sentences("changed", tokenized.changed)
    if tokenized.cut_rows:
        cut, tokens = plural(tokenized.cut_rows, "row"), plural(tokenized.cut_tokens, "token")
        yield f"{cut} cut to data.max_length, {tokens} in all"
