"""API of mailboxes: notify users, look into mailboxes, and at what died in them.

Does: read a request's parameters, do what they ask, answer.
Does not: know HTTP, keys or batches (api).
Called by: api, from its METHODS.
Never break: as in api, an option that would change what a request means is honoured or refused.

    notify           {"user":"42","data":…,"tags"?,"idempotency_key"?}   -> {"id":ID,"ack":"memory","duplicate"?}
                     {"users":["42","77"],…}                             -> {"responses":[{"result":{…}},{"error":…}]}
                     {"everyone":true,"data":…}                          -> {}
    mailbox_stats    {"user":"42"} or {"channel":"inbox:#42"}            -> {"messages","bytes","in_flight","totals"}
    mailbox_dead     {"after"?:LETTER,"limit"?}                          -> {"letters":[…]}, oldest first
    mailbox_requeue  {"id":LETTER,"channel":"inbox:#42"}                 -> {"id":ID,"ack":"memory"}
                     {"all":true,"channel"?,"after"?:LETTER}             -> {"requeued":3,"refused":0,"after":LETTER}

A user's notice goes into its mailbox, NAMESPACE:#USER, and from there to the devices that are subscribed to it; its
other connections get {"push":{"message":{"data":…}}} at once. One for everyone is that push and nothing else.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

from . import control, errors, tasks
from .broker import Receipt
from .channels import Channels, Namespace, mailbox_of
from .control import Notice
from .errors import CommandError, HubError, error_body, raise_if_hopeless
from .mailbox import Contents, Letter, Mailboxes, is_letter_id
from .message import PublishOptions
from .publish import Publisher
from .registry import Registry

MAX_USERS = 1000
"""In one request."""
USERS_AT_ONCE = 64
"""Of them, so many wait for Redis together: each is a copy of the data."""
MAX_LETTERS = 100
"""In one answer; each may be as large as a mailbox."""
MAX_REQUEUED = 10_000
"""Letters that one request looks at; `after` says where the next one goes on."""
UNAVAILABLE_OPTIONS = ("b64data", "delta", "version", "version_epoch", "skip_history")
USER_OPTIONS = ("tags", "idempotency_key")
"""Not with everyone, of which nothing is kept."""

Params = dict[str, Any]
Result = dict[str, Any]


class Api(Protocol):
    """api.Api, as seen from here."""

    @property
    def channels(self) -> Channels: ...
    @property
    def publisher(self) -> Publisher: ...
    @property
    def registry(self) -> Registry: ...
    @property
    def mailboxes(self) -> Mailboxes: ...
    @property
    def inbox(self) -> str: ...


# Notifying.


async def notify(api: Api, params: Params) -> Result:
    """Leave a message for one user, or several, or tell everyone who is connected now."""
    named = [name for name in ("user", "users", "everyone") if params.get(name)]
    if len(named) != 1:
        raise CommandError(errors.BAD_REQUEST, "allowed is one of user, users and everyone")
    for option in UNAVAILABLE_OPTIONS + (USER_OPTIONS if named == ["everyone"] else ()):
        if params.get(option):
            raise CommandError(errors.NOT_AVAILABLE, f"{option} is not available here")
    if "data" not in params:
        raise CommandError(errors.BAD_REQUEST, "data is missing")
    # Checked before it is encoded for anybody.
    api.publisher.check_depth(params["data"])
    if named == ["everyone"]:
        return await _tell_everyone(api, params)
    if named == ["user"]:
        return _stored(_good(await _notify(api, params["user"], params)))
    return await _notify_users(api, params["users"], params)


async def _tell_everyone(api: Api, params: Params) -> Result:
    if params["everyone"] is not True:
        raise CommandError(errors.BAD_REQUEST, "everyone: allowed is true")
    try:
        await api.registry.announce(Notice("", "", params["data"]))
    except (TypeError, ValueError) as error:
        raise _unfit(error) from None
    return {}


async def _notify_users(api: Api, users: object, params: Params) -> Result:
    if not isinstance(users, list):
        raise CommandError(errors.BAD_REQUEST, "users: allowed is a list of at least one")
    if len(users) > MAX_USERS:
        raise CommandError(errors.LIMIT_EXCEEDED, f"users: found {len(users)}; allowed: {MAX_USERS}")
    outcomes: list[Receipt | HubError] = []
    for i in range(0, len(users), USERS_AT_ONCE):
        begun = [_begin(api, user, params) for user in users[i : i + USERS_AT_ONCE]]
        outcomes += [await one if not isinstance(one, HubError) else one for one in begun]
    raise_if_hopeless(outcomes)
    return {"responses": [_response(outcome) for outcome in outcomes]}


def _begin(api: Api, user: object, params: Params) -> Any:
    """What `_notify` returns, or the error that it raised."""
    try:
        return _notify(api, user, params)
    except CommandError as error:
        return error


def _notify(api: Api, user: object, params: Params) -> Any:
    """A future of Receipt or HubError. Raises CommandError at once for what can't be published."""
    if not isinstance(user, str) or not user:
        raise CommandError(errors.BAD_REQUEST, "user: allowed is a text")
    channel = mailbox_of(api.inbox, user)
    namespace = _with_mailboxes(api, channel)
    try:
        notice = control.encode_notice(Notice(user, channel, params["data"]))
    except (TypeError, ValueError) as error:
        raise _unfit(error) from None
    key = params.get("idempotency_key")
    options = PublishOptions() if key is None else PublishOptions(key)
    begin = partial(api.publisher.publish, channel, namespace, params["data"])
    return tasks.reply(lambda done: begin(done, tags=params.get("tags"), options=options, notice=notice))


