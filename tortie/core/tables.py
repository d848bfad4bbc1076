"""The two table styles of Calico's tools, byte for byte."""

from collections.abc import Collection, Sequence


def boxed(heading: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """`+---+` boxes with a rule under the heading, as `node status` and `ipam show` print them.

    Cells are left-aligned with one space of padding, columns in `right` are right-aligned. Ends with a
    newline. Headings are upper-cased, as Calico's table library does.
    """
    lines = [[cell.upper() for cell in heading], *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading))]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"

    def row(cells: Sequence[str], body: bool) -> str:
        parts = [
            cell.rjust(width) if body and column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(parts) + " |"

    body = [row(cells, True) for cells in rows]
    return "\n".join([rule, row(lines[0], False), rule, *body, rule]) + "\n"


def tabbed(rows: Sequence[Sequence[str]], minimum: int = 5, padding: int = 3) -> str:
    """Go's tabwriter with every cell tab-terminated, as `calicoctl get` prints it.

    Each column is as wide as its widest cell plus `padding`, at least `minimum`; also the last column
    is padded, so lines carry trailing spaces. Ends with a newline.
    """
    if not rows:
        return ""
    columns = len(rows[0])
    widths = [max(minimum, max(len(row[c]) for row in rows) + padding) for c in range(columns)]
    return "".join("".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + "\n" for row in rows)
