"""GET /messages and /schema: what the stream holds, rows of tables among it, for whoever may read them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from typing import Any

import orjson
from quart import Response, jsonify, request
from quart_trio import QuartTrio

from actors.contract.table_token import table_name
from actors.errors import SinkUnavailable
from actors.web.page import SAFE
from actors.web.questions import Lookup, read_question, token_of

PRIVATE = frozenset({"messages", "schema"})
"""The endpoints for which `guard` wants the token."""


def add_row_routes(app: QuartTrio, lookup: Lookup, tables: Callable[[], Collection[str]]) -> None:
    """Add the routes to the bridge's application. `tables` returns the tokens of those that are published."""

    @app.get("/messages")
    async def messages() -> Response | tuple[Response, int]:
        given = request.args
        try:
            question = read_question(
                given.get("table", ""), given.getlist("key"), given.get("from", ""), given.get("before", ""),
                given.get("limit", ""), tables(),
            )  # fmt: skip
            found = await lookup.messages(question)
            if question.token and not found["messages"] and await lookup.schema(question.token) is None:
                return jsonify({"error": _no_table(question.token, tables())}), 404
            return _private(found)
        except ValueError as exc:
            return jsonify({"error": str(exc)}), 400
        except SinkUnavailable as exc:
            return jsonify({"error": str(exc)}), 503

    @app.get("/schema/<path:table>")
    async def schema(table: str) -> Response | tuple[Response, int]:
        try:
            found = await lookup.schema(token_of(table, tables()))
        except ValueError as exc:
            return jsonify({"error": str(exc)}), 404
        except SinkUnavailable as exc:
            return jsonify({"error": str(exc)}), 503
        return _private(found) if found is not None else (jsonify({"error": "no schema of this table is stored"}), 404)


def _no_table(token: str, tables: Collection[str]) -> str:
    """Words on a table that the stream does not have, with the one that may have been meant."""
    name = table_name(token)
    close = difflib.get_close_matches(name, [table_name(one) for one in tables], n=1)
    return f"the stream has no table {name}" + (f"; did you mean {close[0]}?" if close else "")


def _private(document: dict[str, Any]) -> Response:
    """An answer that no cache keeps and no other page may embed."""
    return Response(orjson.dumps(document), content_type="application/json", headers=SAFE)
