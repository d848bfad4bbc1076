"""Go's text/template, as much of it as `get -o go-template` needs.

Everything of the language is here but methods, `call`, channels, functions to range over and complex
numbers, which no resource has. Values are seen as Go sees them (see values). What the data's strings
contain never reaches the output as control characters.
"""

from typing import Any

from tortie.calicoctl.errors import CommandError
from tortie.calicoctl.gotemplate.execute import SHORT_CIRCUIT, Run
from tortie.calicoctl.gotemplate.functions import functions
from tortie.calicoctl.gotemplate.parser import parse


def render(text: str, data: Any, cluster_as: str = "") -> str:
    """The template's output for `data`. Raises CommandError with Go's wording."""
    known = functions(cluster_as)
    templates = parse(text, frozenset([*known, *SHORT_CIRCUIT]))
    run = Run(text, templates, known)
    try:
        run.run(data)
    except RecursionError:
        raise CommandError("template: get: nested too deeply") from None
    return "".join(run.parts)
