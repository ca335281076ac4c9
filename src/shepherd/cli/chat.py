"""Chat in a terminal or a script: questions from a stream in, answers as they come out, beside another model's.

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
from pathlib import Path
from typing import TextIO

from shepherd.cli import output
from shepherd.data.values import Refusal
from shepherd.errors import ResourceError, did_you_mean
from shepherd.serving.chat import Conversation, Emit, Sampling, load_voices
from shepherd.serving.tuned import named
from shepherd.store.adapters import ArmName
from shepherd.updates.privacy.publication import place_of

COMMANDS = ("/better", "/help", "/quit", "/reset", "/system")
HELP = """  /reset         forgets the conversation
  /system TEXT   sets the system message; without TEXT there is none
  /better a|b    records which of two models answered better, the first or the second; or tie
  /quit          ends
A question that begins with / gets a space before it."""
VOTES = "judge/votes.jsonl"
TWO_COLUMNS = 96  # from this width of the terminal on, two answers stand side by side

# A terminal sequence, or a line end, of which the rest may still come.
_UNFINISHED = re.compile(r"(?:\r|\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]*\x1b?)?|\x9b[0-?]*[ -/]*)\Z")


def chat(
    run_dir: ArmName | Path | str,
    compare: ArmName | str | None = None,
    stdin: TextIO | None = None,
    stdout: TextIO | None = None,
    *,
    seed: int = 0,
    temperature: float = 0.0,
    max_new_tokens: int = 128,
    round_number: int | None = None,
) -> None:
    """Answer the lines of `stdin` with the adapter of a run until /quit or the end of the input.

    `compare` is "base" or another adapter, which answers too and keeps a separate history. `round_number` takes the
    adapter of that round's checkpoint in place of the final one. Raises ModelError where a base is no longer the one
    that an adapter was trained on.
    """
    screen = Screen(stdin or sys.stdin, stdout or sys.stdout)
    voices = load_voices(run_dir, compare, round_number)
    conversation = Conversation(voices, Sampling(max_new_tokens, temperature, seed))
    if screen.interactive:
        base = voices[0].tuned.base
        precision = str(base.dtype).removeprefix("torch.")
        output.note(f"{' and '.join(v.name for v in voices)}, on {base.name} ({base.device}, {precision})\n{HELP}")
    for line in screen.lines():
        if not line.startswith("/"):
            if line.strip():
                _exchange(line.strip(), conversation, screen)
            continue
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return
        if command == "/reset":
            conversation.reset()
            kept = ", the system message stays" if conversation.system else ""
            output.note("the conversation is forgotten" + kept)
        elif command == "/system":
            conversation.system = rest.strip()
            output.note("the system message is set" if conversation.system else "there is no system message")
        elif command == "/better":
            output.note(_vote(named(run_dir, round_number).run, conversation, rest.strip().lower()))
        elif command == "/help":
            output.note(HELP)
        else:
            output.note(f"unknown command: {command}.{did_you_mean(command, COMMANDS)} /help shows those there are")


def _exchange(question: str, conversation: Conversation, screen: Screen) -> None:
    """One question to every voice. An exchange that was stopped or refused enters no history."""
    try:
        exchange = conversation.ask(question)
    except Refusal as reason:
        output.note(f"not asked: {reason}")
        return
    for voice, prompt in zip(conversation.voices, exchange.prompts, strict=True):
        if prompt.forgotten:
            output.note(f"{voice.name} forgets its oldest exchanges ({prompt.forgotten}): its window is full")
    try:
        answers = screen.show(question, [voice.name for voice in conversation.voices], exchange.answer)
    except KeyboardInterrupt:
        if not screen.interactive:
            raise
        output.note("\nstopped; this exchange is not remembered")
        return
    conversation.remember(exchange, answers)


def _vote(run_dir: Path, conversation: Conversation, verdict: str) -> str:
    """Record which of two models answered the last question better; returns what to show, also where nothing was.

    The vote goes to judge/votes.jsonl of the run, with the hashes of the answers since the last reset.
    """
    from shepherd.evaluation.judge.calls.plan import Shown
    from shepherd.evaluation.judge.labels import VERDICTS, Label, append_vote

    if len(conversation.voices) != 2:
        return "/better compares two models: start with --compare base or --compare RUN"
    one, other = conversation.voices
    if not one.history or not other.history:
        return "nothing to compare: no question is answered since the last reset"
    if verdict not in VERDICTS:
        return f"/better a is for {one.name}, /better b for {other.name}, /better tie for neither"
    turns, answers = (
        [tuple(m.content for m in voice.history if m.role == role) for voice in (one, other)]
        for role in ("user", "assistant")
    )
    hashes = Shown(answers[0]).hash, Shown(answers[1]).hash
    label = Label(turns[0][-1], one.name, other.name, VERDICTS[verdict], hashes)
    file = place_of(run_dir, VOTES)
    try:
        append_vote(file, label, turns[0], conversation.system)
    except ResourceError as error:
        return f"not recorded: {error.message}"
    return f"recorded in {file}"


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

    def show(self, question: str, names: Sequence[str], answer: Callable[[int, Emit], str]) -> list[str]:
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

    def _stream(self, label: str, index: int, answer: Callable[[int, Emit], str]) -> str:
        if label:
            bold = ("\x1b[1m", "\x1b[0m") if output.colours(self.stdout) else ("", "")
            self.stdout.write(f"{bold[0]}{output.clean(label)}:{bold[1]} ")
        received, shown = "", ""

        def emit(text: str) -> None:
            nonlocal received, shown
            received, visible = text, readable(text, finished=False)
            self.stdout.write(visible[len(shown) :])
            self.stdout.flush()
            shown = visible

        text = answer(index, emit)
        self.stdout.write(readable(received, finished=True)[len(shown) :] + "\n")
        self.stdout.flush()
        return text

    def _side_by_side(self, names: Sequence[str], answer: Callable[[int, Emit], str]) -> list[str]:
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

                def emit(text: str, index: int = index) -> None:
                    visible[index] = readable(text, finished=False)
                    live.update(table())

                answers.append(answer(index, emit))
                visible[index] = readable(answers[-1], finished=True)
        console.print(table())  # `transient`: an answer that is longer than the window is cut while it grows
        return answers


def readable(text: str, finished: bool) -> str:
    """What may be shown of a model's text: clean, without space around it; of a text that goes on, what will stay."""
    return output.clean(text if finished else _UNFINISHED.sub("", text)).strip()
