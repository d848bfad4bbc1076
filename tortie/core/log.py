"""Logging in Calico's line format, so that existing log pipelines keep parsing.

`2026-11-21 08:41:00.123 [INFO][4711] felix/routes.go 42: text` is Calico's;
ours is the same with the Python module as the source.
"""

import logging
import sys
import time

_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
    "none": logging.CRITICAL + 10,
}


class LineFormatter(logging.Formatter):
    """One record as one line; further lines of it are indented."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        source = record.name.removeprefix("tortie.")
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        # One record, one line start: a hostile name must not be able to forge a log line.
        text = text.replace("\r", "\\r").replace("\n", "\n    ")
        return (
            f"{stamp}.{int(record.msecs):03d} [{record.levelname}][{record.process}] "
            f"{source} {record.lineno}: {text}"
        )


def level(name: str) -> int:
    """A Calico severity name, in any case, as a logging level; unknown names mean INFO."""
    return _LEVELS.get(name.lower(), logging.INFO)


def known(name: str) -> bool:
    """Whether it is a severity name that a person may give."""
    return name.lower() in _LEVELS


def setup(severity: str = "info", stream: object = None) -> None:
    """Send all log records to stderr (or `stream`); call once, at the start of a process."""
    handler = logging.StreamHandler(stream or sys.stderr)  # type: ignore[arg-type]
    handler.setFormatter(LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level(severity))
    # Calico writes WARNING and FATAL in full; Python's CRITICAL is its FATAL.
    logging.addLevelName(logging.CRITICAL, "FATAL")
