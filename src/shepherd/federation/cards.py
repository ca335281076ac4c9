"""The two documents of a federation: the run card that all agree on, and the site file of one machine.

    card = read_card(data)             # JSON from the coordinator: strict, and a WireError quotes nothing of it
    site = read_site("site.toml")      # the site's own: where its rows and base lie, and its policy

A value of the site file never comes from a message: no field of a message has its place there.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, JsonValue, ValidationError

from shepherd.errors import UsageError, did_you_mean, plural
from shepherd.federation.document import Document
from shepherd.federation.privacy_card import PrivacyCard
from shepherd.federation.window import check_window
from shepherd.updates.layout import WireError, json_object

MOST_CARD_BYTES = 2**20
NAME = r"^[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?$"
"""A site's name: the name of its certificate, of a folder, and of a host."""
RUN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
"""A run's id, which also names a folder of the site."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Options = Mapping[str, JsonValue]


class BaseCard(Document):
    name: str = Field(max_length=200)
    digest: Digest


class LoraCard(Document):
    r: int = Field(ge=1, le=1024)
    alpha: float = Field(gt=0, le=1e6)
    dropout: Share = 0.0
    rslora: bool = False
    targets: str | tuple[str, ...] = "all-linear"
    ranks: Mapping[str, int] | tuple[int, ...] = ()


class FederationCard(Document):
    rounds: int = Field(ge=1, le=10**6)
    method: str = Field(max_length=64)
    weights: Literal["examples", "tokens", "uniform"] = "examples"
    min_updates: int = Field(1, ge=1)
    """The fewest sites whose updates make a round."""
    clip_update_norm: Literal["median"] | float = 0.0


class ObjectiveCard(Document):
    proximal: float = Field(0.0, ge=0)
    proximal_form: Literal["factors", "product"] = "factors"
    rate_ratio: float = Field(1.0, gt=0)
    scaffold: bool = False


class PersonalizationCard(Document):
    name: str = Field("none", max_length=64)
    options: Options = Field(default_factory=dict)


class TrainingCard(Document):
    learning_rate: Positive
    batch_size: int = Field(ge=1)
    local_steps: int = Field(0, ge=0)
    local_epochs: Positive = 1.0
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    weight_decay: float = Field(0.0, ge=0)
    momentum: Share = 0.0
    betas: tuple[Share, Share] = (0.9, 0.999)
    max_grad_norm: float = Field(1.0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"


class DataCard(Document):
    template: str = Field("auto", max_length=100_000)
    max_length: int = Field(512, ge=16, le=2**20)
    held_out_per_category: int = Field(10, ge=0)
    seed: Literal["run"] | Annotated[int, Field(ge=0, lt=2**63)] = "run"


class TransformCard(Document):
    name: str = Field(max_length=64)
    options: Options = Field(default_factory=dict)


class RunCard(Document):
    """What all sites of a run agree on. The digest of its JSON is what a site approves."""

    schema_: Literal["shepherd-card-1"] = Field("shepherd-card-1", alias="schema")
    run: str = Field(pattern=RUN)
    name: str = Field("", max_length=200)
    version: str = Field(max_length=40)
    """The version of the package that all ends run."""
    seed: int = Field(0, ge=0, lt=2**63)
    base: BaseCard
    tokenizer: Digest
    lora: LoraCard
    federation: FederationCard
    training: TrainingCard
    data: DataCard = DataCard()
    method: Options = Field(default_factory=dict)
    server: Options = Field(default_factory=dict)
    objective: ObjectiveCard = ObjectiveCard()
    personalization: PersonalizationCard = PersonalizationCard()
    transforms: tuple[TransformCard, ...] = ()
    parameters: int = Field(ge=1, le=2**40)
    """Trainable numbers of the adapter, from which the largest answer follows."""
    offers: tuple[Annotated[str, Field(max_length=32)], ...] = ()
    """Protections that the run gives, for sites that require them. "dp" is none of them: `privacy` is."""
    privacy: PrivacyCard | None = None

    def to_json(self) -> bytes:
        """The same bytes for equal cards; those without privacy have no such key."""
        without = {"privacy"} if self.privacy is None else set()
        return json.dumps(self.model_dump(mode="json", by_alias=True, exclude=without), sort_keys=True).encode()

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_json()).hexdigest()


def read_card(data: bytes) -> RunCard:
    """The card in a message. Raises WireError: "too-large", "format", or "fields" with the first field in error."""
    if len(data) > MOST_CARD_BYTES:
        raise WireError("too-large", f"a card of {len(data)} bytes, the limit is {MOST_CARD_BYTES}")
    json_object(data, "card")  # unique keys and finite numbers, which pydantic does not ask for
    try:
        card = RunCard.model_validate_json(data)
        kept = card.to_json()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    else:
        if len(kept) > MOST_CARD_BYTES:
            raise WireError("too-large", f"a card that takes {len(kept)} bytes, the limit is {MOST_CARD_BYTES}")
        json_object(kept, "card")  # 1e999 is a number, and infinite
        return card
    raise WireError("fields", f"the card: {_place(first['loc'])} {_PROBLEMS.get(first['type'], 'has another value')}")


_PROBLEMS = {"missing": "is missing", "extra_forbidden": "holds a key that is not known"}


def _place(location: tuple[int | str, ...]) -> str:
    """The names of ours in a place of a card: those of the sender are not repeated."""
    known = [str(part) for part in location if part in _NAMES]
    return ".".join(known) or "it"


def _names(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield field.alias or name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _names(field.annotation)


_NAMES = {*_names(RunCard), *_names(TransformCard), *_names(PrivacyCard)}


# The site's own


class Policy(Document):
    """What a site takes part in, checked before any row is read. An empty list of names allows all built-in ones.

    A policy cannot allow code from outside the package: `module:function` in a message is refused.
    """

    approve: Literal["ask", "policy"] = "ask"
    """`ask`: a person approves each card. `policy`: a card that this policy allows needs no person."""
    bases: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{12,64}$")], ...] = ()
    """Digests of base models, or their first 12 or more characters; empty: the base that the site has."""
    methods: tuple[str, ...] = ()
    personalizations: tuple[str, ...] = ()
    transforms: tuple[str, ...] = ()
    max_rounds: int = Field(100, ge=1)
    max_local_steps: int = Field(1000, ge=1)
    """Optimizer steps in one round."""
    max_rows: int = Field(100_000, ge=1)
    """Rows that pass through training in one round."""
    min_rows_round: int = Field(8, ge=1)
    """The fewest of them, and of the site's rows: an update of a single row shows much of it."""
    max_learning_rate: float = Field(1.0, gt=0)
    max_runs: int = Field(100, ge=1)
    """Runs of which the site keeps anything; a person removes the folders of old ones."""
    max_trainings: int = Field(300, ge=1)
    """Tasks that are trained in a run, those that are repeated after a fault included."""
    max_measures: int = Field(300, ge=0)
    """Models that are measured in a run."""
    max_parameters: int = Field(2**28, ge=1)
    """Trainable numbers of the adapter."""
    max_message_mib: int = Field(256, ge=1, le=2**16)
    """Bytes of a message to the site, before it is read."""
    min_rows: int = Field(1, ge=1)
    """Take part only with at least this many usable rows."""
    min_rows_tell: int = Field(0, ge=0)
    """State a smaller number of rows as this number."""
    least_group: int = Field(10, ge=1)
    """Measures of fewer held-out rows stay at the site."""
    categories: Literal["hidden", "shown"] = "hidden"
    """Whether the names of the site's categories may appear in measures."""
    require: tuple[str, ...] = ()
    """Protections without which the site does not take part, e.g. "tls1.3", "dp"."""
    epsilon_max: float = Field(0.0, ge=0)
    """The largest ε of a private run, as the site computes it; 0: any. Needed where `require` has "dp"."""
    delta_max: float = Field(0.0, ge=0, lt=1)
    """The largest δ of a private run; 0: any."""
    least_cohort: int = Field(2, ge=1)
    """No round with fewer sites."""
    window: str = ""
    """Hours of local time in which the site trains, e.g. "Mon-Fri 20:00-06:00"; empty: always."""


