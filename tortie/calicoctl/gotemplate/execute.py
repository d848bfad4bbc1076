"""Runs a template's tree over a value: text/template's rules of evaluation."""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from tortie.calicoctl.errors import CommandError
from tortie.calicoctl.gotemplate import nodes
from tortie.calicoctl.gotemplate.functions import CallProblem, Function
from tortie.calicoctl.gotemplate.nodes import Node, source
from tortie.calicoctl.gotemplate.parser import Templates
from tortie.calicoctl.gotemplate.values import NO_VALUE, NoField, field, is_true, text_of, type_name

_MAX_INCLUDES = 100  # templates within templates; one that includes itself for ever must end
_MISSING = object()  # the first command of a pipeline is given nothing
SHORT_CIRCUIT = ("and", "or")


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class Run:
    """One execution; what it has printed so far is in `parts`."""

    def __init__(self, text: str, templates: Templates, functions: dict[str, Function]) -> None:
        self._text = text
        self._templates = templates
        self._functions = functions
        self._scopes: list[tuple[str, Any]] = []  # variables in the order of their declaration
        self._includes = 0
        self._name = "get"
        self.parts: list[str] = []

    def run(self, data: Any) -> None:
        """Raises CommandError with Go's wording."""
        self._scopes = [("$", data)]
        self._body(self._templates["get"], data)

    def _fail(self, node: Node, reason: str) -> CommandError:
        line = self._text.count("\n", 0, node.at) + 1
        column = node.at - (self._text.rfind("\n", 0, node.at) + 1)
        shown = source(node)
        return CommandError(f'template: get:{line}:{column}: executing "{self._name}" at <{shown}>: {reason}')

    # --- statements -------------------------------------------------------------------------------

    def _body(self, body: Iterable[Node], dot: Any) -> None:
        for node in body:
            match node:
                case nodes.Text():
                    self.parts.append(node.text)
                case nodes.Action():
                    value = self._pipe(node.pipe, dot)
                    if not node.pipe.variables:
                        self.parts.append(text_of(value))
                case nodes.Branch(keyword="range"):
                    self._range(node, dot)
                case nodes.Branch():
                    self._branch(node, dot)
                case nodes.Include():
                    self._include(node, dot)
                case nodes.Jump():
                    raise _Break if node.keyword == "break" else _Continue

    def _branch(self, node: nodes.Branch, dot: Any) -> None:
        known = len(self._scopes)
        value = self._pipe(node.pipe, dot)
        if is_true(value):
            self._body(node.body, value if node.keyword == "with" else dot)
        else:
            self._body(node.otherwise, dot)
        del self._scopes[known:]

    def _range(self, node: nodes.Branch, dot: Any) -> None:
        known = len(self._scopes)
        value = self._pipe(node.pipe, dot)
        pairs = self._pairs(node.pipe, value)
        inner = len(self._scopes)
        try:
            for index, item in pairs:
                self._set_loop_variables(node.pipe, index, item)
                try:
                    self._body(node.body, item)
                except _Continue:
                    pass
                finally:
                    del self._scopes[inner:]
        except _Break:
            pass
        if not pairs:
            self._body(node.otherwise, dot)
        del self._scopes[known:]

    def _pairs(self, pipe: nodes.Pipe, value: Any) -> Sequence[tuple[Any, Any]]:
        if isinstance(value, dict):
            return [(key, value[key]) for key in sorted(value)]
        if isinstance(value, list | tuple):
            return list(enumerate(value))
        if isinstance(value, int) and not isinstance(value, bool):
            if len(pipe.variables) > 1:
                raise self._fail(pipe, "can't use int to iterate over with more than one variable")
            return [(number, number) for number in range(value)]
        if value is None or value is NO_VALUE:
            return []
        raise self._fail(pipe, f"range can't iterate over {text_of(value)}")

    def _set_loop_variables(self, pipe: nodes.Pipe, index: Any, item: Any) -> None:
        values = (item,) if len(pipe.variables) == 1 else (index, item)
        for name, value in zip(pipe.variables, values, strict=False):
            self._assign(name, value, pipe.assigns)

    def _assign(self, name: str, value: Any, existing: bool) -> None:
        if existing:
            for at in range(len(self._scopes) - 1, -1, -1):
                if self._scopes[at][0] == name:
                    self._scopes[at] = (name, value)
                    return
        self._scopes.append((name, value))

    def _include(self, node: nodes.Include, dot: Any) -> None:
        if (body := self._templates.get(node.name)) is None:
            raise self._fail(node, f'template "{node.name}" not defined')
        if self._includes == _MAX_INCLUDES:
            raise self._fail(node, f"exceeded maximum template depth ({_MAX_INCLUDES})")
        value = self._pipe(node.pipe, dot) if node.pipe else NO_VALUE
        outer, name = self._scopes, self._name
        self._scopes, self._name = [("$", value)], node.name
        self._includes += 1
        self._body(body, value)
        self._includes -= 1
        self._scopes, self._name = outer, name

    # --- values -----------------------------------------------------------------------------------

    def _pipe(self, pipe: nodes.Pipe, dot: Any) -> Any:
        value: Any = _MISSING
        for command in pipe.commands:
            value = self._command(command, dot, value)
        if len(pipe.variables) == 1 or pipe.assigns:
            # A range replaces this by its own assignment, item by item.
            self._assign(pipe.variables[0], value, pipe.assigns)
        return value

    def _command(self, command: nodes.Command, dot: Any, final: Any) -> Any:
        first, *rest = command.arguments
        if isinstance(first, nodes.Function):
            return self._call(first, rest, dot, final, command)
        if isinstance(first, nodes.Nil):
            raise self._fail(first, "nil is not a command")
        if rest or final is not _MISSING:
            if isinstance(first, nodes.Field | nodes.Chain | nodes.Variable) and first.names:
                self._value(first, dot)
                raise self._fail(first, f"{first.names[-1]} is not a method but has arguments")
            raise self._fail(first, f"can't give argument to non-function {source(first)}")
        return self._value(first, dot)

    def _value(self, node: Node, dot: Any) -> Any:
        match node:
            case nodes.Dot():
                return dot
            case nodes.Literal():
                return node.value
            case nodes.Nil():
                return None
            case nodes.Field():
                return self._fields(node, dot, node.names)
            case nodes.Variable():
                value = next(value for name, value in reversed(self._scopes) if name == node.name)
                return self._fields(node, value, node.names)
            case nodes.Chain():
                return self._fields(node, self._pipe(node.of, dot), node.names)
            case nodes.Pipe():
                return self._pipe(node, dot)
            case nodes.Function():
                return self._call(node, [], dot, _MISSING, node)
        raise self._fail(node, "can't be evaluated")

    def _fields(self, node: Node, value: Any, names: Iterable[str]) -> Any:
        for name in names:
            try:
                value = field(value, name)
            except NoField as err:
                raise self._fail(node, str(err)) from None
        return value

    def _call(
        self, node: nodes.Function, arguments: Sequence[Node], dot: Any, final: Any, whole: Node
    ) -> Any:
        if node.name in SHORT_CIRCUIT:
            return self._short_circuit(node, arguments, dot, final)
        function = self._functions[node.name]
        given = [self._value(argument, dot) for argument in arguments]
        if final is not _MISSING:
            given.append(final)
        try:
            inspect.signature(function).bind(*given)
        except TypeError:
            wanted = len(inspect.signature(function).parameters)
            raise self._fail(
                node, f"wrong number of args for {node.name}: want {wanted} got {len(given)}"
            ) from None
        try:
            return function(*given)
        except CallProblem as err:
            raise self._fail(whole, f"error calling {node.name}: {err}") from None
        except (TypeError, AttributeError):  # a value of a type that the function is not for
            types = ", ".join(map(type_name, given))
            raise self._fail(whole, f"wrong type for value: {node.name} of {types}") from None

    def _short_circuit(self, node: nodes.Function, arguments: Sequence[Node], dot: Any, final: Any) -> Any:
        """`or` gives its first true argument, `and` its first false one, else the last."""
        value: Any = _MISSING
        for argument in arguments:
            value = self._value(argument, dot)
            if is_true(value) == (node.name == "or"):
                return value
        if final is not _MISSING:
            return final
        if value is _MISSING:
            raise self._fail(node, f"wrong number of args for {node.name}: want at least 1 got 0")
        return value
