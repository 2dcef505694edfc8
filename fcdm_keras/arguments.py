"""What values may be: types for the flags of argparse, and checks of the same kinds for arguments of Python.

Every flag of every command has one of these types, or one of the declared checks of a setting
(`fcdm_keras.options.setting`): what lies out of range ends a command before anything is imported, read or made.
"""

import argparse
import difflib
import math
import numbers
import os
import re
import sys

from fcdm_keras.files import is_utf8

COUNTED = 2**31 - 1  # what is counted, or numbered, in int32
SIDE = 65_536  # pixels of an image's side
LARGEST = float.fromhex("0x1.fffffep127")  # of float32
_SHOWN = 60  # characters of what was received
_NAME, _PATH = 255, 4095  # bytes of a file's name and of a path on Linux

# The names in `fcdm_keras.diffusion.samplers.SAMPLERS`, and the objectives that each is for.
SAMPLERS = {
    "ddpm": ("iddpm",),
    "ddim": ("iddpm",),
    "euler_maruyama": ("flow",),
    "stochastic_heun": ("flow",),
    "ode_euler": ("flow",),
    "ode_heun": ("flow",),
    "ode_dopri5": ("flow",),
    "dpmpp_2m": ("iddpm", "flow"),
    "dpmpp_2m_sde": ("iddpm", "flow"),
    "unipc": ("iddpm", "flow"),
}
MULTISTEP = ("dpmpp_2m", "dpmpp_2m_sde", "unipc")
LEAST_STEPS = {"euler_maruyama": 2, "stochastic_heun": 2, **dict.fromkeys(MULTISTEP, 2)}  # of others, 1
OBJECTIVES = ("iddpm", "flow")  # names in `fcdm_keras.diffusion.objectives.OBJECTIVES`
COUNTERPARTS = {"ddpm": "euler_maruyama", "ddim": "ode_euler"}  # what draws a flow where a recipe has an iDDPM's
FLOW_PATHS = ("linear", "gvp", "vp")
FLOW_PREDICTIONS = ("velocity", "noise", "score")
FLOW_WEIGHTINGS = ("none", "velocity", "likelihood")
FLOW_SETTINGS = ("flow_path", "flow_prediction", "flow_weighting", "flow_times")
FLOW_TIMES = ("uniform", "logit_normal")
DIFFUSION_FORMS = ("sigma", "linear", "decreasing", "increasing_decreasing", "constant", "sbdm")
GRIDS = ("uniform", "quadratic", "karras", "logsnr")
LAST_STEPS = ("mean", "tweedie", "euler")
LAST_STEP_SIZE = (1e-3, 0.999)  # bounds
TOLERANCE = (1e-7, 1.0)  # bounds


class Parser(argparse.ArgumentParser):
    """Ends the program with one short sentence."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else list(args)
        for text in args:
            if text.startswith("--") and text.endswith("=--"):  # which argparse takes for an empty list
                self.error(f"argument {text[:-3]}: expected a value. Received: '--'")
        return super().parse_known_args(args, namespace)

    def error(self, message):
        """As in argparse; of long words the beginning, and what a terminal would not show as it is written."""
        message = re.sub(r"^argument (\S+): (?=must )", r"\1 ", message)
        message = re.sub(r"\S{500,}", lambda long: f"{long[0][:_SHOWN]}… ({len(long[0]):,} characters)", message)
        super().error("".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in message))


def integer(lowest, highest=COUNTED):
    """A type: integers in [lowest, highest]."""
    return lambda text: _within(whole(text), lowest, highest, text)


def number(lowest, highest=LARGEST):
    """A type: finite numbers in [lowest, highest]."""
    return lambda text: _within(real(text), lowest, highest, text)


def whole(text):
    """A type: integers; the declaration of a setting says in which range."""
    return _read(int, text, "an integer")


def real(text):
    """A type: finite numbers; the declaration of a setting says in which range."""
    value = _read(float, text, "a number")
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be finite. Received: {shown(text)}")
    return value


def widths(text):
    """A type: `"16,32,64"` → `(16, 32, 64)`."""
    try:
        values = tuple(map(integer(1, SIDE), text.split(",")))
    except argparse.ArgumentTypeError:
        values = ()
    if not values:
        raise argparse.ArgumentTypeError(f"expected positive widths such as 16,32,64. Received: {shown(text)}")
    return values


def word(text):
    """A type: a name, or a path that can be one; never empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"must not be empty: leave it out, or give a name. Received: {shown(text)}")
    return maybe(text)


