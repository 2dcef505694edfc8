"""The frame of the fuzz tests: kinds of files, what is done to them, and what must hold.

A kind is a way to write a valid sample and to read it by its public door. The modules `kinds_*.py` beside this one each
have a dict `KINDS`, name → `Kind`. Whatever is done to a sample, the door gives a value or one of our errors: a
ValueError or OSError of one line, within `SECONDS` and `MEMORY`.

    make fuzz SECONDS=600           # every kind in turn, from random seeds, until the time is up

What breaks a door is put into `corpus/KIND/`, made as small as Hypothesis can, and read by `tests/test_fuzz.py` from
then on.
"""

import argparse
import dataclasses
import hashlib
import importlib
import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
SECONDS, MEMORY = 1.0, 2**30  # of CPU, and bytes, that a door may take
_COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("ci", max_examples=50, derandomize=True, phases=[Phase.explicit, Phase.generate], **_COMMON)
settings.register_profile("long", max_examples=300, **_COMMON)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        write: `write(folder)` fills an empty folder with a valid sample, and returns the path of the file in it that is
            changed.
        read: `read(folder)` reads the sample by its public door; it may change the folder.
        share: of the profile's examples that it gets, for doors that take long.
    """

    write: Callable
    read: Callable
    share: float = 1.0


class Broken(AssertionError):
    """A door that gave neither a value nor one of our errors; `data` is what the file held."""

    def __init__(self, text, data):
        super().__init__(text)
        self.data = data


def kinds():
    """All kinds by name, of all modules beside this one."""
    sys.path[:0] = [str(folder) for folder in (HERE, HERE.parent, HERE.parents[1])]
    modules = [importlib.import_module(file.stem) for file in sorted(HERE.glob("kinds_*.py"))]
    return {name: kind for module in modules for name, kind in module.KINDS.items()}


class Door:
    """A kind with its valid sample, in a folder of its own that is made anew for each try. A context."""

    def __init__(self, kind):
        self.kind = kind

    def __enter__(self):
        self._place = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self._sample = self._place / "sample"
        self._sample.mkdir()
        file = self.kind.write(self._sample)
        self.data, self._name = file.read_bytes(), file.relative_to(self._sample)
        self.kind.read(self._copy())  # once unmeasured, for what is imported or compiled at first
        return self

    def __exit__(self, *_):
        shutil.rmtree(self._place, ignore_errors=True)

    def _copy(self):
        folder = self._place / "tried"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._sample, folder)
        return folder

    def read(self, data):
        """Reads the sample with `data` in place of its file's bytes. Returns whether it was taken; raises `Broken`."""
        folder = self._copy()
        (folder / self._name).write_bytes(data)
        peak, began, taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time(), True
        try:
            self.kind.read(folder)
        except (ValueError, OSError) as error:
            taken = False
            if isinstance(error, UnicodeError) or not str(error).strip() or "\n" in str(error):
                raise Broken(f"no sentence: {error!r}", data) from error
        except Exception as error:
            raise Broken(f"{type(error).__name__}: {error}", data) from error
        used = time.process_time() - began
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
        if used > SECONDS or grown > MEMORY:
            raise Broken(f"{used:.1f} s and {grown:,} bytes for {len(data):,} bytes", data)
        return taken

    def truncated(self, most):
        """Reads the sample cut at every length, or at `most` of them, spread evenly."""
        step = max(1, -(-len(self.data) // most))
        for length in range(0, len(self.data), step):
            self.read(self.data[:length])

    def mutated(self, profile, start=None):
        """Reads mutations of the sample, as many as the profile has; from the seed `start`, if given."""
        chosen = settings.get_profile(profile)
        chosen = settings(chosen, max_examples=max(1, round(chosen.max_examples * self.kind.share)))

        @chosen
        @given(mutations(self.data))
        def run(data):
            self.read(data)

        (run if start is None else seed(start)(run))()


def _of(values):
    """A strategy of these, whose own description stays short where they are long."""
    return st.integers(0, len(values) - 1).map(lambda place: values[place])


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 1, 2**31, 2**53 + 1, 10**30, 10**400, 1.5, -0.0, 1e308, float("nan"), float("inf")]),
    st.text(max_size=8),
    _of(["", "null", "3", "../../x", "x" * 200_000, "\ud83d", "\udcff", "a\nb", "\0"]),
)
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
_LITERALS = [b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 100_000, b'{"a":' * 100_000, b'"\\ud83d"', b"\xff\xfe"]


