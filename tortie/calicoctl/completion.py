"""Shell completion: the scripts, and the candidates that they ask this program for.

A script calls `calicoctl __complete WORD...` with the words after the program's name, the last of them the
one being typed (maybe empty), and gets candidates one per line; none means: complete file names.
"""

from collections.abc import Iterable, Sequence

from tortie.calicoctl.call import Call
from tortie.calicoctl.errors import CommandError
from tortie.calicoctl.flags import Flag, parse
from tortie.calicoctl.tree import Command, Found, find

_OUTPUTS = ("custom-columns=", "go-template-file=", "go-template=", "json", "ps", "wide", "yaml")
_LEVELS = ("debug", "error", "fatal", "info", "panic", "warn")

# In each script: PROGRAM is replaced by the name the program was called by, FUNCTION by a shell name of it.
_BASH = r"""# bash completion for PROGRAM
_FUNCTION_complete() {
    local IFS=$'\n'
    COMPREPLY=($(PROGRAM __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -o bashdefault -o default -F _FUNCTION_complete PROGRAM
"""
_ZSH = r"""#compdef PROGRAM
_FUNCTION_complete() {
    local -a candidates
    candidates=("${(@f)$(PROGRAM __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "${candidates[1]}" ]]; then
        compadd -- "${candidates[@]}"
    else
        _files
    fi
}
if [[ "$funcstack[1]" == "_PROGRAM" ]]; then
    _FUNCTION_complete "$@"
else
    compdef _FUNCTION_complete PROGRAM
fi
"""
_FISH = r"""# fish completion for PROGRAM
function __FUNCTION_complete
    set -l words (commandline -opc) (commandline -ct)
    PROGRAM __complete $words[2..-1] 2>/dev/null
end
complete -c PROGRAM -a '(__FUNCTION_complete)'
"""


def print_bash(call: Call) -> None:
    _print(call, _BASH)


def print_zsh(call: Call) -> None:
    _print(call, _ZSH)


def print_fish(call: Call) -> None:
    _print(call, _FISH)


def _print(call: Call, script: str) -> None:
    name = call.root.name
    call.out(script.replace("PROGRAM", name).replace("FUNCTION", name.replace("-", "_")))


def complete(call: Call) -> None:
    call.out("".join(f"{candidate}\n" for candidate in candidates(call.root, call.words)))


def candidates(root: Command, words: Sequence[str]) -> list[str]:
    """What the last word may become, given those before it. Pure."""
    # bash splits `--output=json` into three words, of which the third is the one to replace.
    before = [word for word in words[:-1] if word != "="]
    partial = "" if not words or words[-1] == "=" else words[-1]
    try:
        found = find(root, before)
    except CommandError:
        return []
    flags = [flag for flag in found.flags() if not flag.hidden]
    if before and (flag := _waiting_for_value(flags, before[-1])) is not None:
        return _starting(_values(flag), partial)
    if partial.startswith("-"):
        name, equals, value = partial.partition("=")
        if equals:
            given = next((flag for flag in flags if f"--{flag.name}" == name), None)
            return [f"{name}={v}" for v in _starting(_values(given), value)] if given else []
        return _starting([f"--{flag.name}" for flag in flags], partial)
    return _starting(_words(found, _given_words(found)), partial)


def _starting(values: Iterable[str], partial: str) -> list[str]:
    return sorted(value for value in values if value.startswith(partial))


def _waiting_for_value(flags: Iterable[Flag], word: str) -> Flag | None:
    for flag in flags:
        if flag.kind != "bool" and word in (f"--{flag.name}", f"-{flag.short or '-'}"):
            return flag
    return None


def _values(flag: Flag) -> Iterable[str]:
    return {"output": _OUTPUTS, "log-level": _LEVELS}.get(flag.name, ())


def _given_words(found: Found) -> list[str]:
    try:
        return parse(found.flags(), found.rest).words
    except CommandError:
        return found.rest


def _words(found: Found, given: Sequence[str]) -> Iterable[str]:
    if found.command.children:
        return [child.name for child in found.command.children if not child.hidden]
    if found.command.complete == "kinds" and not given:
        from tortie.calicoctl.kinds import MANAGED  # with all resource types, for this case only

        return [kind.aliases[1] for kind in MANAGED.values()]
    return ()
