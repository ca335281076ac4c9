"""Typed settings of a run: one frozen table per room, in the order of a run.

    Config(federation={"rounds": 5}).federation.rounds        # recipe.load reads a TOML file, or a recipe by name

A docstring under a field is its help text. Config stops at `experiment/`: rooms take plain arguments. The resolved
config is saved in the run directory and can be run again as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

Beta = Annotated[float, Field(ge=0, lt=1)]
Rank = Annotated[int, Field(ge=1, le=1024)]


class Table(BaseModel):
    """A frozen table of the recipe that refuses unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, strict=False, allow_inf_nan=False
    )
    later: ClassVar[tuple[str, ...]] = ()
    """Keys that came after runs had been written: their defaults stay out of the resolved config, so that these runs
    can be resumed."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        return {k: v for k, v in handler(self).items() if k not in self.later or getattr(self, k) != fields[k].default}

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans_as_numbers(cls, value: Any, about: ValidationInfo) -> Any:
        field = cls.model_fields.get(about.field_name or "")
        if isinstance(value, bool) and field is not None and field.annotation in (int, float):
            raise PydanticCustomError("int_type" if field.annotation is int else "float_type", "a number")
        return value


class RunTable(Table):
    name: str = Field("run", pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$")
    """Name of the run; its directory is `<out>/<name>` with a number added when that exists."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Root of every random stream. Same seed, same machine, same thread count: the same bytes. `data.seed` fixes the
    rows apart from it."""
    out: str = "runs"
    """Folder that holds the run directories."""
    threads: int = Field(0, ge=0, le=1024)
    """CPU threads; 0 measures and picks."""
    workers: int = Field(0, ge=0, le=256)
    """Worker processes that train clients, each with a copy of the base and a share of the threads; 0 trains in this
    process."""
    patience: float = Field(600.0, gt=0)
    """Seconds of silence after which a worker process counts as lost."""


class ModelTable(Table):
    base: str = "smollm2-135m"
    """A built-in name, a local folder, a GGUF file or a hub id (`org/name`)."""
    revision: str = ""
    """Revision of a hub model; empty is its default branch."""
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """auto, cpu, mps, cuda or cuda:N."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the frozen base. `auto`: bfloat16 on a GPU, and on a CPU where a short probe finds it faster."""
    quantize: Literal["none", "8bit", "4bit"] = "none"
    """Load the frozen base in 8 or 4 bits (CUDA, extra `quant`)."""


class LoraTable(Table):
    r: int = Field(8, ge=1, le=1024)
    """Rank of the global adapter, and of every client that `ranks` does not name."""
    ranks: tuple[Rank, ...] | Mapping[str, Rank] = ()
    """Lower ranks: a list assigned in turn to the clients sorted by name, or {client = rank}; empty: `r` for all."""
    alpha: float = Field(16.0, gt=0, le=1e6)
    """Scale: alpha / r, or alpha / sqrt(r) with rslora."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the input of A while training."""
    rslora: bool = False
    """Rank-stabilised scale (Kalajdzievski, 2023)."""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """`all-linear` adapts every linear layer of the blocks, except the experts of a mixture of experts (`check` reports
    the adapted share of the weights); or a list of names such as ["q_proj", "v_proj"]."""