def mutations(data):
    """A strategy of bytes: a valid file's with something done to them."""
    choices = [_cut(data), _flipped(data), _patched(data), _repeated(data), _scaled(data)]
    try:
        value = json.loads(data)
    except ValueError:
        return st.one_of(*choices)
    # `float` stands in for what a document rarely is: NaN and infinite numbers are written as Python does.
    other = documents.map(lambda found: json.dumps(found, allow_nan=True).encode())
    doubled = st.sampled_from(list(value) if isinstance(value, dict) and value else [""]).map(
        lambda name: data.rstrip()[:-1] + b", " + json.dumps({name: 1}).encode()[1:]
    )
    return st.one_of(*choices, other, doubled, *[_retyped(value)] * 4)


def _cut(data):
    return st.integers(0, len(data)).map(lambda length: data[:length])


def _flipped(data):
    def flip(places):
        changed = bytearray(data)
        for place in places:
            changed[place // 8] ^= 1 << place % 8
        return bytes(changed)

    return st.lists(st.integers(0, 8 * len(data) - 1), min_size=1, max_size=3).map(flip)


def _patched(data):
    """Some bytes replaced by others, or by a literal that is no JSON or too much of it."""
    piece = _of(_LITERALS) | st.binary(max_size=12)
    spans = st.tuples(st.integers(0, len(data)), st.integers(0, 12), piece)
    return spans.map(lambda span: data[: span[0]] + span[2] + data[span[0] + span[1] :])


def _repeated(data):
    spans = st.tuples(st.integers(0, len(data)), st.integers(1, 64), st.integers(2, 50))
    return spans.map(lambda s: data[: s[0]] + data[s[0] : s[0] + s[1]] * s[2] + data[s[0] + s[1] :])


def _scaled(data):
    """A four-byte number multiplied, as in binary headers; a digit followed by more of them, as in text."""

    def scale(drawn):
        place, factor = drawn
        number = int.from_bytes(data[place : place + 4], "little")
        return data[:place] + (number * factor % 2**32).to_bytes(4, "little") + data[place + 4 :]

    places = [i for i, byte in enumerate(data) if byte in b"0123456789"]
    more = st.tuples(st.sampled_from(places or [0]), st.sampled_from([b"0", b"000000", b"0" * 18, b"-", b".5", b"e9"]))
    longer = more.map(lambda drawn: data[: drawn[0] + 1] + drawn[1] + data[drawn[0] + 1 :])
    factors = st.tuples(st.integers(0, max(0, len(data) - 4)), st.sampled_from([2, 255, 2**16, 2**31 - 1]))
    return factors.map(scale) | longer


def _places(value, path=()):
    """Paths of all values in a document, the document's own first."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in inner:
        yield from _places(child, (*path, name))


def _retyped(value):
    """One value of a document replaced, removed, renamed, or exchanged with another."""
    paths = list(_places(value))[1:] or [()]

    @st.composite
    def changed(draw):
        document = json.loads(json.dumps(value))
        path = draw(st.sampled_from(paths))
        if not path:
            return json.dumps(draw(documents)).encode()
        parent, old = _at(document, path[:-1]), _at(document, path)
        what = draw(st.sampled_from(["replace", "remove", "rename", "exchange", "wrap", "times"]))
        if what == "remove":
            del parent[path[-1]]
        elif what == "rename" and isinstance(parent, dict):
            parent[draw(st.text(max_size=8))] = parent.pop(path[-1])
        elif what == "exchange":
            parent[path[-1]] = _at(value, draw(st.sampled_from(paths)))
        elif what == "wrap":
            parent[path[-1]] = draw(st.sampled_from([[old], {"a": old}, str(old), [], {}, [old] * 1000]))
        elif what == "times" and isinstance(old, (int, float)):
            parent[path[-1]] = old * draw(st.sampled_from([-1, 0, 2, 1000, 2**32, 1e200, 0.5]))
        else:
            parent[path[-1]] = draw(documents)
        return json.dumps(document).encode()

    return changed()


def _at(document, path):
    for name in path:
        document = document[name]
    return document


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--kinds", default="", help="only those whose name holds this")
    options = parser.parse_args()
    end, tried, broken = time.monotonic() + options.seconds, 0, 0
    chosen = {name: kind for name, kind in kinds().items() if options.kinds in name}
    while time.monotonic() < end:
        for name, kind in chosen.items():
            start = random.getrandbits(32)
            try:
                with Door(kind) as door:
                    if tried < len(chosen):
                        door.truncated(2000)
                    door.mutated("long", start)
            except Broken as error:
                file = CORPUS / name / hashlib.sha256(error.data).hexdigest()[:12]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(error.data)
                print(f"{name}, seed {start}: {error}; kept as {file}", flush=True)
                broken += 1
            tried += 1
            if time.monotonic() > end:
                break
    print(f"{tried} rounds over {len(chosen)} kinds; {broken} broken")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
