"""What all commands share: settings declared once, the flags and checks made from them, and one frame for errors.

A settings class is a frozen dataclass whose fields are made by `setting`, `changeable` or `adjustable`: a field states
its default, help, checks, choices, and whether it may change when a run is resumed, in one place. Its method `check`
raises a ValueError for what makes no run. Stored as JSON, it is flat. Nothing heavy is imported here: bad flags are
refused at once.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import shlex
import sys
from typing import Any

from fcdm_keras import arguments, signals
from fcdm_keras.files import is_utf8, make_folder, remove_leftovers, write_atomically
from fcdm_keras.formats.documents import CURE, as_schema, parse_json
from fcdm_keras.machine import engine, terminal

REQUIRED = dataclasses.MISSING  # in place of a default
WIDTHS = tuple[int, ...]  # the type of a field whose flag is such as 16,32,64
_TYPES = {int: arguments.whole, float: arguments.real, str: arguments.maybe, WIDTHS: arguments.widths}
ASKED = "asked"  # in place of whether a field may change: if its flag is given


def setting(default=REQUIRED, help=None, *checks, choices=None, may_change=False):
    """A field of a settings class that decides the result.

    Args:
        default: its value where none is given; without one it must be given.
        help: text of its flag; a field without has none.
        *checks: pairs of a predicate and what must hold, such as `at_least(1)`.
        choices: allowed values.
        may_change: whether it may differ when a run is resumed; `ASKED`: if its flag is given.
    """
    metadata = {"help": help, "checks": checks, "choices": choices, "may_change": may_change}
    return dataclasses.field(default=default, metadata=metadata)


def changeable(default, help=None, *checks, choices=None):
    """A field that does not decide the result, so that it may change when a run is resumed; otherwise a `setting`."""
    return setting(default, help, *checks, choices=choices, may_change=True)


def adjustable(default, help=None, *checks, choices=None):
    """A field that may change while a run is trained, but not unasked: if its flag is given; otherwise a `setting`."""
    return setting(default, help, *checks, choices=choices, may_change=ASKED)


def at_least(lowest):
    """A check: value ≥ lowest."""
    return (lambda value: value >= lowest, f"be at least {lowest}")


def above(bound):
    """A check: value > bound."""
    return (lambda value: value > bound, f"be above {bound}")


def below(bound, text=None):
    """A check: value < bound, which `text` names."""
    return (lambda value: value < bound, f"be below {text or bound}")


def share():
    """A check: 0 ≤ value < 1."""
    return (lambda value: 0 <= value < 1, "lie in [0, 1)")


def between(lowest, highest):
    """A check: lowest ≤ value ≤ highest."""
    return (lambda value: lowest <= value <= highest, f"lie in [{lowest}, {highest}]")


def filled():
    """A check: a name, not empty."""
    return (lambda value: value.strip() != "", "not be empty")


def check(settings):
    """Raises ValueError, in one sentence, for a field whose value its declaration rules out."""
    for field in dataclasses.fields(settings):
        value, rules = getattr(settings, field.name), field.metadata
        if field.type is float and not math.isfinite(value):
            raise ValueError(f"{field.name} must be finite. Received: {value}")
        if field.type is int and not -(2**63) <= value < 2**64:  # what JSON holds everywhere
            raise ValueError(f"{field.name} must be an integer of 64 bits. Received: {value}")
        if isinstance(value, str) and not is_utf8(value):
            raise ValueError(f"{field.name} must be text in UTF-8, as it is stored. Received: {value!r}; rename it")
        for holds, text in rules["checks"]:
            if not holds(value):
                raise ValueError(f"{field.name} must {text}. Received: {value}")
        if rules["choices"] and value not in rules["choices"]:
            raise ValueError(f"{field.name} must be one of {', '.join(rules['choices'])}. Received: {value!r}")


def may_change(settings_class):
    """Names of the fields that may differ when a run is resumed, asked or not."""
    return {field.name for field in dataclasses.fields(settings_class) if field.metadata["may_change"] is True}


def may_be_adjusted(settings_class):
    """Names of the fields that may differ when a run is resumed if their flags are given."""
    return {field.name for field in dataclasses.fields(settings_class) if field.metadata["may_change"] == ASKED}


def flag(name):
    """A field's flag: `num_classes` → `--num-classes`."""
    return "--" + name.replace("_", "-")


def flag_with(name, value):
    """A field's flag as it is typed for a value of JSON: `--num-classes 10`, `--no-flips`, `--source 'a b'`."""
    if isinstance(value, bool):
        return flag(name) if value else flag(f"no_{name}")
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return f"{flag(name)} {shlex.quote(text)}"


def add_flags(parser, settings_class, show_defaults=False):
    """Adds one flag per field that has a help text to an argument parser.

    Args:
        parser: an `argparse.ArgumentParser`.
        settings_class: a settings class.
        show_defaults: whether the help tells the field's default. The value of an unset flag is `None` all the same.
    """
    for field in dataclasses.fields(settings_class):
        text = field.metadata["help"]
        if text is None:
            continue
        options = {"help": text, "default": None}
        if show_defaults:
            shown = ",".join(map(str, field.default)) if field.type == WIDTHS else field.default
            options["help"] = f"{text} (default {shown})"
        if field.type is bool:
            parser.add_argument(flag(field.name), action=argparse.BooleanOptionalAction, **options)
        else:
            parser.add_argument(flag(field.name), type=_TYPES[field.type], choices=field.metadata["choices"], **options)