class SiteTable(Document):
    name: str = Field(pattern=NAME)
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = Field(0, ge=0, le=1024)
    tokens_per_pass: int = Field(0, ge=0)


class RowsTable(Document):
    source: str
    format: str = "auto"
    columns: Mapping[str, str] = Field(default_factory=dict)


class ModelTable(Document):
    base: str
    """Where the base lies on this machine."""


class SiteFile(Document):
    """A site's own settings: `site.toml`."""

    site: SiteTable
    data: RowsTable
    model: ModelTable
    policy: Policy = Policy()


def read_site(path: str | Path) -> SiteFile:
    """The settings in `site.toml`. Raises UsageError with every problem, its key, and the nearest known one."""
    path = Path(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}", hint="save it as UTF-8 TOML") from None
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror or error}", hint="a site's folder has its site.toml"
        ) from None
    problems: list[str] = []
    try:
        site = SiteFile.model_validate(_tuples(tables))
        problems += [f"policy.window: {text}" for text in check_window(site.policy.window)]
        if "dp" in site.policy.require and not (site.policy.epsilon_max and site.policy.delta_max):
            problems.append('policy.require: "dp" needs policy.epsilon_max and policy.delta_max, e.g. 8.0 and 1e-5')
    except ValidationError as error:
        problems += [_problem(found) for found in error.errors(include_url=False)]
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise UsageError(f"{plural(len(problems), 'problem')} in {path}:\n{lines}", hint="see docs/sites.md")
    return site


def _tuples(value: Any) -> Any:
    """TOML has lists where the settings are tuples."""
    if isinstance(value, Mapping):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _problem(found: Mapping[str, Any]) -> str:
    *tables, last = (str(part) for part in found["loc"])
    key = ".".join([*tables, last])
    if found["type"] == "extra_forbidden":
        model: Any = SiteFile
        for table in tables:
            model = model.model_fields[table].annotation
        known = list(model.model_fields)
        return f"{key}: unknown key.{did_you_mean(last, known)} Known: {', '.join(known)}"
    if found["type"] == "missing":
        return f"{key}: missing"
    return f"{key}: {found['msg'][0].lower()}{found['msg'][1:]}, got {found['input']!r}"
