"""GET /messages and /schema: what the stream holds, rows of tables among it, for whoever may read them."""

from __future__ import annotations

from typing import Any

import orjson
from quart import Response, jsonify, request
from quart_trio import QuartTrio

from actors.contract.table_token import TOKEN_MAX, as_token, table_name
from actors.errors import SinkUnavailable
from actors.web.page import SAFE
from actors.web.questions import Lookup, read_question

PRIVATE = frozenset({"messages", "schema"})
"""The endpoints for which `guard` wants the token."""


def add_row_routes(app: QuartTrio, lookup: Lookup) -> None:
    """Add the routes to the bridge's application."""

    @app.get("/messages")
    async def messages() -> Response | tuple[Response, int]:
        given = request.args
        try:
            question = read_question(
                given.get("table", ""), given.getlist("key"), given.get("from", ""), given.get("before", ""),
                given.get("limit", ""),
            )  # fmt: skip
            found = await lookup.messages(question)
            if question.token and not found["messages"] and await lookup.schema(question.token) is None:
                return jsonify({"error": f"the stream has no table {table_name(question.token)}"}), 404
            return _private(found)
        except ValueError as exc:
            return jsonify({"error": str(exc)}), 400
        except SinkUnavailable as exc:
            return jsonify({"error": str(exc)}), 503

    @app.get("/schema/<path:table>")
    async def schema(table: str) -> Response | tuple[Response, int]:
        token = as_token(table)
        try:
            found = await lookup.schema(token) if len(token) <= TOKEN_MAX else None
        except SinkUnavailable as exc:
            return jsonify({"error": str(exc)}), 503
        return _private(found) if found is not None else (jsonify({"error": "no schema of this table is stored"}), 404)


def _private(document: dict[str, Any]) -> Response:
    """An answer that no cache keeps and no other page may embed."""
    return Response(orjson.dumps(document), content_type="application/json", headers=SAFE)