def given(options, settings_class):
    """The fields of a settings class that parsed flags give, as a dict."""
    values = {field.name: getattr(options, field.name, None) for field in dataclasses.fields(settings_class)}
    return {name: value for name, value in values.items() if value is not None}


def add_recipe_flags(parser, recipes, default):
    """Adds `--recipe` and the flags of its fields to an argument parser; unset means the recipe's value.

    Args:
        parser: an `argparse.ArgumentParser`.
        recipes: name → settings object.
        default: name of the recipe that is trained if none is named.
    """
    parser.add_argument(
        "--recipe", default=default, choices=tuple(recipes), help=f"training recipe (default: {default})"
    )
    add_flags(parser, type(recipes[default]))


def from_recipe(options, recipes):
    """The recipe named by parsed flags with the values that were given. Raises ValueError if they make no run."""
    recipe = recipes[options.recipe]
    asked = given(options, type(recipe))
    settings = dataclasses.replace(recipe, **asked).completed(asked)
    settings.check()
    return settings


def from_json(text, settings_class, others=False, where="This is no configuration of a run: it", cure=CURE):
    """The inverse of `to_json`.

    Args:
        text: JSON.
        settings_class: the class that was written.
        others: leave out what the class has no field for, to read what classes derived from it have in common.
        where, cure: what to call the text, and what to do about a bad one, in the sentence of an error.

    Raises:
        ValueError: for other text, and for settings that make no run.
    """
    values = parse_json(text, dict[str, Any], where, cure)
    if others:
        names = {field.name for field in dataclasses.fields(settings_class)}
        values = {name: value for name, value in values.items() if name in names}
    settings = as_schema(values, settings_class, where, cure)
    try:
        settings.check()
    except ValueError as error:
        raise ValueError(f"{where} makes no run: {str(error).rstrip('.')}; {cure}.") from None
    return settings


def add_device_flags(parser, model_parallel=False, processes=True):
    """Adds the flags that say which devices a command uses to an argument parser.

    Args:
        parser: an `argparse.ArgumentParser`.
        model_parallel: whether the command can cut one model over several devices.
        processes: whether it can run as several processes.
    """
    group, count = parser.add_argument_group("devices"), arguments.integer(1)
    group.add_argument("--devices", type=count, default=None, help="devices to use; default all that are visible")
    if model_parallel:
        group.add_argument(
            "--model-parallel",
            type=count,
            default=1,
            help="devices that share one copy of the model (JAX)",
        )
    if processes:
        group.add_argument(
            "--connect-timeout",
            type=count,
            default=50,
            help="seconds to wait for the job's other processes (50)",
        )


def add_overwrite_flag(parser):
    """Adds `--overwrite` to an argument parser; what it allows, `fcdm_keras.runs.outputs` says."""
    text = "replace what is there, also what another command made, once the new is whole"
    parser.add_argument("--overwrite", action="store_true", help=text)


def device_options(options):
    """What these flags say, as arguments of `distribution.setup`."""
    names = ("devices", "model_parallel", "connect_timeout")
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def check_used(parser, given, names, why):
    """Ends the program for the first of the options `names` that was given: it has no effect, and `why` says why."""
    for name in names:
        if name in given:
            parser.error(f"{flag(name)} has no effect: {why}; leave it out.")


def command_parser(module, description, **options):
    """The argument parser of the command `python -m <module>`, whose help is the module's docstring."""
    return arguments.Parser(prog=f"python -m {module}", description=description, **options)


@contextlib.contextmanager
def reported(stopped="Stopped.", computes=True):
    """The frame of a command: what its user can mend ends the program with one line, and a signal with `stopped`.

    A command that `computes` needs an engine, which is looked for first.
    """
    try:
        with terminal.lasting(), signals.ending(stopped):
            if computes:
                engine.check()
            yield
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        sys.exit(130)  # 128 and the number of SIGINT


def to_json(settings):
    """A settings object, or a dict, as JSON text; NaN and infinite numbers, which JSON has not, as null."""
    values = dataclasses.asdict(settings) if dataclasses.is_dataclass(settings) else settings
    return json.dumps(_without_nan(values), indent=2) + "\n"


def _without_nan(value):
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def changes(stored, now, free=()):
    """What differs between two dicts of settings: name → values there and now.

    Args:
        stored, now: dicts; what `now` lacks is not compared.
        free: names that may differ.
    """
    stored, now = json.loads(json.dumps(stored)), json.loads(json.dumps(now))  # tuples are lists in a file
    return {
        name: (stored.get(name), value) for name, value in now.items() if name not in free and stored.get(name) != value
    }


def differences(stored, now, free=(), hidden=()):
    """Phrases `name=… there, … now` for these `changes`; of the names in `hidden` no values, which are too long."""
    return [
        name if name in hidden else f"{name}={there!r} there, {here!r} now"
        for name, (there, here) in changes(stored, now, free).items()
    ]


def open_folder(folder, file, settings, what="run folder"):
    """Makes a folder where there is none, and stores settings in its `file`. Raises OSError if that cannot be done."""
    try:
        make_folder(folder)
        remove_leftovers(folder)
        write_atomically(folder / file, to_json(settings))
    except OSError as error:
        raise OSError(f"The {what} {folder} cannot be written to: {error.strerror or error}.") from None
