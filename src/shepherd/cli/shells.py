"""Completion scripts for bash, zsh and fish, in place of click's, which do not expect values of the form KEY=VALUE.

Bash splits words at `=` and `:`; bash and zsh add a space after `KEY=`, where the value follows; in click's script for
fish a comma ends values and help.
"""

from __future__ import annotations

import os
import shlex

from click.shell_completion import BashComplete, CompletionItem, FishComplete, ZshComplete, add_completion_class
from click.shell_completion import split_arg_string as split

BASH = """\
%(complete_func)s() {
    local kind value
    COMPREPLY=()
    while IFS=',' read -r kind value; do
        case $kind in
            plain) COMPREPLY+=("$value"); [[ $value == *= ]] && compopt -o nospace ;;
            file) compopt -o default ;;
            dir) compopt -o dirnames ;;
        esac
    done < <(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

ZSH = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local kind value about
    local -a answer values keys plain
    answer=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) \\
        %(complete_var)s=zsh_complete ${words[1]} 2>/dev/null)}")
    for kind value about in "${answer[@]}"; do
        case $kind in
            plain)
                if [[ $about == _ ]]; then plain+=("$value")
                elif [[ $value == *= ]]; then keys+=("$value:$about")
                else values+=("$value:$about")
                fi ;;
            file) compset -P '*='; _path_files ;;
            dir) compset -P '*='; _path_files -/ ;;
        esac
    done
    (( $#keys )) && _describe -V 'key' keys -U -S ''
    (( $#values )) && _describe -V 'value' values -U
    (( $#plain )) && compadd -U -V 'value' -a plain
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""

FISH = """\
function %(complete_func)s
    for line in (env COMP_WORDS=(commandline -cp) COMP_CWORD=(commandline -t) \\
            %(complete_var)s=fish_complete %(prog_name)s 2>/dev/null)
        set -l answer (string split -m 1 "," -- $line)
        switch $answer[1]
            case plain
                echo $answer[2]
            case file
                __fish_complete_path $answer[2]
            case dir
                __fish_complete_directories $answer[2]
        end
    end
end

complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


class Bash(BashComplete):
    """Bash: the line up to the cursor -> completions without the part up to `=` or `:`, which bash keeps itself."""

    source_template = BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        if "COMP_LINE" not in os.environ:  # the script of an earlier version
            return super().get_completion_args()
        line = os.environ["COMP_LINE"]
        words = split(line)[1:]
        if not words or (line[-1:].isspace() and not line.endswith("\\ ")):
            return words, ""
        return words[:-1], words[-1]

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        found = super().get_completions(args, incomplete)
        _, _, inner = incomplete.partition("=") if incomplete.startswith("-") else ("", "", incomplete)
        end = max((inner.rfind(mark) for mark in _breaks()), default=-1) + 1
        for item in found:
            if item.type == "plain" and item.value.startswith(inner[:end]):
                item.value = item.value[end:]
        return found


def _breaks() -> str:
    """The characters at which bash splits the last word: none within quotes."""
    try:
        shlex.split(os.environ.get("COMP_LINE", ""))
    except ValueError:  # a quote that is still open
        return ""
    return os.environ.get("COMP_WORDBREAKS", "")


class _Joined:
    """Completions of a word --option=VALUE that are words of this form."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        found = super().get_completions(args, incomplete)  # type: ignore[misc]
        option, equals, _ = incomplete.partition("=")
        if option.startswith("-") and equals:
            for item in found:
                item.value = f"{option}={item.value}" if item.type == "plain" else item.value
        return found


class Zsh(_Joined, ZshComplete):
    """Zsh: `KEY=` without a space after it, paths after `KEY=`."""

    source_template = ZSH


class Fish(_Joined, FishComplete):
    """Fish: commas in values and help."""

    source_template = FISH


def register() -> None:
    """Make click complete through these classes."""
    for shell in (Bash, Zsh, Fish):
        add_completion_class(shell)
