"""Find where a file of Python can be changed in one place, by its syntax tree: a comparison, a constant, ...

Docstrings, annotations, imports, and the messages of errors and warnings are left as they are.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In},
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult},
    **{ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult},
}
CALLS = {"any": "all", "all": "any", "min": "max", "max": "min"}
MESSAGES = ("warn", "add_note")  # what calls of these names say is a message


@dataclass(frozen=True)
class Edit:
    """Hold one change of a file: `text` replaces what is at (line, column) to (end_line, end_column)."""

    kind: str
    line: int  # from 1
    column: int  # in bytes, as in the tree
    end_line: int
    end_column: int
    text: str

    def apply(self, source: str) -> str:
        """Return the file with this change."""
        lines = source.encode().splitlines(keepends=True)
        before = b"".join(lines[: self.line - 1]) + lines[self.line - 1][: self.column]
        after = lines[self.end_line - 1][self.end_column :] + b"".join(lines[self.end_line :])
        return (before + self.text.encode() + after).decode()


def edits_of(source: str) -> list[Edit]:
    """Return each change that a file can have, in the order of its lines."""
    found = _in_body(ast.parse(source).body)
    return sorted(set(found), key=lambda edit: (edit.line, edit.column, edit.kind, edit.text))


def _edit(kind: str, node: ast.expr | ast.stmt, text: str) -> Edit:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return Edit(kind, node.lineno, node.col_offset, node.end_lineno, node.end_col_offset, text)


def _in_body(body: Sequence[ast.stmt]) -> Iterator[Edit]:
    for statement in body:
        yield from _of_statement(statement)


def _of_statement(node: ast.stmt) -> Iterator[Edit]:
    """Yield the changes of a statement and of everything in it."""
    if isinstance(node, ast.Import | ast.ImportFrom) or _is_docstring(node) or _is_for_types(node):
        return
    if _can_be_dropped(node):
        yield _edit("drop a statement", node, "pass")
    if isinstance(node, ast.Raise):
        return  # what is in it is a message
    if isinstance(node, ast.Return) and not (node.value is None or _is_none(node.value)):
        yield _edit("return None", node, "return None")
    if isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
        other = copy.copy(node)
        other.op = OPERATORS[type(node.op)]()
        yield _edit("another operator", node, ast.unparse(other))
    if isinstance(node, ast.If | ast.While):
        yield from _negated(node.test)
    for child in ast.iter_child_nodes(node):
        if child in _not_run(node):
            continue
        if isinstance(child, ast.stmt):
            yield from _of_statement(child)
        else:
            yield from _of_part(child)


def _of_part(node: ast.AST) -> Iterator[Edit]:
    """Yield the changes of an expression, or of a part of a statement, and of everything in it."""
    if isinstance(node, ast.JoinedStr | ast.arg) or _is_message(node):
        return
    if isinstance(node, ast.expr):
        yield from _of_expression(node)
    if isinstance(node, ast.comprehension):
        for condition in node.ifs:
            yield from _negated(condition)
    if isinstance(node, ast.IfExp):
        yield from _negated(node.test)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield from _of_statement(child)
        else:
            yield from _of_part(child)


def _of_expression(node: ast.expr) -> Iterator[Edit]:
    other: ast.expr = copy.copy(node)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        assert isinstance(other, ast.Compare)
        other.ops = [COMPARISONS[type(node.ops[0])]()]
        yield _edit("another comparison", node, ast.unparse(other))
    elif isinstance(node, ast.BoolOp):
        assert isinstance(other, ast.BoolOp)
        other.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        yield _edit("and / or", node, f"({ast.unparse(other)})")
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield _edit("no not", node, f"({ast.unparse(node.operand)})")
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        assert isinstance(other, ast.BinOp)
        other.op = OPERATORS[type(node.op)]()
        yield _edit("another operator", node, f"({ast.unparse(other)})")
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        value = not node.value if isinstance(node.value, bool) else node.value + 1
        yield _edit("another constant", node, repr(value))
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
        yield _edit("another call", node.func, CALLS[node.func.id])


def _negated(test: ast.expr) -> Iterator[Edit]:
    if not isinstance(test, ast.Constant | ast.Compare):  # another comparison is the same change
        yield _edit("a condition negated", test, f"(not ({ast.unparse(test)}))")


# What is left as it is ----------------------------------------------------------------------------


def _not_run(node: ast.stmt) -> list[ast.AST]:
    """Return the parts of a statement that only readers and type checkers read."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return [*node.decorator_list, *([node.returns] if node.returns else [])]
        case ast.ClassDef():
            return [*node.decorator_list, *node.bases, *node.keywords]
        case ast.AnnAssign():
            return [node.annotation]
        case ast.Assert():
            return [node.msg] if node.msg else []
    return []


def _can_be_dropped(node: ast.stmt) -> bool:
    """Whether dropping it leaves names that are read later: a call, a cancel, an assignment to an object."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call) and not _is_message(node.value)
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets)
    return isinstance(node, ast.AugAssign | ast.Raise | ast.Break | ast.Continue | ast.Delete)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_message(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in MESSAGES or name.endswith(("Error", "Warning", "Exception"))
