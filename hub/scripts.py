"""Scripts: the Lua that runs inside Redis, named by digest.

Does: read hub/lua, put the prelude in front of those that need it, run many in one round trip, load what Redis lost.
Does not: know what a script means; its own head says that, and its caller packs its keys and arguments.
Called by: lane, broker, history, lease, registry, roll.
Never break: only a command that Redis answered with NOSCRIPT is sent a second time, as that one did nothing.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence
from hashlib import sha1
from importlib import resources
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

PRELUDES = {
    **dict.fromkeys(("publish_stream", "history", "history_remove", "loopback", "clean"), "generation"),
    **dict.fromkeys(
        ("mailbox_put", "mailbox_open", "mailbox_ack", "mailbox_visit", "mailbox_stats", "mailbox_requeue"), "mailbox"
    ),
}
"""Scripts that stand on functions of another file."""
NONCE_BYTES = 8
"""Random ones in each process' nonces: no two processes of all machines and times may share them."""

Command = tuple[Any, ...]


class Outcome(NamedTuple):
    """A command's reply, or its error; and the reply to the WAIT or WAITAOF behind it, None without one."""

    reply: object
    confirmed: object


def load_script(name: str) -> str:
    """The text of hub/lua/NAME.lua, behind its prelude if it has one."""
    text = resources.files("hub").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    return f"{load_script(PRELUDES[name])}\n{text}" if name in PRELUDES else text


class Scripts:
    """Some scripts of one user of Redis."""

    def __init__(self, *names: str) -> None:
        texts = {name: load_script(name) for name in names}
        self._digests = {name: sha1(text.encode()).hexdigest() for name, text in texts.items()}  # EVALSHA names it so
        self._texts = {self._digests[name]: text for name, text in texts.items()}

    def call(self, name: str, keys: Sequence[str], arguments: Sequence[Any]) -> Command:
        """The command that runs a script."""
        return ("EVALSHA", self._digests[name], len(keys), *keys, *arguments)

    def text(self, name: str) -> str:
        """What Redis has to load of one."""
        return self._texts[self._digests[name]]

    async def load(self, redis: Redis) -> None:
        """Give Redis all of them. Raises RedisError or OSError."""
        for text in self._texts.values():
            await redis.script_load(text)

    async def execute(self, redis: Redis, commands: Sequence[Command]) -> list[object]:
        """Run commands in one round trip on one connection; the replies in order, errors of single ones among them.

        Raises RedisError or OSError when the connection fails; then nobody knows what was done.
        """
        return [outcome.reply for outcome in await self.execute_confirmed(redis, commands, None)]

    async def execute_confirmed(
        self, redis: Redis, commands: Sequence[Command], confirm: Command | None
    ) -> list[Outcome]:
        """The same; `confirm` (WAIT or WAITAOF) runs behind them on their connection, and its reply comes with each."""
        outcomes = await _run(redis, commands, confirm)
        lost = [i for i, outcome in enumerate(outcomes) if isinstance(outcome.reply, NoScriptError)]
        if lost:
            # Redis was restarted or flushed its scripts.
            for digest in {commands[i][1] for i in lost}:
                await redis.script_load(self._texts[digest])
            for i, outcome in zip(lost, await _run(redis, [commands[i] for i in lost], confirm), strict=True):
                outcomes[i] = outcome
        return outcomes


class Nonces:
    """Texts that no other call, process or machine uses: '1f0c…-5'."""

    def __init__(self) -> None:
        self._head = secrets.token_hex(NONCE_BYTES)
        self._numbers = itertools.count()

    def __call__(self) -> str:
        return f"{self._head}-{next(self._numbers):x}"


async def _run(redis: Redis, commands: Sequence[Command], confirm: Command | None) -> list[Outcome]:
    async with redis.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)
        if confirm is not None:
            pipeline.execute_command(*confirm)
        replies: list[object] = await pipeline.execute(raise_on_error=False)
    confirmed = replies.pop() if confirm is not None else None
    return [Outcome(reply, confirmed) for reply in replies]
