"""History: the rows of what each phase of each epoch measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, overload

from .notebook import cell, table, text_table

_MOST_ROWS = 20  # in the text of a history: the first and the last of them

if TYPE_CHECKING:

    class Row(dict[str, Any]):
        """A row of history, a plain dict: what a phase measured, by name, beside epoch, train and time_s.

        For mypy, a copy with more in it is `row | {"name": value}`; of `{**row}` it cannot infer the type.
        """

        @overload
        def __getitem__(self, name: Literal["epoch"], /) -> int: ...
        @overload
        def __getitem__(self, name: Literal["train"], /) -> str: ...
        @overload
        def __getitem__(self, name: Literal["loss", "time_s"], /) -> float: ...
        @overload
        def __getitem__(self, name: str, /) -> Any: ...
        def __getitem__(self, name: str, /) -> Any: ...

else:
    Row = dict  # only type checkers know what is under which name


class History(list[dict[str, Any]]):
    """The rows of `learn.history`, a list of dicts that shows itself, and slices of itself, as a table."""

    __slots__ = ()

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[Row]: ...

    @overload
    def __getitem__(self, i: SupportsIndex, /) -> Row: ...

    @overload
    def __getitem__(self, i: slice, /) -> History: ...

    def __getitem__(self, i: Any, /) -> Any:
        found = super().__getitem__(i)
        return History(found) if isinstance(i, slice) else found

    def __repr__(self) -> str:
        try:
            return self._text()
        except Exception:  # rows of a user's own
            return f"History of {len(self)} rows"

    def _text(self) -> str:
        if not self:
            return "History: no row yet"
        n_left = max(0, len(self) - _MOST_ROWS)
        rows = self if not n_left else [*self[: _MOST_ROWS // 2], *self[-_MOST_ROWS // 2 :]]
        names = list(dict.fromkeys(name for row in rows for name in row))
        lines = [[cell(name, row[name]) if name in row else "" for name in names] for row in rows]
        head, *texts = text_table([str(name) for name in names], lines).splitlines()
        if n_left:
            texts.insert(_MOST_ROWS // 2, f"... {n_left} more rows")
        return "\n".join([head, *texts])

    def _repr_html_(self) -> str:
        try:
            return table(self) if self else "<p>no row yet</p>"
        except Exception:
            return f"<p>History of {len(self)} rows</p>"
