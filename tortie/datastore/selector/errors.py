"""What is raised for text that is not a selector."""

from tortie.core.errors import TortieError

_NEAR = 20  # characters shown from the wrong place on: enough to find it again in the text
_SHOWN = 200  # characters of the text kept in a message; longer than almost every real selector


class SelectorError(TortieError):
    """Text that is not a selector: what is wrong, where, and in which text.

    `reason` is in Calico's wording (libcalico-go/lib/selector), `position` counts characters from 0,
    `text` is the whole offending text, as hostile as it came. Only the message is safe to print: it is
    bounded and holds no control characters.
    """

    def __init__(self, reason: str, position: int, text: str) -> None:
        near = _quote(text[position:], _NEAR) if position < len(text) else "the end"
        super().__init__(f"{reason} at character {position + 1} ({near}) of selector {_quote(text, _SHOWN)}")
        self.reason, self.position, self.text = reason, position, text


def _quote(text: str, limit: int) -> str:
    return repr(text[:limit] + "…" if len(text) > limit else text)
