"""The transforms of a run, composed: in order on each client, in reverse on the server.

transforms = build_transforms([TransformSpec("clip", {"norm": 1.0}), TransformSpec("noise", {"scale": 0.1})])
transforms.on_client(update, start, seed)             # clip, then noise
transforms.on_server(contributions, start, seed)      # noise, then clip
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from shepherd.errors import UsageError
from shepherd.rng import stream
from shepherd.types import ClientModel, ClientUpdate, TransformSpec
from shepherd.updates import clipping  # noqa: F401, for its registration
from shepherd.updates.transforms import Contributions, Transform, transforms


@dataclass(frozen=True)
class Transforms:
    """Transforms in their order on a client, `built` from `specs`."""

    specs: tuple[TransformSpec, ...] = ()
    built: tuple[Transform, ...] = ()

    @property
    def sent(self) -> tuple[TransformSpec, ...]:
        """The specs of those with a client half, which a task carries."""
        return tuple(spec for spec, transform in zip(self.specs, self.built, strict=True) if transform.on_client)

    def on_client(self, update: ClientUpdate, start: ClientModel, seed: int) -> ClientUpdate:
        """The update that is sent, of a client that started from `start`."""
        for transform in self.built:
            if transform.on_client is not None:
                rng = stream(seed, "transform", transform.name, update.client, update.round)
                update = transform.on_client(update, start, rng)
        return update

    def on_server(self, given: Contributions, start: Callable[[], ClientModel], seed: int) -> Contributions:
        """What is merged. start() gives the client model of the global rank, and is called where it is needed."""
        for transform in reversed(self.built):
            if transform.on_server is not None:
                rng = stream(seed, "transform", transform.name, given.round)
                given = transform.on_server(given, start(), rng)
        return given


def build_transforms(specs: Iterable[TransformSpec]) -> Transforms:
    """Transforms from their specs. Raises UsageError with all problems: names, options, a name given twice."""
    problems, built, named = [], [], tuple(specs)
    for place, spec in enumerate(named):
        try:
            transform = transforms.build(spec.name, spec.options)
            if not isinstance(transform, Transform):
                raise UsageError(f"transform {spec.name!r} gives {transform!r}, not a Transform")
            built.append(replace(transform, name=spec.name))
        except UsageError as error:
            problems.append(error.message)
        if spec.name in (other.name for other in named[:place]):
            problems.append(f"transform {spec.name!r} is given twice; its random numbers would be the same both times")
    if problems:
        raise UsageError("\n".join(problems))
    return Transforms(named, tuple(built))
