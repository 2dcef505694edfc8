"""What was changed while a run was trained, and when: `history.json` in its folder. Nothing heavy is imported here.

A list of entries, each of a `setting`, its value `before` and `after`, the `step` from which on it holds, and the
`date` of the command that asked for it.
"""

import time
from pathlib import Path

import msgspec

from fcdm_keras.files import write_atomically
from fcdm_keras.formats.documents import Count, Name, Struct, read_json
from fcdm_keras.options import to_json

HISTORY = "history.json"
_Value = bool | int | float | str | tuple[int, ...] | None


class _Entry(Struct):
    step: Count
    date: str
    setting: Name
    before: _Value
    after: _Value


def read_history(folder):
    """The entries of a run folder, the oldest first; none where nothing was changed.

    Raises:
        ValueError: the file is damaged.
    """
    file = Path(folder) / HISTORY
    if not file.exists():
        return []
    entries = read_json(file, tuple[_Entry, ...], "restore or remove it")
    return sorted(map(msgspec.to_builtins, entries), key=lambda entry: entry["step"])


def record(folder, step, changes):
    """Adds what is changed from `step` on: name → values before and after. Several changes at one step are one.

    Raises:
        ValueError: the history is damaged.
        OSError: it cannot be written.
    """
    entries = read_history(folder)
    for name, (before, after) in changes.items():
        at_once = [e for e in entries if (e["setting"], e["step"]) == (name, step)]
        entries = [entry for entry in entries if entry not in at_once]
        before = at_once[0]["before"] if at_once else before
        if before != after:
            date = time.strftime("%Y-%m-%d %H:%M:%S %Z")
            entries.append({"step": step, "date": date, "setting": name, "before": before, "after": after})
    _write(folder, entries)


def settle(folder, step):
    """Changes that were to hold from a later step on hold from `step`, which the run now goes on from."""
    entries = read_history(folder)
    if any(entry["step"] > step for entry in entries):
        _write(folder, [{**entry, "step": min(entry["step"], step)} for entry in entries])


def describe(entry):
    """`learning_rate 0.001 → 0.0001 from step 120 on`."""
    return f"{entry['setting']} {entry['before']} → {entry['after']} from step {entry['step']:,} on"


def _write(folder, entries):
    write_atomically(Path(folder) / HISTORY, to_json(entries))
