"""Text to Selector: Calico's grammar (selector/parser/parser.go), without recursion.

    selector := "" | or                      an empty text means all()
    or       := and  ( "||" and )*
    and      := term ( "&&" term )*
    term     := "!"* ( "all()" | "global()" | "has(" LABEL ")" | "(" or ")" | LABEL test )
    test     := ( "==" | "!=" | "contains" | "starts with" | "ends with" ) STRING
              | ( "in" | "not in" ) "{" [ STRING ( "," STRING )* [ "," ] ] "}"

Pairs of "!" in a row cancel and redundant parentheses vanish, nothing else is simplified: the canonical
text, and with it the id, must come out as Calico's. Open parentheses wait on a list instead of the stack,
so time and memory grow with the length of the text alone, whatever it nests.
"""

from tortie.datastore.selector import ast
from tortie.datastore.selector.errors import SelectorError
from tortie.datastore.selector.selector import Selector
from tortie.datastore.selector.tokenizer import Kind, Token, tokenize

_VALUE_TESTS: dict[Kind, type[ast.ValueTest]] = {  # operator -> its node
    Kind.EQUALS: ast.Equals,
    Kind.NOT_EQUALS: ast.NotEquals,
    Kind.CONTAINS: ast.Contains,
    Kind.STARTS_WITH: ast.StartsWith,
    Kind.ENDS_WITH: ast.EndsWith,
}
_SET_TESTS: dict[Kind, type[ast.SetTest]] = {Kind.IN: ast.In, Kind.NOT_IN: ast.NotIn}


def parse(text: str) -> Selector:
    """The selector that `text` says. Raises SelectorError and nothing else, for any string."""
    try:
        text.encode()
    except UnicodeEncodeError as err:  # half of a surrogate pair: it has no bytes, so the id has none
        raise SelectorError("not valid Unicode", err.start, text) from err
    root = _Parser(text).selector()
    if max(level for _node, level in ast.walk(root)) > ast.MAX_DEPTH:
        raise SelectorError(f"nested more than {ast.MAX_DEPTH} levels deep", 0, text)
    return Selector(root)


def normalise(text: str) -> str:
    """The canonical form of `text`, or `text` without surrounding blanks if it is no selector."""
    try:
        return parse(text.strip()).canonical
    except SelectorError:
        return text.strip()


class _Group:
    """What has been read of one pair of parentheses, or of the whole."""

    def __init__(self) -> None:
        self._alternatives: list[list[ast.Node]] = [[]]  # operands of "||", each a list of those of "&&"

    def add(self, node: ast.Node, negated: bool) -> None:
        self._alternatives[-1].append(ast.Not(node) if negated else node)

    def start_alternative(self) -> None:
        self._alternatives.append([])

    def node(self) -> ast.Node:
        ands = [parts[0] if len(parts) == 1 else ast.And(tuple(parts)) for parts in self._alternatives]
        return ands[0] if len(ands) == 1 else ast.Or(tuple(ands))


class _Parser:
    """The tokens of one text and how far they have been read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = tokenize(text)
        self._index = 0

    def selector(self) -> ast.Node:
        if self._peek().kind is Kind.END:
            return ast.All()
        root = self._expression()
        if self._peek().kind is not Kind.END:
            raise self._error(f"unexpected content at end of selector {self._peek()}")
        return root

    def _expression(self) -> ast.Node:
        group, negated = _Group(), False
        enclosing: list[tuple[_Group, bool]] = []  # outermost first, with whether "!" stood before the "("
        while True:
            negated = self._negated()
            if self._accept(Kind.LPAREN):
                enclosing.append((group, negated))
                group = _Group()
                continue
            group.add(self._operand(), negated)
            while enclosing and self._accept(Kind.RPAREN):
                inner = group.node()
                group, negated = enclosing.pop()
                group.add(inner, negated)
            if self._accept(Kind.OR):
                group.start_alternative()
            elif not self._accept(Kind.AND):
                break
        if enclosing:
            raise self._error("expected )")
        return group.node()

    def _negated(self) -> bool:
        negated = False
        while self._accept(Kind.NOT):
            negated = not negated
        return negated

    def _operand(self) -> ast.Node:
        token = self._peek()
        match token.kind:
            case Kind.ALL:
                node: ast.Node = ast.All()
            case Kind.GLOBAL:
                node = ast.Global()
            case Kind.HAS:
                node = ast.Has(token.value)
            case Kind.LABEL:
                self._index += 1
                return self._test(token.value)
            case _:
                raise self._error(f"unexpected token: {token}")
        self._index += 1
        return node

    def _test(self, label: str) -> ast.Node:
        operator = self._peek()
        if operator.kind is Kind.END:
            raise self._error("unexpected end of string looking for op")
        self._index += 1
        if value_test := _VALUE_TESTS.get(operator.kind):
            return value_test(label, self._expect(Kind.STRING, "expected string").value)
        if set_test := _SET_TESTS.get(operator.kind):
            return set_test(label, self._set())
        self._index -= 1  # the operator itself is what is wrong
        raise self._error(f"expected == or != not: {operator}")

    def _set(self) -> frozenset[str]:
        """May be empty, and may end with a comma unless it is."""
        self._expect(Kind.LBRACE, "expected set literal")
        values = set()
        while self._peek().kind is Kind.STRING:
            values.add(self._expect(Kind.STRING, "").value)
            if not self._accept(Kind.COMMA):
                break
        self._expect(Kind.RBRACE, "expected }")
        return frozenset(values)

    def _peek(self) -> Token:
        return self._tokens[self._index]

    def _accept(self, kind: Kind) -> bool:
        """Read one token if it is of this kind."""
        found = self._tokens[self._index].kind is kind
        self._index += found
        return found

    def _expect(self, kind: Kind, reason: str) -> Token:
        token = self._tokens[self._index]
        if not self._accept(kind):
            raise self._error(reason)
        return token

    def _error(self, reason: str) -> SelectorError:
        return SelectorError(reason, self._peek().position, self._text)
