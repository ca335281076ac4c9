"""`shepherd answer`: answers of models to questions, for a judge or a person."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shepherd.cli import output
from shepherd.cli.completion import complete_run
from shepherd.cli.settings import find_arm, run_named
from shepherd.errors import UsageError, plural

if TYPE_CHECKING:
    from shepherd.evaluation.questions import QuestionSet
    from shepherd.experiment.answer import Answered, Asked
    from shepherd.serving.answering_models import Dtype

TOGETHER, REQUESTS = 16, 4
"""Questions in a batch of a model in this process, and requests under way at an endpoint."""


@dataclass(frozen=True)
class Wanted:
    """The arguments and options of the command."""

    models: tuple[str, ...]
    source: str
    max_new_tokens: int
    temperature: float
    seed: int
    limit: int | None
    batch_size: int | None
    base: str
    template: str
    dtype: Dtype
    endpoint: str
    model: str
    key_variable: str
    out: Path
    as_json: bool

    def check(self) -> None:
        """Raise UsageError for options that do not go together."""
        if not self.models and not self.endpoint:
            raise UsageError("nobody to answer: name a run, the folder of a model, or an --endpoint")
        if bool(self.endpoint) != bool(self.model):
            raise UsageError("--endpoint and --model belong together",
                             hint="--endpoint http://127.0.0.1:8000/v1 --model NAME")  # fmt: skip
        if not math.isfinite(self.temperature):
            raise UsageError(f"--temperature {self.temperature} is not a number")


@click.command()
@click.argument("models", nargs=-1, metavar="[RUN…]", shell_complete=complete_run)
@click.option("--questions", "source", required=True, metavar="FILE|NAME",
              help="A file of questions, vicuna, mt-bench, held-out or hub:ORG/NAME.")  # fmt: skip
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=512, show_default=True,
              help="Maximum length of an answer; longer ones are cut and marked.")  # fmt: skip
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True,
              help="0 is greedy decoding.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of answers that are drawn.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N",
              help="At most N questions: the first, or held-out rows of all categories.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N",
              help=f"Questions at once: {TOGETHER}, at an endpoint {REQUESTS}.")  # fmt: skip
@click.option("--base", default="", metavar="BASE", help="Base of a folder with an adapter; default: the one it names.")
@click.option("--template", default="auto", metavar="NAME", help="Prompt template of models without a run.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True,
              help="Precision of models without a run.")  # fmt: skip
@click.option("--endpoint", default="", metavar="URL", help="An OpenAI-compatible endpoint that answers too.")
@click.option("--model", default="", metavar="NAME", help="The model at the endpoint.")
@click.option("--key-variable", default="OPENAI_API_KEY", show_default=True, metavar="NAME",
              help="Environment variable with the key of the endpoint.")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("answers"), show_default=True,
              metavar="DIR", help="Folder for answers of models without a run.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def answer(**given: Any) -> None:
    """Let models answer questions.

    RUN answers with its federated, base, centralised and kept local arms; RUN:federated, RUN:base, RUN:centralised,
    RUN:local/NAME and RUN@ROUND with one. Folders of adapters and of models answer too, and model:NAME, a built-in
    model or one of the hub's cache.

    Answers of a run go to RUN/answers. Those that are there already are not generated again.
    """
    wanted = Wanted(**given)
    wanted.check()
    questions = _questions(wanted)
    named = [(name, run_named(name)) for name in wanted.models]
    output.announce_torch()
    from shepherd.experiment.answer import answer as ask
    from shepherd.experiment.answer import arms_of
    from shepherd.serving.answering import AnswerDecoding

    asked = [one for name, run in named for one in (arms_of(run) if run else [_single(name, wanted)])]
    remote = [_endpoint(wanted)] if wanted.endpoint else []
    if questions is None and (others := [one.arm for one in (*asked, *remote) if one.run is None]):
        raise UsageError(f"{others[0]} has no held-out rows: it belongs to no run", hint="give a file of questions")
    decoding = AnswerDecoding(wanted.max_new_tokens, wanted.temperature, wanted.seed)
    found: list[Answered] = []
    for models, together in ((asked, TOGETHER), (remote, REQUESTS)):
        size = wanted.batch_size or together
        found += ask(models, questions or wanted.limit, decoding, batch_size=size, note=output.note)
    if wanted.as_json:
        output.print_json({"answers": [dataclasses.asdict(one) for one in found]})
    else:
        _print(found)
    if cut := sum(one.cut for one in found):
        limit = f"--max-new-tokens {wanted.max_new_tokens}"
        output.note(f"marked as cut: {plural(cut, 'question')} with an answer that ended at {limit}")


def _questions(wanted: Wanted) -> QuestionSet | None:
    """The questions, None for the held-out rows of each run."""
    if wanted.source == "held-out":
        return None
    from shepherd.evaluation.questions import load_questions

    found = load_questions(wanted.source)
    output.note(f"{found.name}: {plural(len(found.questions), 'question')} of {found.source}, licence: {found.licence}")
    if found.unused:
        columns = ", ".join(f"{name} ({plural(count, 'row')})" for name, count in found.unused.items())
        output.note(f"of the questions is not used: {columns}")
    for note in found.notes:
        output.note(note)
    return dataclasses.replace(found, questions=found.questions[: wanted.limit])


def _single(name: str, wanted: Wanted) -> Asked:
    """One arm of a run, an adapter or a model. Raises UsageError where there is none of this name."""
    from shepherd.data.names import safe_names
    from shepherd.experiment.answer import Asked, asked_of
    from shepherd.serving.answering_models import adapter_model, whole_model

    kind, _, rest = name.partition(":")
    path = Path(name)
    title = (rest if kind == "model" else path.resolve().name) or name
    (file,) = safe_names([title])
    if (path / "adapter_config.json").is_file():
        return Asked(title, wanted.out, file, lambda _: adapter_model(path, wanted.base, wanted.template, wanted.dtype))
    if kind == "model" or (path / "config.json").is_file() or path.suffix.lower() == ".gguf":
        place = rest if kind == "model" else name
        return Asked(title, wanted.out, file, lambda _: whole_model(place, wanted.template, wanted.dtype))
    return asked_of(find_arm(name))


def _endpoint(wanted: Wanted) -> Asked:
    from shepherd.data.names import safe_names
    from shepherd.evaluation.judge.calls.client import Endpoint, connected
    from shepherd.experiment.answer import Asked
    from shepherd.serving.answering import EndpointModel

    endpoint = Endpoint.named(wanted.endpoint, wanted.model, wanted.key_variable)
    model = EndpointModel(endpoint, connected(endpoint))
    return Asked(wanted.model, wanted.out, safe_names([wanted.model])[0], lambda _: model)


def _print(found: Sequence[Answered]) -> None:
    output.print_table(
        ("answers of", "questions", "generated", "read back", "cut", "mean tokens", "file"),
        [
            (one.name, one.questions, one.generated, one.reused, one.cut,
             "n/a" if one.tokens is None else f"{one.tokens:.0f}", one.file)
            for one in found
        ],
        right=range(1, 6),
    )  # fmt: skip
