"""Words to commands: flags in pflag's forms, the tree, help, completion. Pure."""

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.calicoctl import completion, flags, main, tree
from tortie.calicoctl.commands import root
from tortie.calicoctl.errors import CommandError
from tortie.calicoctl.flags import Flag

pytestmark = pytest.mark.unit

FLAGS = (
    Flag("filename", "", "f"),
    Flag("recursive", "", "R", "bool"),
    Flag("count", "", "n", "int", default=5),
    Flag("from-report", "", kind="stringArray"),
    Flag("output", "", "o", default="ps"),
)


@pytest.mark.parametrize(
    ("line", "values", "words"),
    [
        ("", {"filename": "", "recursive": False, "count": 5, "from-report": (), "output": "ps"}, []),
        ("-f x", {"filename": "x"}, []),
        ("-fx -R", {"filename": "x", "recursive": True}, []),
        ("-f=x a", {"filename": "x"}, ["a"]),
        ("-Rf x", {"filename": "x", "recursive": True}, []),
        ("--filename x --filename=y", {"filename": "y"}, []),
        ("--filename= a", {"filename": ""}, ["a"]),
        ("--recursive=false -R=true", {"recursive": True}, []),
        ("--recursive=0", {"recursive": False}, []),
        ("-n -3 --count=0x10", {"count": 16}, []),
        ("--from-report a --from-report=b", {"from-report": ("a", "b")}, []),
        ("a -o yaml b - -- -R --x", {"output": "yaml", "recursive": False}, ["a", "b", "-", "-R", "--x"]),
        ("-f -", {"filename": "-"}, []),
        ("-o custom-columns=A,B", {"output": "custom-columns=A,B"}, []),
    ],
)
def test_flags(line: str, values: dict[str, Any], words: list[str]) -> None:
    parsed = flags.parse(FLAGS, line.split())
    assert parsed.words == words
    assert {name: parsed.values[name] for name in values} == values


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("--nope", "unknown flag: --nope"),
        ("--nope=1", "unknown flag: --nope"),
        ("-x", "unknown shorthand flag: 'x' in -x"),
        ("-Rx", "unknown shorthand flag: 'x' in -x"),
        ("-xR", "unknown shorthand flag: 'x' in -xR"),
        ("-f", "flag needs an argument: 'f' in -f"),
        ("--filename", "flag needs an argument: --filename"),
        ("--=x", "bad flag syntax: --=x"),
        ("---x", "bad flag syntax: ---x"),
        (
            "-R=x",
            'invalid argument "x" for "-R, --recursive" flag: strconv.ParseBool: parsing "x": invalid syntax',
        ),
        (
            "--count x",
            'invalid argument "x" for "-n, --count" flag: strconv.ParseInt: parsing "x": invalid syntax',
        ),
    ],
)
def test_flag_errors(line: str, error: str) -> None:
    with pytest.raises(CommandError) as refused:
        flags.parse(FLAGS, line.split())
    assert str(refused.value) == error


@pytest.mark.parametrize(
    ("line", "path", "rest"),
    [
        ("get ippool", "get", "ippool"),
        ("-o yaml get ippool", "get", "-o yaml ippool"),
        ("--context x get ippool", "get", "--context x ippool"),
        ("--allow-version-mismatch get ippool", "get", "--allow-version-mismatch ippool"),
        ("-lpanic get get", "get", "-lpanic get"),
        ("ipam --show-blocks show", "ipam", "--show-blocks show"),
        ("ipam show --show-blocks", "ipam show", "--show-blocks"),
        ("-l info ipam -l debug show x", "ipam show", "-l info -l debug x"),
        ("-- get", "", "-- get"),
    ],
)
def test_the_command_is_found_among_flags(line: str, path: str, rest: str) -> None:
    found = tree.find(root(), line.split())
    assert (" ".join(step.name for step in found.path[1:]), " ".join(found.rest)) == (path, rest)


