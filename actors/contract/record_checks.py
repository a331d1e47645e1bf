"""Whether a record's fields have the types that its annotations name. Whoever may publish can put anything into a body."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

from actors.contract.records import Column, Row, RowRange


def _are_texts(values: object) -> bool:
    if type(values) is not tuple and type(values) is not list:
        return False
    for value in values:  # noqa: SIM110  # faster than `all` for the one or two columns of a key
        if type(value) is not str:
            return False
    return True


def _are_columns(values: Sequence[Column]) -> bool:
    return all(type(c.name) is type(c.type) is type(c.base) is str and (c.pk is None or type(c.pk) is bool) for c in values)


def _are_maps(values: object) -> bool:
    return type(values) is list and all(type(value) is dict for value in values)


def _are_lists(values: object) -> bool:
    return type(values) is list and all(type(value) is list for value in values)


def _are_ranges(values: object) -> bool:
    return type(values) is tuple and all(bound is None or _are_texts(bound) for value in values for bound in value)


_TESTS: dict[Any, str] = {
    str: "type({0}) is str",
    int: "type({0}) is int",
    bool: "type({0}) is bool",
    tuple[str, ...]: "_are_texts({0})",
    tuple[Column, ...]: "_are_columns({0})",
    tuple[RowRange, ...]: "_are_ranges({0})",
    list[Row]: "_are_maps({0})",
    list[list[Any]]: "_are_lists({0})",
}
"""By annotation, the test as Python."""


def compile_check(record_type: Any) -> Callable[[Any], bool]:
    """Return the check of one type of record, made of its own annotations. A str is one exactly: a `Raw` is a row's value."""
    tests = [
        _TESTS[annotation].format(f"r[{number}]") for number, annotation in enumerate(get_type_hints(record_type).values())
    ]
    check: Callable[[Any], bool] = eval(f"lambda r: {' and '.join(tests)}", globals())  # of our own names
    return check
