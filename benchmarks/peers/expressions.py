"""The catalog's formulas as NumExpr wants them: `where` for conditionals, and no constants of Python's float type."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np


class NotExpressibleError(ValueError):
    """NumExpr lacks a function of the formula."""


def numexpr(formula: str, dtype: str) -> tuple[str, dict[str, Any]]:
    """The expression, and its constants by name.

    A float in an expression of NumExpr's is a float64 and would make the result one; so they become variables.

    Raises
    ------
    NotExpressibleError
        The formula has a function that NumExpr lacks.

    Examples
    --------
    >>> numexpr("x if x > 0 else 0.5 * x", "float32")
    ('where(x > 0, x, c0 * x)', {'c0': np.float32(0.5)})
    """
    rewriter = _Rewriter(dtype)
    tree = rewriter.visit(ast.parse(formula, mode="eval"))
    return ast.unparse(ast.fix_missing_locations(tree)), rewriter.constants


_FUNCTIONS = ("exp", "expm1", "log1p", "tanh", "cosh", "sqrt", "abs")


class _Rewriter(ast.NodeTransformer):
    def __init__(self, dtype: str) -> None:
        self._real = np.dtype(dtype).type
        self.constants: dict[str, Any] = {}

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        return _call("where", *map(self.visit, (node.test, node.body, node.orelse)))

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        operands = [self.visit(operand) for operand in (node.left, *node.comparators)]
        pairs = zip(operands, node.ops, operands[1:], strict=False)
        first, *others = (ast.Compare(left, [op], [right]) for left, op, right in pairs)
        for other in others:
            first = ast.BinOp(first, ast.BitAnd(), other)
        return first

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        operator = ast.BitOr() if isinstance(node.op, ast.Or) else ast.BitAnd()
        first, *others = map(self.visit, node.values)
        for other in others:
            first = ast.BinOp(first, operator, other)
        return first

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return self._constant(node.value) if isinstance(node.value, float) else node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self._constant(np.pi) if node.id == "pi" else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.id if isinstance(node.func, ast.Name) else "?"
        arguments = [self.visit(argument) for argument in node.args]
        if name == "sech":
            return ast.BinOp(ast.Constant(1), ast.Div(), _call("cosh", *arguments))
        if name not in _FUNCTIONS:
            raise NotExpressibleError(f"NumExpr has no {name}")
        return _call(name, *arguments)

    def _constant(self, value: float) -> ast.Name:
        name = f"c{len(self.constants)}"
        self.constants[name] = self._real(value)
        return ast.Name(name, ast.Load())


def _call(name: str, *arguments: Any) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])
