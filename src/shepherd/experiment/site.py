"""A site composed from its site.toml: identity, base, policy, records, and the trainer of its rows.

    with open_site("site.toml", folder) as site:        # holds the identity; nobody else is this site meanwhile
        answer = site.handle(question)

Loads no torch: rows and base are in the trainer's process, and nothing of either is read before a card is approved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shepherd._version import __version__
from shepherd.engines.site_process import ProcessTrainer
from shepherd.federation.cards import SiteFile, read_site
from shepherd.federation.policy import Own
from shepherd.federation.site import Site
from shepherd.federation.site_store import Folder, SiteStore, identity_lock
from shepherd.federation.site_trainer import SiteTrainer
from shepherd.model import fetch
from shepherd.model.digest import model_digest, tokenizer_digest

if TYPE_CHECKING:
    from shepherd.engines.site_trainer import EngineTrainer


Watch = Callable[[Mapping[str, Any]], None]
"""Takes each line of a site's log."""


def unwatched(_: Mapping[str, Any]) -> None:
    """Watch nothing."""


@contextmanager
def open_site(
    path: str | Path, folder: Path, protections: Iterable[str] = (), watch: Watch = unwatched
) -> Iterator[Site]:
    """A site whose trainer is a child process, until the block ends. `folder` is what it keeps between messages.

    Raises UsageError for a site.toml with mistakes and where another process is this site, ModelError for a base that
    is not here.
    """
    file = read_site(path)
    with identity_lock(folder, file.site.name):
        trainer = ProcessTrainer(partial(trainer_of, file, folder), file.site.name)
        try:
            yield compose_site(file, folder, trainer, protections, watch)
        finally:
            trainer.close()


def compose_site(
    file: SiteFile, folder: Path, trainer: SiteTrainer, protections: Iterable[str] = (), watch: Watch = unwatched
) -> Site:
    """A site around a trainer. Raises ModelError for a base that is not here."""
    fetch.look_at(file.model.base)
    base = fetch.resolve(file.model.base)
    own = Own(model_digest(base), tokenizer_digest(base), __version__, frozenset(protections))
    return Site(file.site.name, file.policy, own, trainer, SiteStore(Folder(folder), watch))


def trainer_of(file: SiteFile, folder: Path) -> EngineTrainer:
    """The trainer of a site in the process that calls this."""
    from shepherd.experiment.site_work import site_trainer

    return site_trainer(file, folder)
