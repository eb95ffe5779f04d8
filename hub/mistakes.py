"""Mistakes: what pydantic found wrong with the settings, as lines that a person can act on.

Does: turn each error into one line, `KEY: found …; allowed: …`, with the key as the TOML file writes it.
Does not: read or check settings, nor know any of them; the model is an argument.
Called by: config, for its own model and with its own few messages.
Never break: one mistake is one line, and the value of a field with `repr=False`, or of its whole table, is never in it.
A new type of field needs its words in `_describe`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import AllowInfNan, BaseModel, BeforeValidator, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

USERINFO = re.compile(r"(?<=://)[^/@\s]*@")
"""Of a URL; where there must be none it is still somebody's password."""
MAX_SHOWN_CHARACTERS = 80
TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
# A bound's attribute in the field's metadata, and how it reads behind the type.
BOUNDS = (
    ("ge", " from {}"),
    ("gt", " above {}"),
    ("le", " to {}"),
    ("min_length", ", length from {}"),
    ("max_length", " to {}"),
)


def _no_switch(value: object) -> object:
    # pydantic reads true as 1; `workers = true` is a mistake and not one process.
    if isinstance(value, bool):
        raise PydanticCustomError("switch_for_number", "true or false in a number's place")
    return value


Whole = Annotated[int, BeforeValidator(_no_switch)]
Number = Annotated[float, BeforeValidator(_no_switch), AllowInfNan(False)]


def sentences(root: type[BaseModel], error: ValidationError) -> list[str]:
    """The lines for `error`, which validating `root` raised. A union's branches may give the same line twice."""
    return [_sentence(root, item) for item in error.errors()]


def bare(name: str) -> str:
    """A key as TOML writes it: quoted unless it is plain, so that no key breaks the line."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else repr(name)


def short(value: object) -> str:
    """A found value, on one line and of a bounded length."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "…"


def meant(name: object, known: Iterable[str]) -> str:
    """ "did you mean 'prefix'? " where a known name is close to `name`, otherwise nothing."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def as_table(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation is, if it is one; such a field is a table of the file."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


class Place(NamedTuple):
    """Where a mistake is: the key, the names that its table knows, and its field where it has one."""

    key: str
    known: list[str]
    field: FieldInfo | None


def _place(root: type[BaseModel], location: Iterable[int | str]) -> Place:
    """Follow pydantic's location, such as ('redis', 'prefix'), down the tables.

    Behind a field stands an index, or a branch of a union as in ('workers', "literal['auto']"): only an index is shown.
    """
    rest = list(location)
    place = Place("", list(root.model_fields), None)
    table: type[BaseModel] | None = root
    while rest and table:
        name = str(rest.pop(0))
        field = table.model_fields.get(name)
        place = Place(f"{place.key}.{bare(name)}".lstrip("."), list(table.model_fields), field)
        annotation = field.annotation if field else None
        if get_origin(annotation) is dict and rest:  # a table of tables, whose names the operator chooses
            place = place._replace(key=f"{place.key}.{bare(str(rest.pop(0)))}")
            annotation = get_args(annotation)[1]
        table = as_table(annotation)
    if rest and isinstance(rest[0], int):
        place = place._replace(key=f"{place.key}[{rest[0]}]")
    return place


def _sentence(root: type[BaseModel], item: Any) -> str:
    """One line from one of pydantic's error dicts: "redis.prefix: found ''; allowed: …"."""
    place = _place(root, item["loc"])
    if item["type"] == "extra_forbidden":
        hint = meant(item["loc"][-1], place.known)
        return f"{place.key}: unknown setting; {hint}allowed: {', '.join(place.known)}"
    message = str(item["ctx"]["error"]) if item["type"] == "value_error" else ""
    if message and (place.field is None or as_table(place.field.annotation)):
        return message  # what checks a whole table writes its lines itself
    allowed = message or (_describe(place.field.annotation, place.field.metadata) if place.field else "a table")
    return f"{place.key}: found {_shown(place.field, item['input'])}; allowed: {allowed}"


def _shown(field: FieldInfo | None, value: object) -> str:
    table = as_table(field.annotation) if field else None
    fields = [field, *(table.model_fields.values() if table else ())]
    secret = any(each is not None and not each.repr for each in fields)
    if isinstance(value, str):
        value = USERINFO.sub("…@", value)
    return "a value that is not shown" if secret else short(value)


def _describe(annotation: Any, metadata: list[Any]) -> str:
    """A type and its bounds in words: 'a whole number from 1 to 1024'."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        flat = [m for item in args[1:] for m in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return _describe(args[0], [*metadata, *flat])
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(repr(value) for value in args)
    if origin is list:
        return "a list of texts" + _bounds(metadata)
    if origin is dict or as_table(annotation):
        return "a table"
    if args:
        return " or ".join(_describe(each, metadata) for each in args)
    return TYPE_NAMES.get(annotation, str(annotation)) + _bounds(metadata)


def _bounds(metadata: list[Any]) -> str:
    found = [words.format(getattr(item, name)) for name, words in BOUNDS for item in metadata if hasattr(item, name)]
    return "".join(found)
