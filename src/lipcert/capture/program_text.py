"""Texts of an exported program that PyTorch evaluates as Python: sizes, guards, trees of inputs and outputs."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

#: What expressions of sizes are made of (sympy, and ``torch.utils._sympy.functions``).
_CALLS = frozenset(
    "Symbol Integer Float Rational Add Mul Pow Max Min Mod Eq Equality Ne Unequality Lt StrictLessThan Le LessThan Gt "  # noqa: SIM905
    "StrictGreaterThan Ge GreaterThan And Or Not Piecewise ExprCondPair Abs floor ceiling FloorDiv ModularIndexing "
    "Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv PowByNatural FloatPow FloatTrueDiv IntTrueDiv TruncToFloat "
    "TruncToInt RoundToInt RoundDecimal ToFloat Identity IsNonOverlappingAndDenseIndicator".split()
)
_GUARD_CALLS = frozenset(("max", "min", "abs", "int", "float", "bool", "cast_symbool_to_symint_guardless"))
_POWERS = frozenset(("Pow", "PowByNatural", "FloatPow"))
_SYMBOL, _WORD = re.compile(r"[a-z]{1,6}\d{1,9}"), re.compile(r"[A-Za-z_]\w{0,80}")
_VALUES = frozenset(("true", "false", "oo", "int_oo", "zoo"))
_SIZES = frozenset(("size", "stride", "storage_offset", "shape", "dim", "numel"))
_MATH = frozenset(("isnan", "inf", "floor", "ceil", "trunc", "sqrt", "pow"))
_KEY = re.compile(r"[^'\"\\\n\r(){}\[\]]{0,200}")
_OPERATIONS = (
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.USub, ast.UAdd, ast.Not, ast.Invert,
    ast.And, ast.Or, ast.BitAnd, ast.BitOr, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Load, ast.Is,
    ast.IsNot,
)  # fmt: skip
#: Powers in one text, and the largest exponent: more of them are a number that fills any memory.
_MOST_POWERS, _EXPONENT = 4, 64


def require_expression(text: str) -> bool:
    """Whether a text is an expression of sizes and nothing else."""
    return _made_of(text, guard=False)


def require_guard(text: str) -> bool:
    """Whether a text is a condition on the sizes and values of the inputs and nothing else."""
    return _made_of(text, guard=True)


def _made_of(text: str, guard: bool) -> bool:
    if len(text) > 10_000:
        return False
    try:
        tree = ast.parse(text, mode="eval")
        nodes = list(ast.walk(tree))
        return sum(map(_is_power, nodes)) <= _MOST_POWERS and all(_is_plain(node, guard) for node in nodes)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_plain(node: ast.AST, guard: bool) -> bool:
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return bool(_KEY.fullmatch(node.value) if guard else _WORD.fullmatch(node.value))
        return node.value is None or (isinstance(node.value, (int, float)) and abs(node.value) < 1 << 64)
    if isinstance(node, ast.Name):
        named = node.id in _CALLS or node.id in _VALUES or bool(_SYMBOL.fullmatch(node.id))
        return named or (guard and (node.id in ("L", "args", "math", "inf") or node.id in _GUARD_CALLS))
    if isinstance(node, ast.Attribute):
        of_math = isinstance(node.value, ast.Name) and node.value.id == "math"
        return guard and node.attr in (_MATH if of_math else _SIZES)
    if isinstance(node, ast.Call):
        return _is_plain_call(node, guard)
    if isinstance(node, ast.BinOp):
        return not isinstance(node.op, ast.Pow) or _small(node.right)
    if isinstance(node, (ast.Subscript, ast.Slice)):
        return guard
    return isinstance(
        node, (ast.Expression, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.keyword, ast.Tuple, *_OPERATIONS)
    )  # fmt: skip


def _is_plain_call(node: ast.Call, guard: bool) -> bool:
    called = node.func
    texts = [one for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    if isinstance(called, ast.Attribute):
        return guard and not texts
    if not isinstance(called, ast.Name) or (texts and called.id != "Symbol"):
        return False
    if called.id not in _CALLS and not (guard and called.id in _GUARD_CALLS):
        return False
    if called.id in _POWERS:
        return len(node.args) == 2 and _small(node.args[1])
    return not any(isinstance(one, ast.Starred) for one in node.args) and all(one.arg for one in node.keywords)


def _is_power(node: ast.AST) -> bool:
    called = node.func if isinstance(node, ast.Call) else None
    return (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)) or (
        isinstance(called, ast.Name) and called.id in _POWERS
    )


def _small(node: ast.AST) -> bool:
    """Whether this is a number that is a harmless exponent."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Integer" and node.args:
        node = node.args[0]
    if isinstance(node, ast.UnaryOp):
        node = node.operand
    value = node.value if isinstance(node, ast.Constant) else None
    return isinstance(value, (int, float)) and abs(value) <= _EXPONENT


def require_tree(text: str) -> bool:
    """Whether a text is a tree of plain containers; PyTorch imports the module of a default factory or an enum."""
    try:
        return _is_tree(json.loads(text), 0)
    except (ValueError, RecursionError):
        return False


def _is_tree(value: Any, depth: int) -> bool:
    if depth > 100:
        return False
    if isinstance(value, dict):
        if "__enum__" in value or value.get("type") == "collections.defaultdict":
            return False
        context = value.get("context")
        if isinstance(context, str):
            try:
                if not _is_tree(json.loads(context), depth + 1):
                    return False
            except ValueError:
                if not _KEY.fullmatch(context):
                    return False
        return all(
            bool(_KEY.fullmatch(key)) and (key == "context" or _is_tree(one, depth + 1)) for key, one in value.items()
        )
    if isinstance(value, list):
        return all(_is_tree(one, depth + 1) for one in value)
    return not isinstance(value, str) or bool(_KEY.fullmatch(value))