class DataTable(Table):
    later = ("seed",)
    source: str = "builtin:instructions"
    """A file, a folder with a file or sub-folder per client, `builtin:instructions`, `builtin:chatterbot`, or
    `hub:org/name`."""
    format: str = "auto"
    """auto (detected row by row), or one format for all rows: messages, sharegpt, alpaca, dolly, prompt_completion,
    text, another of `shepherd list formats`, or `module:function`."""
    columns: Mapping[str, str] = Field(default_factory=dict)
    """Field -> column of your data, e.g. {instruction = "question", response = "answer"}."""
    languages: tuple[str, ...] = ("english",)
    """Languages of `builtin:chatterbot`."""
    categories: tuple[str, ...] = ()
    """Keep only these categories; empty keeps all."""
    rows_per_category: int = Field(0, ge=0)
    """Maximum number of rows per category, drawn by seed; 0 keeps all."""
    template: str = "auto"
    """auto (the model's chat template, or alpaca if it has none), chat, alpaca, or a template text with {instruction}.
    In a text typed after --set, \\n is a line break, \\t a tab and \\\\ a backslash."""
    max_length: int = Field(512, ge=16)
    """Maximum sequence length in tokens; truncation takes context first, then prompt, and response last."""
    held_out_per_category: int = Field(10, ge=0)
    """Rows per category held out for evaluation (FedIT: 10), split off before partitioning."""
    held_out_source: str = ""
    """A separate file of held-out rows; no others are then split off, and a test part of the source is ignored."""
    seed: Literal["run"] | Annotated[int, Field(ge=0, lt=2**63, strict=True)] = "run"
    """Seed of the rows: which are drawn by rows_per_category, which are held out, and which client has which. "run" is
    run.seed; a number holds the test rows and the partition fixed while run.seed varies."""


class PartitionTable(Table):
    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    name: str = "by_key"
    """by_key, iid, shards, dirichlet, power_law, linear, files (each file is a client, even one called test), or
    `module:function`. Other keys are its options."""
    clients: int = Field(0, ge=0)
    """Number of clients; 0 lets the partitioner decide (by_key, files). Switching to one of these drops the
    recipe's."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class FederationTable(Table):
    later = ("clip_update_norm",)
    rounds: int = Field(3, ge=1)
    """Communication rounds."""
    clients_per_round: int = Field(0, ge=0)
    """Cohort size; 0 uses `fraction`."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Fraction of the clients sampled in each round, used when clients_per_round is 0."""
    method: str = "fedit"
    """Federated LoRA method: what clients start from and how their updates are aggregated; see `shepherd list
    methods`."""
    aggregator: str | Mapping[str, Any] = ""
    """Rule over the clients' stacked deltas in place of the method's weighted mean, e.g. trimmed_mean, {name =
    "trimmed_mean", share = 0.2} or `module:function`; empty: the method's own. See `shepherd list aggregators`."""
    weights: Literal["examples", "tokens", "uniform"] = "examples"
    """Aggregation weights: the client's number of rows (FedAvg), its target tokens in this round, or uniform."""
    max_weight: float = Field(1.0, gt=0, le=1)
    """Maximum aggregation weight of one client, whatever size it reports; 1 sets no limit."""
    max_update_norm: float = Field(1e4, ge=0)
    """Reject updates with a larger L2 norm; 0 sets no limit. The default is beyond honest training: all values of an
    adapter of 100 million parameters would have to move by 1."""
    clip_update_norm: Literal["median"] | Annotated[float, Field(ge=0, strict=True)] = 0.0
    """Clip each update to this L2 norm, on the client and again on the server; "median": to the median norm of the last
    round's updates before clipping, the first round unclipped; 0 turns clipping off."""
    min_updates: int = Field(1, ge=1)
    """Minimum number of usable updates per round; `on_too_few` decides what happens below it."""
    on_too_few: Literal["stop", "skip", "wait"] = "stop"
    """`stop`: end the run (exit status 6). `skip`: leave the global model unchanged. `wait`: sample further clients
    into the same round, up to `retries` times, then end the run."""
    retries: int = Field(3, ge=1)
    """Maximum number of further draws per round with on_too_few = "wait"."""
    over_select: float = Field(0.0, ge=0, le=10)
    """Sample this fraction of clients beyond the cohort size; the first updates to arrive count, the rest are late
    (over-selection, Bonawitz et al., 2019)."""
    deadline: float = Field(0.0, ge=0)
    """Deadline for updates, in seconds of the simulation's virtual clock (one per local step of the median client); 0
    sets none."""
    quarantine_after: int = Field(3, ge=0)
    """Quarantine a client after this many consecutive unusable updates; 0 disables."""
    updates_in_memory_mib: int = Field(256, ge=0)
    """Memory for the updates of a round, in MiB; the rest spill to an unnamed temporary file in the run directory.
    Results do not depend on it."""

    @model_validator(mode="after")
    def _enough_clients(self) -> FederationTable:
        least, cohort = self.min_updates, self.clients_per_round
        if cohort and least > cohort:
            raise ValueError(f"federation.min_updates = {least} is more than federation.clients_per_round = {cohort}")
        return self


