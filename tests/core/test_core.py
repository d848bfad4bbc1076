"""Back-off, atomic files, log lines, error texts."""

import io
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.core import errors, files, log
from tortie.core.backoff import Backoff, Retry

pytestmark = pytest.mark.unit


@given(failures=st.integers(1, 10_000), rand=st.floats(0, 1, exclude_max=True))
def test_backoff_stays_in_its_band(failures: int, rand: float) -> None:
    policy = Backoff(first=0.5, cap=10, factor=2, jitter=0.2)
    plain = min(10, 0.5 * 2 ** min(failures - 1, 32))
    assert plain * 0.8 <= policy.delay(failures, lambda: rand) <= plain * 1.2


def test_retry_counts_and_resets() -> None:
    retry = Retry(Backoff(first=1, cap=100, jitter=0), rand=lambda: 0.5)
    assert [retry.wait(), retry.wait(), retry.wait()] == [1, 2, 4]
    retry.reset()
    assert retry.wait() == 1


def test_write_atomic_replaces_and_leaves_no_trace(tmp_path: Path) -> None:
    target = tmp_path / "conf"
    files.write_atomic(str(target), "one")
    files.write_atomic(str(target), "two", mode=0o600, sync=True)
    assert target.read_text() == "two" and target.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["conf"]


def test_a_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "conf"
    files.write_atomic(str(target), "old")

    def refuse(_source: str, _target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError):
        files.write_atomic(str(target), "new")
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["conf"]


def test_a_hostile_text_cannot_forge_a_log_line() -> None:
    out = io.StringIO()
    log.setup("info", out)
    logging.getLogger("tortie.felix.x").info("name is %s", "a\r\n2026-01-01 00:00:00.000 [INFO] forged")
    lines = out.getvalue().splitlines()
    assert "[INFO]" in lines[0] and "felix.x" in lines[0]
    assert all(line.startswith("    ") for line in lines[1:])


def test_error_texts_are_calicos() -> None:
    one = errors.FieldError("IPPool.Spec.CIDR", "10.0.0.0/99", "invalid CIDR")
    assert str(errors.ValidationError([one])) == (
        "error with field IPPool.Spec.CIDR = '10.0.0.0/99' (invalid CIDR)"
    )
    assert str(errors.ValidationError([one, one])).splitlines()[0] == "error with the following fields:"
    assert str(errors.ResourceDoesNotExist("IPPool(x)")) == (
        "resource does not exist: IPPool(x) with error: <nil>"
    )
    assert str(errors.UpdateConflict("NetworkPolicy(ns/x)")) == "update conflict: NetworkPolicy(ns/x)"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(True, "true"), (False, "false"), (1.5, "1.5"), ({"a": [None]}, '{"a":[null]}'), (["x"], '["x"]')],
)
def test_values_are_printed_as_they_stand_in_a_file(value: object, shown: str) -> None:
    assert str(errors.FieldError("f", value, "no")) == f"f = '{shown}' (no)"


def test_hostile_values_are_printed_harmlessly() -> None:
    text = str(errors.FieldError("f", "a\nb\x1b[31m" + "x" * 10_000, "no"))
    assert "\n" not in text and "\x1b" not in text and len(text) < 300