@pytest.mark.parametrize(
    ("word", "suggestions"),
    [
        ("ge", ["bgp", "get"]),  # two letters from bgp, as cobra counts
        ("gett", ["get"]),
        ("paly", ["apply"]),
        ("aply", ["apply"]),
        ("lable", ["label"]),
        ("xyzzy", []),
    ],
)
def test_close_commands_are_suggested(word: str, suggestions: list[str]) -> None:
    with pytest.raises(CommandError) as refused:
        tree.find(root(), [word])
    expected = (
        "".join(["\n\nDid you mean this?\n", *(f"\t{s}\n" for s in suggestions)]) if suggestions else ""
    )
    assert str(refused.value) == f'unknown command "{word}" for "calicoctl"' + expected


@pytest.mark.parametrize(
    ("line", "group", "word"),
    [
        ("ipam bogus", "calicoctl ipam", "bogus"),
        ("ipam convert --show-all-ips", "calicoctl ipam", "convert"),
        ("node walk --ip 10.0.0.1", "calicoctl node", "walk"),
        ("-l debug node walk -n=x", "calicoctl node", "walk"),
        ("completion powershell", "calicoctl completion", "powershell"),
    ],
)
def test_an_unknown_command_of_a_group_is_an_error(line: str, group: str, word: str) -> None:
    """Calico prints the group's help and succeeds; a script would take that for work done."""
    assert run(*line.split(" ")) == (1, "", f'unknown command "{word}" for "{group}"\n')


def test_a_close_command_of_a_group_is_suggested() -> None:
    assert run("ipam", "shwo")[2].endswith("\n\nDid you mean this?\n\tshow\n\n")


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("ge", ["get"]),
        ("get ippo", ["ippools"]),
        ("get ippools x", []),
        ("get -n shop net", ["networkpolicies", "networksets"]),
        ("get ippools -o j", ["json"]),
        ("get ippools --output=y", ["--output=yaml"]),
        ("get ippools --output = y", ["yaml"]),  # as bash splits it
        ("--log-level =", ["debug", "error", "fatal", "info", "panic", "warn"]),
        ("get ippools -n = shop --output = js", ["json"]),
        ("get ippools --exp", ["--export"]),
        ("ipam s", ["show", "split"]),
        ("ipam show --show-b", ["--show-blocks", "--show-borrowed"]),
        ("-l deb", ["debug"]),
        ("completion ", ["bash", "fish", "zsh"]),
        ("nothing x", []),
        ("apply -f ", []),
    ],
)
def test_completion(line: str, candidates: list[str]) -> None:
    assert completion.candidates(root(), line.split(" ")) == candidates


def run(*arguments: str, name: str = "calicoctl") -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    code = main.run(arguments, {}, io.BytesIO(), out, err, name)
    return code, out.getvalue(), err.getvalue()


def test_under_the_plugin_name_help_and_scripts_say_so() -> None:
    name = main.program_name("/usr/local/bin/kubectl-calico")
    assert name == "kubectl-calico" and main.program_name("/usr/bin/calico") == "calicoctl"
    assert "kubectl-calico get [KIND" in run("get", "-h", name=name)[1]
    assert 'unknown command "x" for "kubectl-calico"' in run("x", name=name)[2]
    assert (
        "complete -o bashdefault -o default -F _kubectl_calico_complete kubectl-calico"
        in run("completion", "bash", name=name)[1]
    )


def test_every_command_explains_itself() -> None:
    def visit(path: list[tree.Command]) -> None:
        code, out, err = run(*(step.name for step in path), "--help")
        assert (code, err) == (0, "") and "Usage:\n  " in out and out.endswith("\n")
        assert path[-1].long or path[-1].short
        for child in path[-1].children:
            visit([*path, child])

    for child in root().children:
        if child.name != "__complete":
            visit([child])


@given(
    st.lists(st.text(max_size=12) | st.sampled_from(["-o", "--help", "ipam", "node", "--", "-"]), max_size=5)
)
def test_no_command_line_ends_in_a_traceback(words: list[str]) -> None:
    if words and words[0] in {child.name for child in root().children}:
        words[0] = "x" + words[0]  # what commands do with their words is for other tests
    code, _, err = run(*words)
    assert code in (0, 1) and err.replace("\n", "").replace("\t", "").isprintable()