class SelectionTable(Table):
    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    name: str = "uniform"
    """Client selection: uniform, size_weighted, poisson, everyone, power_of_choice, oort, availability, or
    `module:function`. Other keys are its options; see `shepherd list selections`."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class MethodTable(Table):
    """Options of federation.method, and pieces that replace the method's, e.g. split = "svd_balanced"."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class ServerTable(Table):
    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    optimizer: str = "fedavg"
    """Server optimizer: fedavg, fedavgm, fedadagrad, fedyogi, fedadam, fednova, or torch with `name` set to one of
    torch.optim. Other keys are its options."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class ObjectiveTable(Table):
    proximal: float = Field(0.0, ge=0)
    """mu of FedProx: weight of the penalty (mu/2)·‖θ − θ_t‖² towards the global model; 0 turns it off."""
    proximal_form: Literal["factors", "product"] = "factors"
    """What the penalty measures: the factors A and B, or the increment s·BA, which is invariant to the
    factorisation."""
    rate_ratio: float = Field(0.0, ge=0)
    """Learning rate of B divided by that of A (LoRA+, Hayou et al., 2024); 0 uses the method's default: 5 for lora_a2,
    otherwise 1."""
    scaffold: bool = False
    """Correct local steps by SCAFFOLD's control variates; doubles the upload and needs clients that return. The
    variates are averaged by federation.weights ("examples" or "uniform"). Exact for training.optimizer = "sgd", a
    heuristic for Adam."""


class PersonalizationTable(Table):
    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    name: str = "none"
    """Personal models: none, finetune, ditto, feddpa, ifca, or `module:function`. Other keys are its options.
    FedSA-LoRA and FedPer are methods: federation.method = "fedsa_lora", "fedper_lora"."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class TrainingTable(Table):
    learning_rate: float = Field(5e-4, gt=0)
    """Peak learning rate of the local optimizer."""
    min_learning_rate: float = Field(0.0, ge=0)
    """Final value and lower bound of a linear or cosine schedule."""
    batch_size: int = Field(4, ge=1)
    """Rows per optimizer step of one client."""
    local_steps: int = Field(0, ge=0)
    """Optimizer steps of each client per round; 0 uses local_epochs."""
    local_epochs: float = Field(1.0, gt=0)
    """Passes over the client's rows per round, used when local_steps is 0."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """Local optimizer of torch.optim; its state is reset in every round."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay (adamw), or L2 (adam, sgd)."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Momentum of sgd."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Betas of adamw and adam."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Clip each client's gradient to this norm; 0 turns clipping off. Not applied with privacy.unit = "example", where
    privacy.clip limits the gradient of each row."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning-rate schedule after the warm-up."""
    schedule_over: Literal["run", "round", "rounds"] = "run"
    """`run`: one schedule over the steps of all rounds. `round`: restart in every round. `rounds`: constant within a
    round, scheduled over rounds."""
    warmup_steps: int = Field(0, ge=0)
    """Linear warm-up at the start of the schedule, in optimizer steps."""
    warmup_rounds: int = Field(0, ge=0)
    """Linear warm-up in rounds, with schedule_over = "rounds"."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    tokens_per_pass: int = Field(0, ge=0)
    """Maximum number of tokens per pass through the base; a step is cut into passes. 0 picks by memory. Results depend
    on it by rounding only."""
    clients_at_once: int = Field(0, ge=0)
    """Clients trained together in one batch; 0 picks by memory. On a CPU results do not depend on it, on a GPU by
    rounding only."""

    @model_validator(mode="after")
    def _optimizer_takes_its_options(self) -> TrainingTable:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f'training.momentum needs training.optimizer = "sgd", got "{self.optimizer}"')
        if self.optimizer == "sgd" and self.betas != type(self).model_fields["betas"].default:
            raise ValueError('training.betas needs training.optimizer = "adamw" or "adam", got "sgd"')
        return self

    @model_validator(mode="after")
    def _schedule_is_consistent(self) -> TrainingTable:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"training.min_learning_rate = {self.min_learning_rate:g} is more than training.learning_rate = "
                f"{self.learning_rate:g}"
            )
        if self.min_learning_rate and self.schedule == "constant":
            raise ValueError('training.min_learning_rate needs training.schedule = "linear" or "cosine"')
        if self.schedule_over == "rounds" and self.warmup_steps:
            raise ValueError(
                'training.warmup_steps does not fit training.schedule_over = "rounds", where the rate is constant '
                "within a round: set training.warmup_rounds"
            )
        if self.schedule_over != "rounds" and self.warmup_rounds:
            raise ValueError(
                f'training.warmup_rounds needs training.schedule_over = "rounds", got "{self.schedule_over}": set '
                "training.warmup_steps"
            )
        return self


class AuditTable(Table):
    """Codes that are planted for `shepherd privacy audit`."""

    canaries: int = Field(0, ge=0, le=200)
    """Number of codes, each with its own name: "The access code of NAME is dddd"."""
    copies: tuple[Annotated[int, Field(ge=0, le=1000)], ...] = Field((0, 1, 4, 16), min_length=1)
    """Training rows of each code, in turn; codes with 0 are never trained on and are the comparison."""
    clients: tuple[str, ...] = ()
    """Clients whose rows get them, in turn, by id or label; empty: all."""

    @model_validator(mode="after")
    def _canaries_have_copies_and_some_have_none(self) -> AuditTable:
        if self.canaries and 0 not in self.copies[: self.canaries]:
            raise ValueError(
                f"copies = {list(self.copies)} leaves no code without a copy, with which the others are compared: add 0"
            )
        if self.canaries and not any(self.copies[: self.canaries]):
            raise ValueError(f"copies = {list(self.copies)} plants nothing: add a number above 0")
        return self


class PrivacyTable(Table):
    later = (
        "unit",
        "clip",
        "adaptive_clip",
        "noise_multiplier",
        "epsilon",
        "delta",
        "repeatable_noise",
        "publish_nothing",
        "audit",
    )
    unit: Literal["none", "client", "example"] = "none"
    """Whose data differential privacy protects: all rows of a `client`, or each `example`; `none` adds no noise."""
    clip: float = Field(0.0, ge=0, le=1e12)
    """L2 norm C to which each update is clipped, on the client and again on the server; with adaptive_clip that of the
    first round. Unit `example`: that of the gradient of each row."""
    adaptive_clip: bool = False
    """Move the clip to the median norm of the updates, by a noised count of those that it exceeds (Andrew et al.,
    2021)."""
    noise_multiplier: Literal["from_epsilon"] | Annotated[float, Field(ge=0, le=1e6, strict=True)] = "from_epsilon"
    """z: standard deviation of the noise on the sum of updates, over the clip; unit `example`: on the sum of a local
    step. `from_epsilon`: the least for privacy.epsilon in all rounds; 0 clips without noise and protects nothing."""
    epsilon: float = Field(0.0, ge=0)
    """Budget: the noise is the least that keeps within it, and the run ends before a round that would exceed it; 0 sets
    none, and noise_multiplier is given."""
    delta: float = Field(0.0, ge=0, lt=1)
    """Probability with which epsilon may not hold: at most 1/N of N clients, better 1/(10N); unit `example`: of the N
    rows of a client. It has no default."""
    repeatable_noise: bool = False
    """Draw cohorts and noise from run.seed, so that a run repeats: for tests. Such a run is not private, and every
    record marks it."""
    publish_nothing: bool = False
    """Allow arms that are trained without noise, for a study: nothing of the run directory is for publication."""
    audit: AuditTable = AuditTable()
    """Codes planted into training rows for `shepherd privacy audit`: {canaries = 12, copies = [0, 1, 4, 16], clients =
    ["a"]}. Number of codes, rows of each in turn, and clients that get them (empty: all). 0 canaries plant nothing."""

    @model_validator(mode="after")
    def _one_mechanism(self) -> PrivacyTable:
        if self.unit == "none":
            apart = (key for key in self.later if key != "audit")  # which needs no mechanism
            if given := [key for key in apart if getattr(self, key) != type(self).model_fields[key].default]:
                keys = " and ".join(f"privacy.{key}" for key in given)
                raise ValueError(f'{keys} would have no effect: set privacy.unit = "client", or leave it out')
            return self
        if not self.clip:
            raise ValueError(
                "privacy.clip is missing: the noise is a multiple of the norm that an update may have at most; set it "
                "to the usual norm of an update, which the report of a run without privacy shows"
            )
        if self.clip < 1e-9:
            raise ValueError(
                f"privacy.clip = {self.clip:g} is below 1e-9: what a model shows of such an update is decided by the "
                "rounding of its numbers, and not by the noise; set it to the usual norm of an update"
            )
        if not self.delta:
            raise ValueError("privacy.delta is missing: at most 1/N for N clients, better 1/(10N)")
        if self.noise_multiplier == "from_epsilon" and not self.epsilon:
            raise ValueError("neither privacy.noise_multiplier nor privacy.epsilon is given: set one of them")
        if self.noise_multiplier != "from_epsilon" and self.epsilon:
            raise ValueError("privacy.noise_multiplier and privacy.epsilon are both given: leave one out")
        return self


class EvaluationTable(Table):
    later = ("metrics", "keep_local")
    arms: tuple[str, ...] = ("base", "federated", "local", "centralised")
    """Arms to train and compare at equal budget: the untuned base, the federated model, each client alone, all data
    pooled."""
    local_clients: Literal["all"] | Annotated[int, Field(ge=1, strict=True)] | tuple[str, ...] = "all"
    """Clients of the local arm: all, a number, or a list of names."""
    keep_local: Literal["all"] | Annotated[int, Field(ge=0, strict=True)] | tuple[str, ...] = 3
    """Clients of the local arm whose adapters are kept, to be chatted with, exported and judged as RUN:local/NAME: all,
    a number, spread over their names, or a list of names. Each takes the disk space of an adapter."""
    local_learning_rate: float = Field(0.0, ge=0)
    """Peak learning rate of the local arm, on training.schedule like the others; 0 uses training.learning_rate."""
    centralised_learning_rate: float = Field(0.0, ge=0)
    """Peak learning rate of the centralised arm, on the same schedule; 0 uses training.learning_rate."""
    every: int = Field(1, ge=0)
    """Evaluate every arm on the held-out rows after every n rounds; 0 evaluates only at the end."""
    generate: int = Field(8, ge=0)
    """Held-out rows answered by generation, before and after tuning, and scored by `metrics`; 0 turns it off."""
    max_new_tokens: int = Field(48, ge=1)
    """Maximum length of a generated answer in tokens."""
    metrics: tuple[str | Mapping[str, Any], ...] = ("exact_match", "rouge_l", "token_f1")
    """Metrics of the generated answers: names (`shepherd list metrics`) or `module:function`, or tables with options
    such as {name = "rouge_l", beta = 2.0}."""

    @field_validator("metrics")
    @classmethod
    def _metrics_have_names(cls, entries: tuple[str | Mapping[str, Any], ...]) -> tuple[str | Mapping[str, Any], ...]:
        for entry in entries:
            if not isinstance(entry, str) and not isinstance(entry.get("name"), str):
                raise ValueError(f'must have a name, as in {{name = "rouge_l", beta = 2.0}}, got {dict(entry)}')
        return entries

    @model_validator(mode="after")
    def _rates_belong_to_arms(self) -> EvaluationTable:
        lost = {arm: rate for arm, rate in self.own_rates.items() if arm not in self.arms}
        if lost:
            keys = " and ".join(f"evaluation.{arm}_learning_rate = {rate:g}" for arm, rate in lost.items())
            raise ValueError(
                f"{keys} would have no effect: evaluation.arms does not include {' and '.join(lost)}. Add it, or leave "
                "the rate at 0"
            )
        return self

    @property
    def sets_metrics(self) -> bool:
        """Whether other metrics than the default ones are set."""
        return self.metrics != type(self).model_fields["metrics"].default

    @property
    def sets_keep_local(self) -> bool:
        """Whether another number of kept adapters than the default one is set, or clients by name."""
        return self.keep_local != type(self).model_fields["keep_local"].default

    @property
    def own_rates(self) -> dict[str, float]:
        """Learning rates set for single arms, by arm."""
        suffix = "_learning_rate"
        keys = (key for key in type(self).model_fields if key.endswith(suffix))
        return {key.removesuffix(suffix): rate for key in keys if (rate := getattr(self, key))}


class CheckpointTable(Table):
    keep: int = Field(2, ge=1)
    """Checkpoints to keep: the last n rounds (at least two) and the best round."""


class Config(Table):
    """All settings of a run."""

    later = ("privacy",)
    run: RunTable = RunTable()
    model: ModelTable = ModelTable()
    lora: LoraTable = LoraTable()
    data: DataTable = DataTable()
    partition: PartitionTable = PartitionTable()
    federation: FederationTable = FederationTable()
    selection: SelectionTable = SelectionTable()
    method: MethodTable = MethodTable()
    server: ServerTable = ServerTable()
    training: TrainingTable = TrainingTable()
    objective: ObjectiveTable = ObjectiveTable()
    personalization: PersonalizationTable = PersonalizationTable()
    privacy: PrivacyTable = PrivacyTable()
    evaluation: EvaluationTable = EvaluationTable()
    checkpoints: CheckpointTable = CheckpointTable()

    @property
    def data_seed(self) -> int:
        """The seed of the rows and of their partition: data.seed, or else run.seed."""
        return self.run.seed if self.data.seed == "run" else self.data.seed

    @model_validator(mode="after")
    def _tables_agree(self) -> Config:
        clients, cohort = self.partition.clients, self.federation.clients_per_round
        if clients and cohort > clients:
            raise ValueError(f"federation.clients_per_round = {cohort} is more than partition.clients = {clients}")
        ranks = self.lora.ranks.values() if isinstance(self.lora.ranks, Mapping) else self.lora.ranks
        if ranks and max(ranks) > self.lora.r:
            raise ValueError(f"lora.ranks has {max(ranks)}, more than the global rank lora.r = {self.lora.r}")
        least = self.training.min_learning_rate
        for arm, rate in self.evaluation.own_rates.items():
            if least > rate:
                raise ValueError(
                    f"training.min_learning_rate = {least:g} is more than evaluation.{arm}_learning_rate = {rate:g}"
                )
        return self


def keys() -> dict[str, FieldInfo]:
    """Every dotted key with its field (annotation, default, description), in the order of a run."""
    return {
        f"{table}.{name}": field
        for table, outer in Config.model_fields.items()
        for name, field in _table_class(outer).model_fields.items()
    }


def _table_class(field: FieldInfo) -> type[Table]:
    table = field.annotation
    assert isinstance(table, type) and issubclass(table, Table)
    return table


OTHER_NAMES = {
    "lr": "training.learning_rate", "epochs": "training.local_epochs", "num_train_epochs": "training.local_epochs",
    "per_device_train_batch_size": "training.batch_size", "max_steps": "training.local_steps",
    "rank": "lora.r", "lora_r": "lora.r", "lora_alpha": "lora.alpha", "target_modules": "lora.targets",
    "lora_dropout": "lora.dropout", "model_name_or_path": "model.base", "model_name": "model.base",
    "load_in_4bit": "model.quantize", "load_in_8bit": "model.quantize", "dataset": "data.source",
    "max_seq_length": "data.max_length", "max_seq_len": "data.max_length", "output_dir": "run.out",
    "num_clients": "partition.clients", "num_rounds": "federation.rounds", "mu": "objective.proximal",
}  # fmt: skip
"""Name of a setting in other tools -> our key."""


def keys_named(name: str) -> list[str]:
    """The keys of this name in any table; else the key that other tools give this name; else none."""
    own = [key for key in keys() if key.split(".")[1] == name]
    return own or ([OTHER_NAMES[name]] if name in OTHER_NAMES else [])
