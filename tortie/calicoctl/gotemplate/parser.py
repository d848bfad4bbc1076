"""A Go template's tokens into its tree: text/template's grammar."""

import ast
from dataclasses import replace

from tortie.calicoctl.gotemplate import nodes
from tortie.calicoctl.gotemplate.lexer import SyntaxProblem, Token, tokens
from tortie.calicoctl.gotemplate.nodes import Node

Templates = dict[str, tuple[Node, ...]]  # name -> its tree; "get" is the template itself

_ARGUMENTS = {"string", "raw", "char", "number", "field", "variable", "word"}
_MAX_DEPTH = 50  # nested blocks and parentheses; a template is written by hand


def parse(source: str, functions: frozenset[str]) -> Templates:
    """Raises SyntaxProblem."""
    return _Parser(source, functions).templates()


class _Parser:
    def __init__(self, source: str, functions: frozenset[str]) -> None:
        self._source = source
        self._functions = functions
        self._tokens = list(tokens(source))
        self._index = 0
        self._variables = ["$"]
        self._loops = 0
        self._depth = 0
        self._templates: Templates = {}

    def templates(self) -> Templates:
        self._templates["get"], _ = self._block(("end of template",))
        return self._templates

    # --- tokens -----------------------------------------------------------------------------------

    def _fail(self, token: Token, reason: str) -> SyntaxProblem:
        return SyntaxProblem(self._source, token.at, reason)

    def _peek(self) -> Token:
        return self._tokens[self._index]

    def _take(self) -> Token:
        self._index += 1
        return self._tokens[self._index - 1]

    def _skip_spaces(self) -> Token:
        while self._peek().kind == "space":
            self._index += 1
        return self._peek()

    def _close(self, where: str) -> None:
        token = self._skip_spaces()
        if token.kind != "close":
            raise self._fail(token, f"unexpected {_named(token)} in {where}")
        self._index += 1

    # --- blocks -----------------------------------------------------------------------------------

    def _block(self, endings: tuple[str, ...]) -> tuple[tuple[Node, ...], str]:
        """Nodes up to one of the endings, and which it was."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._fail(self._peek(), "template is nested too deeply")
        body: list[Node] = []
        while True:
            token = self._take()
            if token.kind == "text":
                body.append(nodes.Text(token.at, token.text))
            elif token.kind == "end":
                if "end of template" not in endings:
                    raise self._fail(token, "unexpected EOF")
                ending = "end of template"
                break
            else:
                word = self._skip_spaces()
                if word.kind == "keyword" and word.text in ("end", "else"):
                    if word.text not in endings:
                        raise self._fail(word, f"unexpected {{{{{word.text}}}}}")
                    self._index += 1
                    ending = word.text
                    break
                if (node := self._action(word)) is not None:
                    body.append(node)
        self._depth -= 1
        return tuple(body), ending

    def _action(self, word: Token) -> Node | None:
        if word.kind != "keyword" or word.text == "nil":
            return nodes.Action(word.at, self._pipeline("command"))
        self._index += 1
        match word.text:
            case "if" | "with" | "range":
                return self._branch(word)
            case "break" | "continue":
                if not self._loops:
                    raise self._fail(word, f"{{{{{word.text}}}}} outside {{{{range}}}}")
                self._close(f"{{{{{word.text}}}}}")
                return nodes.Jump(word.at, word.text)
            case "template" | "block":
                return self._include(word)
        self._define(word)
        return None

    def _branch(self, word: Token) -> Node:
        """The part of {{if}}, {{with}}, {{range}} after that word, up to its {{end}}."""
        known = len(self._variables)
        pipe = self._pipeline(word.text)
        self._loops += word.text == "range"
        body, ending = self._block(("end", "else"))
        self._loops -= word.text == "range"
        otherwise: tuple[Node, ...] = ()
        if ending == "else":
            again = self._skip_spaces()
            if again.kind == "keyword" and again.text == word.text and word.text != "range":
                self._index += 1
                otherwise = (self._branch(again),)  # its {{end}} is ours
                del self._variables[known:]
                return nodes.Branch(word.at, word.text, pipe, body, otherwise)
            self._close("else")
            otherwise, _ = self._block(("end",))
        self._close("end")
        del self._variables[known:]
        return nodes.Branch(word.at, word.text, pipe, body, otherwise)

    def _include(self, word: Token) -> Node:
        at = self._skip_spaces().at
        name = self._name(word)
        if word.text == "template":
            if self._skip_spaces().kind != "close":
                return nodes.Include(at, name, self._pipeline("template clause"))
            self._close("template clause")
            return nodes.Include(at, name, None)
        pipe = self._pipeline("block clause")
        self._templates[name] = self._separate_body()
        return nodes.Include(at, name, pipe)

    def _define(self, word: Token) -> None:
        name = self._name(word)
        self._close("define clause")
        self._templates[name] = self._separate_body()

    def _separate_body(self) -> tuple[Node, ...]:
        """A template within the text: it sees none of the variables around it."""
        outer, self._variables = self._variables, ["$"]
        loops, self._loops = self._loops, 0
        body, _ = self._block(("end",))
        self._close("end")
        self._variables, self._loops = outer, loops
        return body

    def _name(self, word: Token) -> str:
        token = self._skip_spaces()
        if token.kind not in ("string", "raw"):
            raise self._fail(token, f"unexpected {_named(token)} in {word.text} clause")
        self._index += 1
        return str(self._literal(token).value)

    # --- pipelines --------------------------------------------------------------------------------

    def _pipeline(self, where: str, closing: str = "close") -> nodes.Pipe:
        start = self._skip_spaces()
        variables, assigns = self._declaration(where)
        commands: list[nodes.Command] = []
        while True:
            token = self._skip_spaces()
            if token.kind == closing or (closing == ")" and token.text == ")"):
                self._index += 1
                break
            if token.kind not in _ARGUMENTS and token.text not in ("(", ".", "nil"):
                raise self._fail(token, f"unexpected {_named(token)} in {where}")
            commands.append(self._command(where))
        self._check(start, where, commands)
        if variables and not assigns:
            self._variables += variables
        return nodes.Pipe(start.at, tuple(commands), tuple(variables), assigns)

    def _check(self, start: Token, where: str, commands: list[nodes.Command]) -> None:
        if not commands:
            raise self._fail(start, f"missing value for {where}")
        for number, command in enumerate(commands):
            first = command.arguments[0]
            if number and isinstance(first, (nodes.Literal, nodes.Dot)):
                raise self._fail(start, f"non executable command in pipeline stage {number + 1}")

    def _declaration(self, where: str) -> tuple[list[str], bool]:
        """`$x :=`, `$x =` or, for range, `$i, $x :=`; nothing is taken if the pipeline has none."""
        begin, names = self._index, []
        while self._skip_spaces().kind == "variable":
            token = self._take()
            sign = self._skip_spaces()
            names.append(token.text)
            if sign.text in (":=", "="):
                self._index += 1
                if sign.text == "=" and token.text not in self._variables:
                    raise self._fail(token, f'undefined variable "{token.text}"')
                return names, sign.text == "="
            if sign.text != "," or where != "range" or len(names) > 1:
                break
            self._index += 1
        self._index = begin
        return [], False

    def _command(self, where: str) -> nodes.Command:
        start = self._peek()
        arguments: list[Node] = []
        while True:
            arguments.append(self._operand(where))
            token = self._peek()
            if token.kind == "space":
                after = self._skip_spaces()
                if after.kind in _ARGUMENTS or after.text in ("(", ".", "nil"):
                    continue
                token = after
            if token.text == "|":
                self._index += 1
                token = self._skip_spaces()
                if token.kind == "close" or token.text == ")":
                    raise self._fail(token, f"missing value for {where}")
                break
            if token.kind == "close" or token.text == ")":
                break
            raise self._fail(token, f"unexpected {_named(token)} in operand")
        return nodes.Command(start.at, tuple(arguments))

    def _operand(self, where: str) -> Node:
        token = self._take()
        node: Node
        if token.text == "(":
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise self._fail(token, "template is nested too deeply")
            node = self._pipeline("parenthesized pipeline", ")")
            self._depth -= 1
        else:
            node = self._term(token, where)
        first = self._peek()
        names = []
        while self._peek().kind == "field":
            names.append(self._take().text[1:])
        if not names:
            return node
        match node:
            case nodes.Field() | nodes.Variable():
                return replace(node, at=first.at, names=(*node.names, *names))
            case nodes.Pipe():
                return nodes.Chain(first.at, node, tuple(names))
            case nodes.Function():
                call = nodes.Pipe(node.at, (nodes.Command(node.at, (node,)),))
                return nodes.Chain(first.at, call, tuple(names))
        raise self._fail(first, f"unexpected . after term {nodes.source(node)!r}".replace("'", '"'))

    def _term(self, token: Token, where: str) -> Node:
        match token.kind:
            case "field":
                return nodes.Field(token.at, (token.text[1:],))
            case "variable":
                if token.text not in self._variables:
                    raise self._fail(token, f'undefined variable "{token.text}"')
                return nodes.Variable(token.at, token.text)
            case "string" | "raw" | "char" | "number":
                return self._literal(token)
            case "word" if token.text in ("true", "false"):
                return nodes.Literal(token.at, token.text == "true", token.text)
            case "word":
                if token.text not in self._functions:
                    raise self._fail(token, f'function "{token.text}" not defined')
                return nodes.Function(token.at, token.text)
        if token.text == ".":
            return nodes.Dot(token.at)
        if token.text == "nil":
            return nodes.Nil(token.at)
        raise self._fail(token, f"unexpected {_named(token)} in {where}")

    def _literal(self, token: Token) -> nodes.Literal:
        try:
            if token.kind == "raw":
                return nodes.Literal(token.at, token.text[1:-1], token.text)
            if token.kind == "number":
                return nodes.Literal(token.at, _number(token.text), token.text)
            value = ast.literal_eval(token.text)  # Go's escapes are a subset of Python's
        except (ValueError, SyntaxError):
            raise self._fail(token, f"bad syntax: {token.text}") from None
        return nodes.Literal(token.at, ord(value) if token.kind == "char" else value, token.text)


def _number(text: str) -> int | float:
    plain = text.replace("_", "")
    unsigned = plain.lstrip("+-").lower()
    if len(unsigned) > 1 and unsigned[0] == "0" and unsigned.isdigit():
        return int(plain, 8)
    if unsigned.startswith(("0x", "0b", "0o")) or not any(c in unsigned for c in ".e"):
        return int(plain, 0)
    return float(plain)


def _named(token: Token) -> str:
    return {"end": "EOF", "close": '"}}"'}.get(
        token.kind, f"<{token.text}>" if token.kind == "keyword" else f'"{token.text}"'
    )
