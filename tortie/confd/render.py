"""From a context to the text of exabgp.conf and bgp.json, or to that of BIRD's two files.

Neither language has escapes: a quote or a newline in a value could end it and begin a statement,
and a `process` statement has ExaBGP run programs as root. So every value passes one of the filters below,
which raise rather than let through anything but their own alphabet. Pure, apart from reading templates.
"""

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError

from tortie.bgp import config
from tortie.bgp.filters import INTERFACE
from tortie.bgp.prefix import Version, canonical
from tortie.confd import birdview
from tortie.confd.context import Context
from tortie.core.errors import ConfigError

_WORD = re.compile(r"[A-Za-z0-9_./+@-]+")  # nothing that ExaBGP's tokeniser gives a meaning to
_NO_DIGEST = "0"  # stands for the digest in the text that the digest is of
_DIGITS = 16  # hexadecimal digits of a digest: 64 bits tell files of one node apart


def exabgp_conf(context: Context) -> tuple[str, str]:
    """(text, digest); the digest is "" without neighbours. Raises ConfigError."""
    bare = _render(context, _NO_DIGEST)
    if not context.neighbors:
        return bare, ""
    digest = sha256(bare.encode()).hexdigest()[:_DIGITS]
    return _render(context, digest), digest


def bgp_json(context: Context, digest: str) -> bytes:
    """`digest` is that of the exabgp.conf made from the same context."""
    return config.encode(msgspec.structs.replace(context.config, sessions=digest))


def bird_cfg(context: Context, version: Version, problems: list[str]) -> bytes:
    """bird.cfg or bird6.cfg; `problems` takes what was left out and why. Raises ConfigError."""
    template = _environment().get_template("bird.cfg.j2")
    try:
        text = template.render(d=birdview.daemon(context, version, problems))
    except TemplateError as err:
        raise ConfigError("bird.cfg", "", str(err)) from err
    return text.encode("latin-1")  # passwords are bytes; all else is ASCII


def _render(context: Context, digest: str) -> str:
    template = _environment().get_template("exabgp.conf.j2")
    try:
        return template.render(agent=context.agent, neighbors=context.neighbors, digest=digest)
    except TemplateError as err:
        raise ConfigError("exabgp.conf", "", str(err)) from err


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tortie.confd"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # no HTML; the filters below do not escape, they refuse
    )
    environment.filters |= {
        "address": address,
        "number": number,
        "boolean": boolean,
        "word": word,
        "command": command,
        "base64": base64,
        "prefix": prefix,
        "interface": interface,
        "quoted": birdview.quoted,
    }
    return environment


# --- filters ------------------------------------------------------------------------------------


def address(value: object) -> str:
    """An IP address in canonical form; no zone, which may hold any text (`fe80::1%…`)."""
    try:
        text, _, length = canonical(str(value)).partition("/")
    except ValueError as err:
        raise ConfigError("BGP configuration", value, "not an address") from err
    if length not in ("32", "128") or "/" in str(value):
        raise ConfigError("BGP configuration", value, "not an address")
    return text


def number(value: object) -> str:
    """A number of four bytes."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 0xFFFFFFFF:
        raise ConfigError("BGP configuration", value, "not a number from 0 to 4294967295")
    return str(int(value))


def boolean(value: object) -> str:
    if not isinstance(value, bool):
        raise ConfigError("BGP configuration", value, "not true or false")
    return "true" if value else "false"


def word(value: object) -> str:
    """Letters, digits and `_ . / + @ -`."""
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise ConfigError("BGP configuration", value, "has characters that a routing daemon could misread")
    return value


def prefix(value: object) -> str:
    """A prefix in canonical form."""
    try:
        text = canonical(str(value))
    except ValueError as err:
        raise ConfigError("bird.cfg", value, "not a prefix") from err
    if text != value:
        raise ConfigError("bird.cfg", value, "not a prefix in canonical form")
    return text


def interface(value: object) -> str:
    """A pattern of interfaces' names."""
    if not isinstance(value, str) or not INTERFACE.fullmatch(value):
        raise ConfigError("bird.cfg", value, "not an interface")
    return value


def command(value: object) -> str:
    """A program and its arguments, each a word: ExaBGP splits at blanks and knows no quotes here."""
    if not isinstance(value, tuple):
        raise ConfigError("BGP configuration", value, "not a command line")
    return " ".join(word(part) for part in value)


def base64(value: object) -> str:
    """A password: any bytes, in an alphabet that cannot end a string."""
    if not isinstance(value, bytes):
        raise ConfigError("exabgp.conf", "password", "not bytes")
    return b64encode(value).decode("ascii")
