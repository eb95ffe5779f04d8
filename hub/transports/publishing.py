"""Publishing over HTTP: `POST /publish`, for clients that have only requests.

Does: check the caller and the namespace's rule, ask the application, hand the data to the one door in, answer with its
receipt.
Does not: check data (publish), nor take the server's key: that is the server API's `publish` (api), which may do all.
Called by: worker (routes), Tornado.
Never break: a browser's page of another origin has been refused by plain before a body is looked at.

    POST /publish {"channel":"chat:a","data":{"text":"hi"},"idempotency_key":"…"?}   Content-Type: application/json
    200 {} or, in mode `stream`, {"ack":"memory","offset":17,"epoch":"4.k3"}; besides plain's statuses
    413 for a body beyond client.message_bytes, 415 for another type, 503 where Redis has not confirmed: with an
        idempotency key it can be sent again without being published twice

Who publishes here holds no channel, so the rule "subscriber" lets nobody in; "token" in the body is a channel token
whose claim `allow` lists `pub`. An application is asked about each
request: `on_connect`, then `on_publish`. What a client asked for that has gone while it thought is not published.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from .. import cors, errors
from ..app_gate import Gate
from ..auth import Claims
from ..broker import Receipt
from ..capabilities import PUBLISH
from ..channels import Namespace
from ..errors import CommandError, HubError
from ..message import ClientInfo, PublishOptions
from ..nesting import TooManyValues, parse
from ..permissions import decide
from .plain import PlainHandler

PATH = "/publish"


class PublishHandler(PlainHandler):
    """POST /publish."""

    METHODS = "POST"

    async def post(self) -> None:
        # A page can send other types without a preflight (the form types of HTML), so they are refused outright.
        if not cors.says_json(self.request.headers.get("Content-Type", "")):
            self.refuse(415, errors.BAD_REQUEST, cors.WANTS_JSON)
            return
        most = self._door.services.client.message_bytes
        if len(self.request.body) > most:
            self.refuse(413, errors.LIMIT_EXCEEDED, f"body: found {len(self.request.body)} bytes; allowed: {most}")
            return
        try:
            caller = await self.caller()
            params = self._params()
            gate = self._door.services.gate
            if gate is not None:
                caller = await self.ask(gate, self._allowed(gate, caller, params))
            receipt = await self._publish(caller, params)
        except HubError as error:
            self.fail(error)
        else:
            self.answer(200, _result(receipt))

    def _params(self) -> dict[str, Any]:
        try:
            params = parse(self.request.body, self._door.services.client.json_values)
        except orjson.JSONDecodeError as error:
            raise CommandError(errors.BAD_REQUEST, f"body: not JSON: {error.msg}") from None
        except TooManyValues as error:
            self._door.entrance.quotas.refusals.count("json")
            raise CommandError(errors.BAD_REQUEST, f"body: {error}") from None
        if not isinstance(params, dict) or "data" not in params:
            raise CommandError(errors.BAD_REQUEST, "body: allowed is a JSON object with channel and data")
        self._door.services.publisher.check_depth(params["data"])
        return params

    async def _allowed(self, gate: Gate, caller: Claims, params: dict[str, Any]) -> Claims:
        """Who it is, as the application has it, which may change the data. Raises HubError."""
        guest, caller = await self.welcome(gate, caller)
        channel, _ = self._resolve(caller, params)
        params["data"] = await guest.publish(channel, params["data"])
        self.check_access(caller)
        return caller

    def _resolve(self, caller: Claims, params: dict[str, Any]) -> tuple[str, Namespace]:
        """The channel, if he may publish there. Raises CommandError."""
        namespace = self._door.services.channels.resolve(params.get("channel"))
        channel = str(params["channel"])
        token = params.get("token")
        grant = self.grant(caller.user, token) if token not in ("", None) else None
        decide(PUBLISH, caller, channel, namespace, grant=grant)
        return channel, namespace

    async def _publish(self, caller: Claims, params: dict[str, Any]) -> Receipt:
        """Raises HubError."""
        channel, namespace = self._resolve(caller, params)
        verdict: asyncio.Future[Receipt | HubError] = asyncio.get_running_loop().create_future()

        def done(outcome: Receipt | HubError) -> None:
            if not verdict.done():
                verdict.set_result(outcome)

        options = PublishOptions(idempotency_key=params.get("idempotency_key", ""))
        info = ClientInfo(caller.user, "")  # there is no connection that it could name
        publisher = self._door.services.publisher
        publisher.publish(channel, namespace, params["data"], done, info, options=options)
        outcome = await verdict
        if isinstance(outcome, HubError):
            raise outcome
        return outcome


def _result(receipt: Receipt) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if receipt.ack:
        result["ack"] = receipt.ack
    if receipt.offset:
        result |= {"offset": receipt.offset, "epoch": receipt.epoch}
    if receipt.duplicate:
        result["duplicate"] = True
    return result
