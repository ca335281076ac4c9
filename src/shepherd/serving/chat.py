"""Talking to what a run tuned: questions from a stream in, answers as they come out, beside another model's if wished.

    chat("runs/demo", "base")           # each question is answered by the tuned model and by its base

On a terminal there are a prompt, labels and, where two models answer and the window is wide, two columns. Elsewhere
the answers alone go to `stdout`, an empty line between them. What a model writes is cleaned before it is shown.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from shepherd.cli import output
from shepherd.data.formats import Refusal
from shepherd.data.tokenize import encode_prompt
from shepherd.errors import did_you_mean
from shepherd.model.generate import generate
from shepherd.model.lora import CohortLora
from shepherd.rng import derive
from shepherd.serving.tuned import Tuned, load_tuned
from shepherd.types import Message

COMMANDS = ("/help", "/quit", "/reset", "/system")
HELP = """  /reset         forgets the conversation
  /system TEXT   sets the system message; without TEXT there is none
  /quit          ends
A question that begins with / gets a space before it."""
TWO_COLUMNS = 96  # from this width of the terminal on, two answers stand side by side

# A terminal sequence, or a line end, of which the rest may still come.
_UNFINISHED = re.compile(r"(?:\r|\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]*\x1b?)?|\x9b[0-?]*[ -/]*)\Z")

Hear = Callable[[str], None]


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn: greedy at temperature 0. Every model draws the answer of turn t from the same numbers."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0


@dataclass
class Voice:
    """One model in the conversation, and what it remembers of it: question and answer in turn."""

    name: str
    tuned: Tuned
    lora: CohortLora | None
    history: list[Message] = field(default_factory=list)

    def prompt(self, question: str, system: str, max_new_tokens: int) -> tuple[list[int], int, int]:
        """(token ids, room for the answer, exchanges forgotten so that both fit into the model's window).

        Raises Refusal when the question alone is too long, or when the template cannot show it.
        """
        window = getattr(self.tuned.base.model.config.get_text_config(), "max_position_embeddings", None)
        forgotten = 0
        while True:
            first = [Message("system", system)] if system else []
            messages = [*first, *self.history, Message("user", question)]
            ids = encode_prompt(self.tuned.template, self.tuned.base.tokenizer, messages)
            room = max_new_tokens if window is None else min(max_new_tokens, window - len(ids))
            if room == max_new_tokens or (not self.history and room > 0):
                return ids, room, forgotten
            if not self.history:
                raise Refusal(f"it has {len(ids)} tokens with its system message, and {self.name} reads {window}")
            del self.history[:2]
            forgotten += 1

    def answer(self, ids: Sequence[int], room: int, sampling: Sampling, turn: int, hear: Hear) -> str:
        """The answer to a prompt; `hear` is told the text so far while it grows."""
        base = self.tuned.base
        return generate(
            base.model,
            base.tokenizer,
            [ids],
            lora=self.lora,
            stops=self.tuned.template.stops,
            max_new_tokens=room,
            temperature=sampling.temperature,
            seed=derive(sampling.seed, "chat", turn),
            on_text=hear,
        )[0].text


def chat(
    run_dir: Path | str,
    compare: str | None = None,
    stdin: TextIO | None = None,
    stdout: TextIO | None = None,
    *,
    seed: int = 0,
    temperature: float = 0.0,
    max_new_tokens: int = 128,
    round_number: int | None = None,
) -> None:
    """Answer the lines of `stdin` with the adapter of a run until /quit or the end of the input.

    `compare` is "base" or another run, which answers too, with a memory of its own. `round_number` takes the adapter
    of that round's checkpoint in place of the final one. Raises ModelError where a base is no longer the one that an
    adapter was trained on.
    """
    screen = Screen(stdin or sys.stdin, stdout or sys.stdout)
    voices = _voices(run_dir, compare, round_number)
    sampling = Sampling(max_new_tokens, temperature, seed)
    if screen.interactive:
        base = voices[0].tuned.base
        precision = str(base.dtype).removeprefix("torch.")
        output.note(f"{' and '.join(v.name for v in voices)}, on {base.name} ({base.device}, {precision})\n{HELP}")
    system, turn = "", 0
    for line in screen.lines():
        if not line.startswith("/"):
            if line.strip():
                _ask(line.strip(), system, voices, sampling, turn, screen)
                turn += 1
            continue
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return
        if command == "/reset":
            turn = 0
            for voice in voices:
                voice.history.clear()
            output.note("the conversation is forgotten" + (", the system message stays" if system else ""))
        elif command == "/system":
            system = rest.strip()
            output.note("the system message is set" if system else "there is no system message")
        elif command == "/help":
            output.note(HELP)
        else:
            output.note(f"unknown command: {command}.{did_you_mean(command, COMMANDS)} /help shows those there are")


def _voices(run_dir: Path | str, compare: str | None, round_number: int | None) -> list[Voice]:
    tuned = load_tuned(run_dir, round_number=round_number)
    voices = [Voice(tuned.name, tuned, tuned.lora)]
    if compare == "base":
        voices.append(Voice("base", tuned, None))
    elif compare is not None:
        other = load_tuned(compare, shared=tuned.base)
        voices.append(Voice(other.name if other.name != tuned.name else str(compare), other, other.lora))
    return voices


def _ask(question: str, system: str, voices: Sequence[Voice], sampling: Sampling, turn: int, screen: Screen) -> None:
    """One question to every voice. An exchange that was stopped or refused is remembered by none."""
    try:
        prompts = [voice.prompt(question, system, sampling.max_new_tokens) for voice in voices]
    except Refusal as reason:
        output.note(f"not asked: {reason}")
        return
    for voice, (_, _, forgotten) in zip(voices, prompts, strict=True):
        if forgotten:
            output.note(f"{voice.name} forgets its oldest exchanges ({forgotten}): its window is full")

    def answer(index: int, hear: Hear) -> str:
        ids, room, _ = prompts[index]
        return voices[index].answer(ids, room, sampling, turn, hear)

    try:
        answers = screen.show(question, [voice.name for voice in voices], answer)
    except KeyboardInterrupt:
        if not screen.interactive:
            raise
        output.note("\nstopped; this exchange is not remembered")
        return
    for voice, text in zip(voices, answers, strict=True):
        voice.history += [Message("user", question), Message("assistant", text)]


class Screen:
    """Where questions come from and answers go: a person's terminal, or streams of a script."""

    def __init__(self, stdin: TextIO, stdout: TextIO) -> None:
        self.stdin, self.stdout = stdin, stdout
        self.terminal = stdout.isatty()
        self.interactive = self.terminal and stdin.isatty()
        self.first = True
        if hasattr(stdin, "reconfigure"):  # a byte that is no text must not end the conversation
            stdin.reconfigure(errors="replace")

    def lines(self) -> Iterator[str]:
        """Lines without their ends. A person gets a prompt, and the arrow keys where there is readline."""
        if not self.interactive:
            yield from (line.rstrip("\r\n") for line in self.stdin)
            return
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401, `input` uses it once it is loaded
        while True:
            try:
                yield input("\nyou: ")
            except EOFError:
                self.stdout.write("\n")
                return

    def show(self, question: str, names: Sequence[str], answer: Callable[[int, Hear], str]) -> list[str]:
        """Have every voice answer and show it as it comes; returns the answers."""
        if not self.first and not self.interactive:
            self.stdout.write("\n")
        self.first = False
        if self.terminal and not self.interactive:
            self.stdout.write(f"you: {output.clean(question)}\n")
        wide = shutil.get_terminal_size().columns >= TWO_COLUMNS
        if len(names) > 1 and wide and output.colours(self.stdout):
            return self._side_by_side(names, answer)
        labelled = self.terminal or len(names) > 1
        return [self._stream(name if labelled else "", index, answer) for index, name in enumerate(names)]

    def _stream(self, label: str, index: int, answer: Callable[[int, Hear], str]) -> str:
        if label:
            bold = ("\x1b[1m", "\x1b[0m") if output.colours(self.stdout) else ("", "")
            self.stdout.write(f"{bold[0]}{output.clean(label)}:{bold[1]} ")
        heard, shown = "", ""

        def hear(text: str) -> None:
            nonlocal heard, shown
            heard, visible = text, readable(text, finished=False)
            self.stdout.write(visible[len(shown) :])
            self.stdout.flush()
            shown = visible

        text = answer(index, hear)
        self.stdout.write(readable(heard, finished=True)[len(shown) :] + "\n")
        self.stdout.flush()
        return text

    def _side_by_side(self, names: Sequence[str], answer: Callable[[int, Hear], str]) -> list[str]:
        from rich.console import Console
        from rich.live import Live
        from rich.table import Table
        from rich.text import Text

        visible = [""] * len(names)

        def table() -> Table:
            grid = Table(expand=True, box=None, pad_edge=False, padding=(0, 2, 0, 0))
            for name in names:
                grid.add_column(Text(output.clean(name)), ratio=1, overflow="fold")
            grid.add_row(*map(Text, visible))
            return grid

        console = Console(file=self.stdout)
        answers = []
        with Live(table(), console=console, refresh_per_second=8, transient=True) as live:
            for index in range(len(names)):

                def hear(text: str, index: int = index) -> None:
                    visible[index] = readable(text, finished=False)
                    live.update(table())

                answers.append(answer(index, hear))
                visible[index] = readable(answers[-1], finished=True)
        console.print(table())  # `transient`: an answer that is longer than the window is cut while it grows
        return answers


def readable(text: str, finished: bool) -> str:
    """What may be shown of a model's text: clean, without space around it; of a text that goes on, what will stay."""
    return output.clean(text if finished else _UNFINISHED.sub("", text)).strip()
