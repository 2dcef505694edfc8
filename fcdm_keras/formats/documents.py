"""The door of small files, JSON and tables, that we or others wrote.

What passes is strict JSON (no NaN, no number beyond float64, no name twice, nothing nested beyond `DEPTH`) of bounded
size that fits a schema: a type that msgspec converts to, as it stands beside the file's writer. Types are taken as they
are: `"3"`, `3.0` and `true` are no integers. Unknown names are errors in dataclasses, which are our own settings, and
in structs that forbid them; other people's files may say more than we read.
"""

import csv
import dataclasses
import io
import json
import math
import re
from typing import Annotated

import msgspec
from msgspec import Meta

from fcdm_keras.files import LIMIT, read_text

DEPTH = 64  # of lists and objects in each other; ours have a dozen at most
CURE = "restore the file, or make it again"
_SHOWN = 60  # characters of what was received
_TOO_DEEP = f"it holds lists or objects in each other, more than {DEPTH} deep"
_DIGITS = 20  # of an integer: as many as 2**64 has

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Size = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Width = Annotated[int, Meta(ge=1, le=65_536)]  # of a layer
Name = Annotated[str, Meta(min_length=1, max_length=4096)]
Names = Annotated[tuple[Name, ...], Meta(min_length=1)]
Identifier = Annotated[str, Meta(min_length=1, max_length=256)]


class Struct(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Base of the schemas of our own files: what they do not name is an error."""


def read_json(file, schema, cure=CURE, limit=LIMIT):
    """What a JSON file holds, as `schema` has it.

    Args:
        file: its path.
        schema: a type: a dataclass, a struct, `dict[str, Any]`, …
        cure: what to do about a bad file, to end the sentence.
        limit: bytes that it may have.

    Raises:
        ValueError: it is larger, no text, no JSON, or does not fit; names the file, the place, and what is there.
        OSError: it cannot be read.
    """
    return parse_json(read_text(file, limit), schema, file, cure)


def parse_json(text, schema, where, cure=CURE):
    """As `read_json`, of text; `where` is what to call its origin."""
    hooks = {"parse_constant": _refused, "parse_float": _finite, "parse_int": _integer}
    try:
        value = json.loads(text, object_pairs_hook=_object, **hooks)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(value, ensure_ascii=False).encode()  # a pair is one character by now
    except RecursionError:
        raise _bad(where, _TOO_DEEP, cure) from None
    except UnicodeEncodeError as error:
        raise _bad(where, _half(error), cure) from None
    except ValueError as error:
        several = "Extra data" in str(error) and text.lstrip()[:1] in "{["
        what = "it holds several JSON values, one after the other" if several else f"it is no JSON ({error})"
        raise _bad(where, what, cure) from None
    return as_schema(value, schema, where, cure)


def as_schema(value, schema, where, cure=CURE):
    """As `read_json`, of what was read already: a value of dicts, lists, texts and numbers."""
    _check_depth(value, where, cure)
    if dataclasses.is_dataclass(schema) and isinstance(value, dict):
        unknown = sorted(value.keys() - {field.name for field in dataclasses.fields(schema)})
        if unknown:
            raise _bad(where, f"it has the unknown field {shown(unknown[0])}", cure)
    try:
        return msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        message, _, path = str(error).encode("unicode_escape").decode().partition(" - at `")  # names are anything
        path = path.removesuffix("`") or "$"
        message = re.sub(" matching regex .*", " of another form", message)
        message = f"{message[:1].lower()}{message[1 : _SHOWN * 2]}"
        found = shown(_at(value, path))
        raise _bad(where, f"at {path[:200]}, {message}. Received: {found}", cure) from None
    except UnicodeEncodeError as error:
        raise _bad(where, _half(error), cure) from None


def read_table(file, columns, cure=CURE):
    """Rows of numbers of a CSV file with a header; a last line without an end, cut short by a kill, is left out.

    Args:
        file: its path.
        columns: names that the header must have; `step` first. It may have more.
        cure: as in `read_json`.

    Returns:
        A list of dicts: `step` an integer from 0 on, all else floats, NaN and infinite ones too (of a run that
        diverged).

    Raises:
        ValueError: it is no such table; names the line.
        OSError: it cannot be read.
    """
    text = read_text(file)
    lines = csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""), strict=True)
    header, rows = None, []
    try:
        for fields in filter(None, lines):
            if header is None:
                header = _header(fields, columns)
            elif len(fields) != len(header):
                raise ValueError(f"{len(header)} fields expected. Received: {len(fields)}")
            else:
                rows.append({name: _cell(name, field) for name, field in zip(header, fields)})
    except (ValueError, csv.Error) as error:
        raise _bad(file, f"in line {lines.line_num}, {error}", cure) from None
    return rows


def shown(value):
    """A value of JSON, for a sentence: short, and in ASCII."""
    if isinstance(value, dict):
        names = ", ".join(json.dumps(str(name)[:_SHOWN]) for name in list(value)[:4])
        return f"an object with {names}" if names else "an object with nothing in it"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value):,} values"
    if isinstance(value, str) and len(value) > _SHOWN:
        return f"{json.dumps(value[:_SHOWN])}…"
    return json.dumps(value, default=repr)[: 2 * _SHOWN]


def _object(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {shown(next(name for name in names if names.count(name) > 1))} is there twice")
    return found


def _refused(text):
    raise ValueError(f"{text} is no number of JSON")


def _finite(text):
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:_SHOWN]} is too large")
    return number


def _integer(text):
    if len(text.lstrip("-")) > _DIGITS:
        raise ValueError(f"the number {text[:_SHOWN]} is too large")
    return int(text)


def _check_depth(value, where, cure):
    level = [value]
    for _ in range(DEPTH):
        inside = [node.values() if isinstance(node, dict) else node for node in level if isinstance(node, (dict, list))]
        level = [child for node in inside for child in node if isinstance(child, (dict, list))]
        if not level:
            return
    raise _bad(where, _TOO_DEEP, cure)


def _half(error):
    return f"it holds half of a character, \\u{ord(error.object[error.start]):x}, which is no text"


def _bad(where, what, cure):
    return ValueError(f"{where} is damaged or of another kind: {what}; {cure}.")


def _at(value, path):
    """What is at a path of msgspec's, such as `$.shards[0].file`, or as far on the way as it tells."""
    for name, place in re.findall(r"\.([^.\[]+)|\[(\d+)\]", path.partition("[...]")[0]):
        try:
            value = value[name] if name else value[int(place)]
        except (KeyError, IndexError, TypeError):
            break
    return value


def _header(names, columns):
    lacking = [name for name in columns if name not in names]
    if lacking or len(set(names)) < len(names):
        raise ValueError(
            f"a header with {', '.join(columns)}, each name once, expected. Received: {shown(','.join(names))}"
        )
    return names


def _cell(name, text):
    pattern = r"\d{1,18}" if name == "step" else r"-?(\d{1,40}(\.\d{0,40})?(e[-+]?\d{1,3})?|nan|inf)"
    if not re.fullmatch(pattern, text, re.ASCII):
        raise ValueError(f"{name} must be {'an integer' if name == 'step' else 'a number'}. Received: {shown(text)}")
    return int(text) if name == "step" else float(text)
