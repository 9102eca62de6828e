"""Parses `--where` and `--sort`: fields, values, comparisons, and/or/not/in/is; never SQL.

Python's parser reads the text, in which SQL's spellings are allowed too. Only the few kinds of nodes listed here are
turned into SQLAlchemy expressions, whose values are bound parameters.
"""

import ast
import io
import operator
import tokenize
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeGuard

import sqlalchemy as sa

from hpo.errors import InputError, nearest
from hpo.search.sql.tables import TRIAL_STATES
from hpo.search.sql.views import KINDS, Kind, trial_results


@dataclass(frozen=True)
class Field:
    """A field that can be compared: its kind and its SQL."""

    kind: Kind
    column: sa.ColumnElement[Any]


Fields = Mapping[str, Field]
FIELDS: Fields = {
    name: Field(kind, trial_results.c[name])
    for name, kind in KINDS.items()
    if name not in ("study", "params", "accuracies")
}
MAX_CHARACTERS = 1000
EXAMPLE = "score > 0.6 and number < 100"

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_WORDS = {"and", "or", "not", "in", "is"}
_VALUES = {"null": None, "none": None, "true": True, "false": False}


class _FilterError(ValueError):
    """The message says what is wrong and what is allowed."""


def parse_where(text: str, fields: Fields = FIELDS) -> sa.ColumnElement[bool]:
    """Parses `--where` into a condition on `trial_results`. Raises InputError."""
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"--where: longer than {MAX_CHARACTERS} characters")
    try:
        return _condition(_read(text), fields)
    except _FilterError as error:
        raise InputError(f"--where: {error}") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError):
        raise InputError(f"--where: {_quoted(text)} cannot be read; write for example: {EXAMPLE}") from None


def names_state(text: str) -> bool:
    """Whether a condition that `parse_where` accepts uses the field `state`."""
    return any(isinstance(node, ast.Name) and node.id == "state" for node in ast.walk(_read(text)))


def _read(text: str) -> ast.expr:
    with warnings.catch_warnings(action="ignore"):  # such as `1 is 1`
        return ast.parse(_in_python(text), mode="eval").body


def parse_sort(text: str, fields: Fields = FIELDS) -> tuple[Field, bool]:
    """Parses `field`, `field:asc` or `field:desc` into (field, whether ascending). Raises InputError."""
    name, _, direction = text.partition(":")
    if direction not in ("", "asc", "desc"):
        raise InputError(f"--sort: {_quoted(direction)} is no direction; allowed: asc, desc")
    if name not in fields:
        raise InputError(f"--sort: {_unknown(name, fields)}")
    return fields[name], direction == "asc"


def _in_python(text: str) -> str:
    """Replaces SQL's spellings (=, <>, AND, NULL) with Python's."""
    tokens: list[tuple[int, str]] = []
    for kind, word, *_ in tokenize.generate_tokens(io.StringIO(" ".join(text.split("\n"))).readline):
        if word == ">" and tokens[-1:] == [(tokenize.OP, "<")]:
            tokens[-1] = (kind, "!=")
        elif word == "=":
            tokens.append((kind, "=="))
        elif kind == tokenize.NAME and word.lower() in _WORDS:
            tokens.append((kind, word.lower()))
        elif kind == tokenize.NAME and word.lower() in _VALUES:
            tokens.append((kind, str(_VALUES[word.lower()])))
        else:
            tokens.append((kind, word))
    return tokenize.untokenize(tokens).strip()


def _condition(node: ast.expr, fields: Fields) -> sa.ColumnElement[bool]:
    match node:
        case ast.BoolOp(op=ast.And()):
            return sa.and_(*(_condition(value, fields) for value in node.values))
        case ast.BoolOp(op=ast.Or()):
            return sa.or_(*(_condition(value, fields) for value in node.values))
        case ast.UnaryOp(op=ast.Not()):
            return sa.not_(_condition(node.operand, fields))
        case ast.Compare():
            operands = [node.left, *node.comparators]
            pairs = zip(operands, node.ops, operands[1:], strict=False)
            return sa.and_(*(_comparison(left, op, right, fields) for left, op, right in pairs))
        case ast.Name() if _field(node.id, fields).kind == "flag":
            return fields[node.id].column.is_(sa.true())
        case ast.Name():
            raise _FilterError(f"{node.id} must be compared with something, as in: {EXAMPLE}")
    raise _FilterError(f"{_quoted(ast.unparse(node))} is not a comparison; write for example: {EXAMPLE}")