def maybe(text):
    """As `word`, or empty, which is none."""
    data = os.fsencode(text)
    fits = len(data) <= _PATH and max(map(len, data.split(b"/"))) <= _NAME and b"\0" not in data
    if not fits or text and not text.strip():
        raise argparse.ArgumentTypeError(
            f"must be a name or path of at most {_PATH} bytes, {_NAME} between slashes. Received: {shown(text)}"
        )
    return text


def listed(text):
    """A type: names between commas, at least one."""
    if not text.replace(",", "").strip():
        raise argparse.ArgumentTypeError(f"must name at least one. Received: {shown(text)}")
    return texts(text)


def texts(text):
    """A type: text in UTF-8, of any length, also empty."""
    if not is_utf8(text):
        raise argparse.ArgumentTypeError(f"must be text in UTF-8. Received: {shown(text)}")
    return text


def shown(text):
    """What was received, on one line, as Python writes it; the beginning of what is long."""
    return ascii(text) if len(text) <= _SHOWN else f"{ascii(text[:_SHOWN])}… ({len(text):,} characters)"


def check_integer(what, value, lowest=1, highest=COUNTED):
    """The value as an int. Raises ValueError, which begins with `what`, unless it is an integer in [lowest, highest].

    Integers of NumPy are integers; `True`, `2.0` and `"2"` are none.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not lowest <= value <= highest:
        large = highest >= SIDE and not (isinstance(value, numbers.Integral) and value > highest)
        least = "a positive integer" if lowest == 1 else f"an integer of at least {lowest}"
        kind = least if large else f"an integer in [{lowest}, {highest}]"
        raise ValueError(f"{what} must be {kind}. Received: {_brief(value)}")
    return int(value)


def check_number(what, value, lowest=0, highest=LARGEST, text=None):
    """The value as a float. Raises ValueError, as `check_integer` does, unless it is a number in [lowest, highest].

    `text` says in other words what it must do. A scalar array or tensor on the host is a number too.
    """
    number = value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
    if isinstance(number, bool) or not isinstance(number, numbers.Real) or not lowest <= number <= highest:
        bound = f"be finite and at least {lowest}" if highest == LARGEST else f"lie in [{lowest}, {highest}]"
        raise ValueError(f"{what} must {text or bound}. Received: {_brief(value)}")
    return float(number)


def check_share(what, value):
    """As `check_number`, of numbers in [0, 1)."""
    return check_number(what, value, 0, math.nextafter(1, 0), "lie in [0, 1)")


def one_of(what, value, names):
    """The value, one of `names`. Raises ValueError for another, which offers the nearest of them."""
    if not isinstance(value, str) or value not in names:
        near = difflib.get_close_matches(str(value), names, n=3, cutoff=0.5)
        offer = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
        raise ValueError(f"There is no {what} {_brief(value)}: {offer}")
    return value


def check_bool(what, value):
    """Raises ValueError unless the value is `True` or `False`; NumPy's are."""
    if not isinstance(value, bool) and type(value).__name__ not in ("bool_", "bool"):
        raise ValueError(f"{what} must be True or False. Received: {_brief(value)}")
    return bool(value)


def given(parse, arguments):
    """The names of the options that a command line gives a value, whether or not it is the default.

    Args:
        parse: `parse(arguments, namespace)` of an `argparse.ArgumentParser`.
        arguments: as it takes them.
    """
    unset = object()  # argparse sets no default where there is a value
    names = vars(parse(arguments, argparse.Namespace()))
    values = vars(parse(arguments, argparse.Namespace(**dict.fromkeys(names, unset))))
    return {name for name, value in values.items() if value is not unset}


def _brief(value):
    return f"{value!r}"[:200]


def _read(kind, text, what):
    """Digits of other scripts, which Python reads too, are no numbers here."""
    try:
        if not text.isascii() or len(text) > 400:
            raise ValueError
        return kind(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"must be {what}. Received: {shown(text)}") from None


def _within(value, lowest, highest, text):
    if not lowest <= value <= highest:
        bound = f"be at least {lowest}" if highest in (COUNTED, LARGEST) and value < lowest else None
        bound = bound or f"lie in [{lowest}, {highest}]"
        raise argparse.ArgumentTypeError(f"must {bound}. Received: {shown(text)}")
    return value


def check_sampler(sampler, objective):
    """Raises ValueError for a sampler of another objective; those that are not in `SAMPLERS` are for any."""
    fitting = SAMPLERS.get(sampler, (objective,))
    if objective in OBJECTIVES and objective not in fitting:
        own = ", ".join(name for name, objectives in SAMPLERS.items() if objective in objectives)
        raise ValueError(
            f"The sampler {sampler} draws from networks of the objective {' or '.join(fitting)}, and this one's is "
            f"{objective}: take one of {own}."
        )
