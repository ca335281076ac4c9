"""What a coordinator has of the base: digests, the adapter's shapes, and weights only where it needs them.

Weights are loaded for rows of the coordinator's own, and for methods that begin from them. Otherwise config.json and
the tokenizer are enough, and the digest of the base may be given by those who have its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shepherd.config import Config
from shepherd.data.prompts import build_template
from shepherd.data.tokenize import tokenize
from shepherd.engines.local import LocalEngine
from shepherd.errors import DataError, ModelError, UsageError
from shepherd.experiment.division import read_rows
from shepherd.experiment.method import Composition
from shepherd.experiment.trainer import base_weights, check_window, lay_out, prepare_trainer
from shepherd.model import catalogue
from shepherd.model.base import Base, load_base, load_tokenizer
from shepherd.model.digest import model_digest, tokenizer_digest, weight_files
from shepherd.model.fetch import public_name, resolve
from shepherd.model.licence import licence_of
from shepherd.model.outline import check_packable, outline, skeleton
from shepherd.model.threads import use_threads
from shepherd.types import Adapter, ServerState, Tokens


@dataclass(frozen=True)
class CoordinatorBase:
    """The base at the coordinator. held_out: rows of its own, which `here` measures; empty and None without any."""

    facts: Mapping[str, Any]
    """As summary.json has them: name, digest, parameters, licence."""
    tokenizer_digest: str
    public_name: str
    tokenizer: Any
    adapter: Adapter
    conv1d: bool
    start: ServerState
    held_out: tuple[Tokens, ...] = ()
    here: LocalEngine | None = None

    @property
    def digest(self) -> str:
        """The digest that sites compare with that of their own base."""
        return str(self.facts["digest"])


def prepare_base(config: Config, composition: Composition, digest: str = "") -> CoordinatorBase:
    """The base of a run with sites. digest: of the base, where its weights are not here.

    Raises ModelError where weights are needed and are not here, UsageError where the digest is missing or is another,
    DataError where the coordinator's own rows cannot be used.
    """
    folder = resolve(config.model.base, config.model.revision)
    has_weights = any(file.is_file() for file in weight_files(folder))
    needs = {
        "data.held_out_source has rows to be measured here": bool(config.data.held_out_source),
        f"{config.federation.method} begins from the weights of the base": composition.method.needs_base,
    }
    reason = next((reason for reason, holds in needs.items() if holds), "")
    if reason and not has_weights:
        raise ModelError(f"{folder} has no weights, and {reason}", hint="copy the whole model there")
    if has_weights:
        found = model_digest(folder)
        if digest and digest != found:
            raise UsageError(f"{folder} is another base: digest {found[:12]}, {digest[:12]} was given")
        digest = found
    elif not digest:
        raise UsageError(
            f"{folder} has no weights, so the digest of the base is not known",
            hint="give it, as a machine with the weights prints it; or copy the whole model there",
        )
    base = None
    if reason:
        use_threads(config.run.threads)
        base = load_base(**config.model.model_dump())
    model = base.model if base else outline(folder)[0] if has_weights else skeleton(folder)
    check_window(config, model.config)
    check_packable(model)
    layout = lay_out(config, model, digest)
    needed = composition.method.needs_base
    weights = base_weights(base, list(layout.adapter.factors)) if needed and base else None
    name = config.model.base
    known = catalogue.BUILTIN.get(name)
    found_rows, here = _own_rows(config, composition, base) if base and config.data.held_out_source else ((), None)
    return CoordinatorBase(
        facts={
            "name": name, "digest": digest, "parameters": model.num_parameters(),
            "licence": known.licence if known else licence_of(folder),
        },
        tokenizer_digest=tokenizer_digest(folder),
        public_name=public_name(name, config.model.revision, Path(folder)),
        tokenizer=base.tokenizer if base else load_tokenizer(folder),
        adapter=layout.adapter,
        conv1d=layout.conv1d,
        start=ServerState(0, composition.method.start(layout.adapter, config.run.seed, weights)),
        held_out=found_rows,
        here=here,
    )  # fmt: skip


def _own_rows(config: Config, composition: Composition, base: Base) -> tuple[tuple[Tokens, ...], LocalEngine]:
    source = config.data.held_out_source
    dataset = read_rows(config, source)
    dataset = dataset.held_out or dataset
    template = build_template(config.data.template, base.tokenizer)
    rows = tokenize(dataset.examples, base.tokenizer, template, config.data.max_length).by_id
    if not rows:
        raise DataError(f"no row of data.held_out_source = {source!r} can be used")
    engine = LocalEngine(prepare_trainer(config, composition, base).host({}))
    return tuple(rows[e.id] for e in dataset.examples if e.id in rows), engine