def _unfit(error: TypeError | ValueError) -> CommandError:
    """Why data can't be a notice: TypeError where it is no JSON, ValueError where it is too much."""
    reply = errors.BAD_REQUEST if isinstance(error, TypeError) else errors.LIMIT_EXCEEDED
    return CommandError(reply, f"data: {error}")


def _with_mailboxes(api: Api, channel: object) -> Namespace:
    """Raises CommandError 107 for what is no mailbox's name, 102 for an unknown namespace, 108 where it has none."""
    namespace = api.channels.resolve(channel)
    if not namespace.mailbox:
        raise CommandError(errors.NOT_AVAILABLE, "this namespace has no mailboxes; mailbox = true gives it some")
    return namespace


# Looking.


async def stats(api: Api, params: Params) -> Result:
    """How much is in one mailbox, and in all."""
    channel, namespace = _named(api, params)
    contents: Contents = _good(await tasks.reply(partial(api.mailboxes.stats, channel, namespace)))
    # `ms` and `seq` are the newest id, which is no amount.
    total = {name: number for name, number in contents.totals.items() if name not in ("ms", "seq")}
    return {**contents._asdict(), "totals": total}


async def dead(api: Api, params: Params) -> Result:
    """A page of dead letters."""
    limit = params.get("limit", MAX_LETTERS)
    if type(limit) is not int or not 1 <= limit <= MAX_LETTERS:
        raise CommandError(errors.BAD_REQUEST, f"limit: allowed are whole numbers from 1 to {MAX_LETTERS}")
    letters: list[Letter] = _good(await tasks.reply(partial(api.mailboxes.letters, _after(params), limit)))
    return {"letters": [_letter_body(letter) for letter in letters]}


async def requeue(api: Api, params: Params) -> Result:
    """Put dead letters back into their mailboxes, as new messages."""
    everything = params.get("all")
    if not isinstance(everything, bool | None):
        raise CommandError(errors.BAD_REQUEST, "all: allowed are true and false")
    if everything:
        return await _requeue_all(api, params)
    channel, letter = params.get("channel"), params.get("id")
    namespace = _with_mailboxes(api, channel)
    if not is_letter_id(letter):
        raise CommandError(errors.BAD_REQUEST, "id: allowed is that of a dead letter")
    return _stored(_good(await tasks.reply(partial(api.mailboxes.requeue, str(letter), str(channel), namespace))))


async def _requeue_all(api: Api, params: Params) -> Result:
    only, after = params.get("channel"), _after(params)
    if only is not None:
        _with_mailboxes(api, only)
    requeued = refused = seen = 0
    while seen < MAX_REQUEUED:
        letters: list[Letter] = _good(await tasks.reply(partial(api.mailboxes.letters, after, MAX_LETTERS)))
        if not letters:
            break
        seen += len(letters)
        after = letters[-1].id
        begun = [_begin_requeue(api, one) for one in letters if only is None or one.channel == only]
        outcomes = [await one if not isinstance(one, HubError) else one for one in begun]
        raise_if_hopeless(outcomes)
        requeued += sum(isinstance(outcome, Receipt) for outcome in outcomes)
        refused += sum(isinstance(outcome, HubError) for outcome in outcomes)
    return {"requeued": requeued, "refused": refused, "after": after}


def _begin_requeue(api: Api, letter: Letter) -> Any:
    try:
        namespace = _with_mailboxes(api, letter.channel)
    except CommandError as error:  # the settings have changed since
        return error
    return tasks.reply(partial(api.mailboxes.requeue, letter.id, letter.channel, namespace))


# Small parts.


def _named(api: Api, params: Params) -> tuple[str, Namespace]:
    user = params.get("user")
    if isinstance(user, str) and user and "channel" not in params:
        channel: object = mailbox_of(api.inbox, user)
    else:
        channel = params.get("channel")
    return str(channel), _with_mailboxes(api, channel)


def _after(params: Params) -> str:
    after = params.get("after")
    if after in (None, ""):
        return ""
    if not is_letter_id(after):
        raise CommandError(errors.BAD_REQUEST, "after: allowed is the id of a dead letter")
    return str(after)


def _letter_body(letter: Letter) -> Result:
    body = letter._asdict()
    return {**body, **body.pop("publication")}


def _stored(receipt: Receipt) -> Result:
    body: Result = {"id": receipt.id, "ack": receipt.ack}
    return {**body, "duplicate": True} if receipt.duplicate else body


def _response(outcome: Receipt | HubError) -> Result:
    return {"error": error_body(outcome)} if isinstance(outcome, HubError) else {"result": _stored(outcome)}


def _good(outcome: Any) -> Any:
    """Raises what is an error."""
    if isinstance(outcome, HubError):
        raise outcome
    return outcome
