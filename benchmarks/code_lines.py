"""Lines of code in Python source, without blank lines, comments and docstrings."""

import ast
import io
import tokenize
from collections.abc import Iterator

NOT_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER
}  # fmt: skip


def code_lines(source: str) -> int:
    """The number of lines on which a token of code stands. Every line of a longer string counts."""
    documented = [(node.lineno, node.end_lineno or node.lineno) for node in docstrings(ast.parse(source))]
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        first, last = token.start[0], token.end[0]
        documents = token.type == tokenize.STRING and any(low <= first and last <= high for low, high in documented)
        if token.type not in NOT_CODE and not documents:
            lines.update(range(first, last + 1))
    return len(lines)


def docstrings(tree: ast.Module) -> Iterator[ast.stmt]:
    """The docstrings of the module and of its classes and functions."""
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if documented and ast.get_docstring(node, clean=False) is not None:
            yield node.body[0]
