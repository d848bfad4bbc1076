"""Names, labels and annotations of every kind."""

import re

from tortie.datastore.types.meta import Resource
from tortie.datastore.validate.fields import Problems

LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
NAME = rf"{LABEL}(\.{LABEL})*"
_MAX_NAME = 253  # RFC 1123 subdomain

_name = re.compile(NAME)


def check_metadata(resource: Resource, problems: Problems) -> None:
    name = resource.metadata.name
    if not name or len(name) > _MAX_NAME or not _name.fullmatch(name):
        problems.add(
            "metadata.name", name,
            "name must consist of lower case alphanumeric characters, '-' or '.' (regex: " + NAME + ")",
        )  # fmt: skip
