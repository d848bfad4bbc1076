"""RE2 expressions as Python patterns: the same meaning, or refused."""

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.datastore.regexp import compile_re2

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        ("^((en|wl)[Pcopsvx].*|(eth|wlan).*)", ["eth0", "enp3s0"], ["lo", "xeth0"]),
        ("[[:alpha:]]+[[:digit:]]$", ["eth0"], ["0", "eth0\n"]),
        ("^[^[:digit:]]$", ["a"], ["1"]),
        ("^[]a]$", ["]", "a"], ["b"]),
        ("^[^]a]$", ["b"], ["]"]),
        ("^[a[b]$", ["["], ["c"]),
        (r"^a\z", ["a"], ["a\n", "ab"]),
        ("(?i)^ETH", ["eth0"], ["xeth"]),
        ("(?P<n>a)(?<m>b)", ["ab"], ["a"]),
        (r"^\d$", ["1"], ["١"]),
        ("(?m)^b$", ["a\nb\nc"], ["ab"]),
        ("^[a&&b|~]$", ["&", "~"], ["c"]),
        ("^(?:a|b){2,3}$", ["ab", "aba"], ["a"]),
        (r"^[\-\]]$", ["-", "]"], ["\\"]),
        ("", ["anything"], []),
    ],
)
def test_meaning(pattern: str, matches: list[str], others: list[str]) -> None:
    compiled = compile_re2(pattern)
    assert all(compiled.search(text) for text in matches)
    assert not any(compiled.search(text) for text in others)


@pytest.mark.parametrize(
    "pattern",
    [
        "(", "[", "*a", "a**", "(?=a)", "(?!a)", "(?<=a)b", r"(a)\1", "(?P=n)", "(?>a)", "a++", "a{2}+",
        r"\pL", r"\Q.\E", "x(?i)y", "(?U)a*", "[[:nonsense:]]", "(?#comment)", "(?(1)a|b)", "a" * 1025, "\\",
    ],
)  # fmt: skip
def test_what_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError):
        compile_re2(pattern)


@given(st.text(max_size=30) | st.text("[](){}*+?|^$\\:ab-&~<>!=P1", max_size=20))
def test_any_text_compiles_or_is_refused(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Python warns where it will read a pattern differently one day
        try:
            compile_re2(text).search("eth0")
        except ValueError:
            return