def _comparison(left: ast.expr, op: ast.cmpop, right: ast.expr, fields: Fields) -> sa.ColumnElement[bool]:
    if not _is_field(left, fields) and _is_field(right, fields) and type(op) in _COMPARISONS:
        compared: sa.ColumnElement[bool] = _COMPARISONS[type(op)](
            _value(left, right.id, fields), fields[right.id].column
        )
        return compared
    if not isinstance(left, ast.Name):
        raise _FilterError(f"{_quoted(ast.unparse(left))} is not a field; {_allowed(fields)}")
    field = _field(left.id, fields)
    column = field.column
    if isinstance(right, ast.Constant) and right.value is None:
        if isinstance(op, ast.Is | ast.Eq):
            return column.is_(None)
        if isinstance(op, ast.IsNot | ast.NotEq):
            return column.is_not(None)
    if isinstance(op, ast.In | ast.NotIn) and isinstance(right, ast.List | ast.Tuple | ast.Set):
        values = [_value(item, left.id, fields) for item in right.elts]
        return column.in_(values) if isinstance(op, ast.In) else column.not_in(values)
    if type(op) not in _COMPARISONS:
        raise _FilterError(
            f"{left.id} can be compared with =, !=, <, <=, >, >=, in (…), is null; not "
            f"as in {_quoted(ast.unparse(right))}"
        )
    if isinstance(right, ast.Name) and (_is_field(right, fields) or field.kind != "text"):
        other = _field(right.id, fields)
        if other.kind != field.kind:
            raise _FilterError(f"{left.id} and {right.id} cannot be compared")
        return _COMPARISONS[type(op)](column, other.column)  # type: ignore[no-any-return]
    return _COMPARISONS[type(op)](column, _value(right, left.id, fields))  # type: ignore[no-any-return]


def _is_field(node: ast.expr, fields: Fields) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and node.id in fields


def _field(name: str, fields: Fields) -> Field:
    if name not in fields:
        raise _FilterError(_unknown(name, fields))
    return fields[name]


def _value(node: ast.expr, field: str, fields: Fields) -> Any:
    """The value of a node, in the type of the field's column."""
    kind = _field(field, fields).kind
    if field == "state" and isinstance(node, ast.Name):  # unambiguous even without quotes
        return _state(node.id)
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):
        value = None
    is_number = isinstance(value, int | float)
    match kind:
        case "number" if is_number and not isinstance(value, bool):
            return _as_float(value)
        case "flag" if is_number and value in (0, 1):
            return sa.literal(bool(value), sa.Boolean())
        case "text" if isinstance(value, str) and _can_be_stored(value):
            return _state(value) if field == "state" else value
        case "time" if isinstance(value, str):
            return _as_utc(value)
    expected = {
        "number": "a number",
        "flag": "true or false",
        "text": 'text in quotes: "…"',
        "time": 'a time in quotes: "…"',
    }
    raise _FilterError(f"{field} is compared with {expected[kind]}, not with {ast.unparse(node)[:60]}")


def _can_be_stored(text: str) -> bool:
    """No database stores half of a surrogate pair, and PostgreSQL no NUL."""
    return "\0" not in text and text.encode("utf-8", "ignore").decode() == text


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise _FilterError(f"{_quoted(str(value))} is too large a number") from None


def _state(text: str) -> str:
    """The state as the views spell it."""
    states = [state.lower() for state in TRIAL_STATES]
    state = text.lower().replace("failed", "fail")
    if state not in states:
        raise _FilterError(f"{_quoted(text)} is not a state; allowed: {', '.join(states)}.{nearest(state, states)}")
    return state


def _as_utc(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
        return time if time.tzinfo is None else time.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        raise _FilterError(f"{_quoted(text)} is not a time; write for example '2026-11-30 18:00' (UTC)") from None


def _unknown(name: str, fields: Fields) -> str:
    return f"{_quoted(name)} is not a field; {_allowed(fields)}.{nearest(name.lower(), fields)}"


def _allowed(fields: Fields) -> str:
    return f"fields: {', '.join(fields)}"


def _quoted(text: str) -> str:
    """Shortened, and without control characters, which could affect a terminal."""
    return repr(text if len(text) <= 60 else f"{text[:60]}…")
