"""A parsed selector, as everybody outside this package sees it."""

import base64
import hashlib
from dataclasses import dataclass
from functools import cached_property

from tortie.datastore.selector import ast
from tortie.datastore.selector.ast import Labels, Term
from tortie.datastore.selector.errors import SelectorError
from tortie.datastore.selector.restrictions import Restriction, restrictions
from tortie.datastore.selector.tokenizer import valid_label


@dataclass(frozen=True, eq=False, repr=False)
class Selector:
    """An immutable selector; two are equal if their canonical texts are."""

    root: ast.Node

    def evaluate(self, labels: Labels) -> bool:
        """Whether an object with these labels is selected; ChainLabels adds inherited ones."""
        return self.root.evaluate(labels)

    @cached_property
    def canonical(self) -> str:
        """Calico's normal form of the text.

        Parsing it gives an equal selector, with one exception that is Calico's as well: `!(!x)` is
        written `!!x`, which reads as `x`.
        """
        pieces: list[str] = []
        self.root.write(pieces)
        return "".join(pieces)

    @cached_property
    def id(self) -> str:
        """Calico's unique id, `s:` and 38 characters: the name of the IP set of what it selects."""
        return unique_id("s", self.canonical)

    def prefixed(self, prefix: str) -> "Selector":
        """The same selector over labels whose names begin with `prefix`; all() and global() stay.

        Raises SelectorError if a name gets longer than a label's may be.
        """
        result = Selector(self.root.prefixed(prefix))
        for label in result.label_keys:
            if not valid_label(label):
                raise SelectorError(f"label too long with prefix {prefix!r}", 0, self.canonical)
        return result

    @property
    def terms(self) -> tuple[Term, ...]:
        """What it looks at: unless one of these comes or goes, the verdict stays. Each once."""
        return tuple(dict.fromkeys(term for node, _level in ast.walk(self.root) for term in node.terms()))

    @property
    def restrictions(self) -> tuple[Restriction, ...]:
        """What labels must have to match, see restrictions.py; each restriction holds by itself."""
        return restrictions(self.root)

    @property
    def label_keys(self) -> frozenset[str]:
        """The names of all labels it looks at."""
        return frozenset(
            node.label for node, _level in ast.walk(self.root) if isinstance(node, ast.LabelTest)
        )

    @property
    def has_global(self) -> bool:
        """Whether global() stands anywhere in it."""
        return any(isinstance(node, ast.Global) for node, _level in ast.walk(self.root))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selector) and self.canonical == other.canonical

    def __hash__(self) -> int:
        return hash(self.canonical)

    def __str__(self) -> str:
        return self.canonical

    def __repr__(self) -> str:
        return f"Selector({self.canonical!r})"


def unique_id(prefix: str, content: str) -> str:
    """Calico's MakeUniqueID (lib/hash/unique_id.go): `prefix:` and a digest of both, 38 characters."""
    digest = hashlib.sha224(f"{prefix}:{content}".encode()).digest()
    return f"{prefix}:{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"
