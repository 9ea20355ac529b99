"""Every key of a config, in Markdown, from the schema itself: `python -m fastdgl.config_reference > docs/config.md`."""

import inspect
import json
import re
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from .config import FAMILIES, Section

INTRODUCTION = """\
# Every key of a config

Written by `python -m fastdgl.config_reference` from the schema in [fastdgl/config.py](../fastdgl/config.py). A config names what it changes from these
defaults, which are the papers'; a key that is not here is refused. Any value can be set behind a command: `train.batch=16`, and for
one stage alone `stages.guided.train.kimg=5`. `stages` itself holds a name for each run of a file, and what that run changes."""

BOUNDS = {Gt: ("gt", "above"), Ge: ("ge", "at least"), Lt: ("lt", "below"), Le: ("le", "at most")}


def reference() -> str:
    """The page."""
    return "\n".join([INTRODUCTION, *_parts("", dict(FAMILIES))]) + "\n"


def _parts(path: str, schemas: dict[str, type[Section]]) -> Iterator[str]:
    """The section at `path`, whose schema each family has its own of or shares, and the sections in it."""
    first, *others = dict.fromkeys(schemas.values())
    # where one family's schema only has other defaults, or keys more, both are in one table
    shared = not others or path == "" or all(issubclass(other, first) for other in others)
    for families in [list(schemas)] if shared else [[family] for family in schemas]:
        which = "" if shared else f" of {families[0]}"
        chosen = {family: schemas[family] for family in families}
        yield f"\n## {f'`{path}`' if path else 'The run'}{which}\n"
        if path:
            yield f"{inspect.cleandoc(next(iter(chosen.values())).__doc__).splitlines()[0]}\n"
        yield "| key | expected | default | |"
        yield "| --- | --- | --- | --- |"
        yield from _rows(path, chosen)
    names = dict.fromkeys(name for schema in schemas.values() for name in schema.model_fields)
    for name in names:
        inner = {family: section for family, schema in schemas.items() if name in schema.model_fields
                 and (section := _section(schema.model_fields[name].annotation)) is not None}
        if inner:
            yield from _parts(f"{path}.{name}".lstrip("."), inner)


def _rows(path: str, schemas: dict[str, type[Section]]) -> Iterator[str]:
    meanings = {}
    for schema in schemas.values():
        meanings |= descriptions(schema)
    first = next(iter(schemas.values()))
    for name in dict.fromkeys(name for schema in schemas.values() for name in schema.model_fields):
        fields = {family: schema.model_fields[name] for family, schema in schemas.items() if name in schema.model_fields}
        one = next(iter(fields.values()))
        if _section(one.annotation) is not None:
            kind = "a list, each with keys of its own" if get_origin(one.annotation) is list else "keys of its own"
            yield f"| `{name}` | {kind} | {'`null` ' if one.default is None else ''}| [below](#{_anchor(f'{path}.{name}', fields)}) |"
            continue
        defaults = {family: _default(field) for family, field in fields.items()}
        default = next(iter(defaults.values()))
        if len(set(defaults.values())) > 1:
            default = ", ".join(f"{value} ({family})" for family, value in defaults.items())
        elif name not in first.model_fields:
            default += f" ({next(iter(fields))} only)"
        yield f"| `{name}` | {expected(one)} | {default} | {meanings.get(name, '')} |"


def descriptions(schema: type[Section]) -> dict[str, str]:
    """What the docstrings of a section and of those it is derived from say of each key."""
    found: dict[str, str] = {}
    for cls in reversed(schema.__mro__):
        if not (issubclass(cls, Section) and cls.__doc__):
            continue
        lines = inspect.cleandoc(cls.__doc__).splitlines()
        keys: list[str] = []
        for line in lines[1:]:
            entry = re.match(r"([a-z]\w*(?:, [a-z]\w*)*): (.*)", line)
            if entry and all(key in schema.model_fields for key in entry[1].split(", ")):
                keys = entry[1].split(", ")
                found |= dict.fromkeys(keys, entry[2])
            elif keys and line.startswith(" "):
                found |= dict.fromkeys(keys, f"{found[keys[0]]} {line.strip()}")
            else:
                keys = []
    return {key: text.replace("|", "\\|") for key, text in found.items()}


def expected(field: FieldInfo) -> str:
    """What a key takes, in words."""
    bounds = [f"{words} {getattr(constraint, attribute)}" for constraint in _constraints(field.annotation, field.metadata)
              for kind, (attribute, words) in BOUNDS.items() if isinstance(constraint, kind)]
    nullable = type(None) in get_args(field.annotation)
    return " ".join([_kind(field.annotation), " and ".join(bounds)]).strip() + (", or null" if nullable else "")


def _constraints(annotation: Any, metadata: list) -> list:
    """Of a field, also where they stand inside `... | None`; a pydantic Field among them is unfolded."""
    found = list(metadata)
    if get_origin(annotation) is Annotated:
        found += [part for item in get_args(annotation)[1:] for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    elif get_origin(annotation) in (Union, UnionType):
        found += [part for inner in get_args(annotation) for part in _constraints(inner, [])]
    return found


def _kind(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kind(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_kind(part) for part in get_args(annotation) if part is not type(None)))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin is list:
        return f"a list, each {_kind(get_args(annotation)[0])}"
    return {bool: "true or false", int: "integer", float: "number", str: "text"}.get(annotation, "keys and values")


def _section(annotation: Any) -> type[Section] | None:
    """The section in a type, such as that of `list[Teacher]`."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation if issubclass(annotation, Section) else None
    return next(filter(None, map(_section, get_args(annotation))), None)


def _anchor(path: str, fields: dict[str, FieldInfo]) -> str:
    """Of the heading that `_parts` gives the section."""
    schemas = [_section(field.annotation) for field in fields.values()]
    own = len(schemas) > 1 and not all(issubclass(schema, schemas[0]) for schema in schemas)
    return path.replace(".", "") + (f"-of-{next(iter(fields))}" if own else "")


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "**to be given**"
    if field.default in ([], {}, ""):
        return "none"
    # as YAML writes it
    return f"`{json.dumps(field.default) if isinstance(field.default, bool | None) else field.default}`"


if __name__ == "__main__":
    print(reference(), end="")
