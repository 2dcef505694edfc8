"""The kill campaign: every command that writes is ended at any moment, then run again: `make kill KILLS=300 SEED=1`.

    python tests/kill.py --kills 300 --seed 1 --backends torch jax --commands digits sample

A trial ends a command, in a process of its own, by kill -9 after a random time, by kill -9 before a random one of its
file operations, or there by a power cut, which takes what was not synced (`power.py`). Then the same command runs to
its end, twice, and what it leaves must be what an undisturbed one leaves, bit for bit, but for times and speeds. Where
a command replaces something, the old or the new must be there, whole, after the kill.
"""

import argparse
import collections
import io
import json
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import processes  # noqa: E402
from power import cut, state, watched  # noqa: E402
from suite import CHEAP_COMPILATION, ENVIRONMENT  # noqa: E402

KINDS = ("time", "operation", "power")
TIMES = {"seconds", "date_saved", "date", "images_per_second", "sha256", "images/s"}  # differ from run to run
ASIDE = {"tensorboard", ".owner"}
GOLDEN = ROOT / "tests" / "golden"

# A command's {out} is what it writes, {in} the folder of what the commands above it have written.
RUN = "--global-batch-size=4 --num-sampling-steps=1 --log-every=2 --ckpt-every=1 --keep-last=2 --sample-every=2"
DRAWN = "--num-sampling-steps=1 --batch-size=2 --npz --output={out}"
CLIP = "--text-encoder={in}/clip.json --text-weights=none"
STORED = f"--vae={GOLDEN}/vae --image-size=32 --output={{out}}"
CONVERTED = f"fcdm_keras.convert {GOLDEN}/fcdm/fcdm_checkpoint.pt {{out}}"
COMMANDS = {
    "digits": f"train_imagenet.py {RUN} --steps=4 --eval-every=2 --num-eval-samples=4 --results-dir={{out}}",
    "photos": f"train_imagenet.py --recipe=photos {RUN} --steps=3 --image-size=16 --results-dir={{out}}",
    "shapes": f"train_coco.py {RUN} --steps=3 --num-captions=12 --autoencoder-steps=2 {CLIP} --results-dir={{out}}",
    "train_vae": "fcdm_keras.train_vae --steps=3 --image-size=16 --batch-size=2 --ckpt-every=1 --output={out}",
    "convert": CONVERTED,
    "convert-over": f"{CONVERTED} --overwrite",
    "sample": f"fcdm_keras.sample {{in}}/digits/digits/preset --num-samples=5 {DRAWN}",
    "sample-over": f"fcdm_keras.sample {{in}}/digits/digits --num-samples=5 --seed=1 {DRAWN} --overwrite",
    "encode": f"fcdm_keras.encode --source=photos --shard-size=2 --batch-size=2 {STORED}",
    "encode-over": f"fcdm_keras.encode --source=photos --no-flips {STORED} --overwrite",
    "t2i.encode": f"t2i.encode --source={{in}}/coco --split=train2017 --shard-size=2 {CLIP} {STORED}",
    "t2i.sample": f"t2i.sample {{in}}/shapes/shapes red blue circle {DRAWN}",
    "reference": "fcdm_keras.evaluate {in}/a.npz --write-reference={out}/ref.npz --features=pixels",
    "json": "fcdm_keras.evaluate {in}/a.npz --reference={in}/a.npz --json={out}/a.json --features=pixels",
    "report": "fcdm_keras.report {in}/digits/digits --output={out}/report.html",
}
# What lies at {out} before, in {in}; "" is an empty folder.
BEFORE = {"convert-over": "digits/digits/preset", "sample-over": "sample", "encode-over": "encode"}
BEFORE |= dict.fromkeys(("reference", "json", "report"), "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backends", nargs="+", default=["jax", "torch", "tensorflow"])
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    options = parser.parse_args()
    os.environ.update({**ENVIRONMENT, "TF_CPP_MIN_LOG_LEVEL": "2", "XLA_FLAGS": CHEAP_COMPILATION})
    chance, lost, done = random.Random(options.seed), [], collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        for place, backend in enumerate(options.backends):
            (home := Path(folder) / backend).mkdir()
            warm = processes.start_warm({backend}, home)
            try:
                campaign = Campaign(backend, home)
                for number in range(place, options.kills, len(options.backends)):
                    name, kind = options.commands[number % len(options.commands)], chance.choice(KINDS)
                    told = campaign.trial(name, kind, chance)
                    done[kind] += 1
                    if told:
                        lost.append(f"{backend} {name}: {told}")
                        print(f"LOST {lost[-1]}", flush=True)
            finally:
                for process in warm:
                    process.stdin.close()
                    process.wait()
    told = ", ".join(f"{count} by {kind}" for kind, count in sorted(done.items()))
    where = f"with seed {options.seed} on {', '.join(options.backends)}"
    print(f"=== {done.total()} kills ({told}) {where}: {len(lost)} lost ===")
    return 1 if lost else 0


class Campaign:
    """The trials of one backend: inputs, and what undisturbed commands leave, are made when they are needed."""

    def __init__(self, backend, folder):
        self.backend, self.home = backend, folder / "inputs"
        self.place = folder / "place"
        self.environment = {**os.environ, "KERAS_BACKEND": backend}  # before imports change it
        self.expected, self.whole, self.operations, self.seconds = {}, {}, {}, {}
        self.home.mkdir()
        self.place.mkdir()
        make_inputs(self.home)

    def trial(self, name, kind, chance):
        """One command, ended and run again. Returns what was lost, or an empty text."""
        self.undisturbed(name)
        old = self.begin(name)
        before, journal = state(self.place), self.place.with_name("journal")
        moment = chance.randint(1, self.operations[name])
        if kind == "time":
            process = self.start(name)
            time.sleep(chance.uniform(0, self.seconds[name]))
            process.kill()
            process.communicate()
            moment = "at a random time"
        else:
            self.start(name, moment, journal if kind == "power" else None).communicate()
            moment = f"before operation {moment} of {self.operations[name]}"
        if kind == "power":
            cut(self.place, before, journal)
            journal.unlink()
        if name.endswith("-over") and contents(self.out) not in (old, self.expected[name]):
            return f"{kind}, {moment}: neither the old nor the new is there"
        for _ in range(2):
            process = self.start(name)
            output = process.communicate()[0]
            if process.returncode:
                return f"{kind}, {moment}: the same command fails then: {output[-2000:]}"
        different = compare(contents(self.place), self.whole[name])
        return f"{kind}, {moment}: {different}" if different else ""

    out = property(lambda self: self.place / "out")

    def begin(self, name):
        """Puts what was there before at the place of the output. Returns its contents."""
        there = BEFORE.get(name)
        if there:
            self.undisturbed(there.partition("/")[0])
        shutil.rmtree(self.place)
        self.place.mkdir()
        if there:
            shutil.copytree(self.home / there, self.out)
        elif there == "":
            self.out.mkdir()
        return contents(self.out) if there else None

    def undisturbed(self, name):
        """Runs a command as it is, once; keeps what it leaves, for commands that read it, too."""
        if name in self.expected:
            return
        for other in COMMANDS:
            if f"{{in}}/{other}/" in COMMANDS[name]:
                self.undisturbed(other)
        self.begin(name)
        began = time.monotonic()
        process = self.start(name, count=self.home / f"{name}.count")
        output = process.communicate()[0]
        if process.returncode:
            raise SystemExit(f"error: {name} on {self.backend} fails undisturbed:\n{output}")
        self.seconds[name] = time.monotonic() - began
        self.operations[name] = int((self.home / f"{name}.count").read_text())
        self.expected[name], self.whole[name] = contents(self.out), contents(self.place)
        shutil.copytree(self.out, self.home / name)
        print(f"{self.backend} {name}: {self.operations[name]} operations, {self.seconds[name]:.1f} s", flush=True)

    def start(self, name, end_at=None, journal=None, count=None):
        command = COMMANDS[name].format(**{"in": self.home, "out": self.out}).split()
        options = {"end_at": end_at, "journal": journal and str(journal), "count": count and str(count)}
        call = f"kill.work({command!r}, {str(self.place)!r}, **{options!r})"
        program = f"import sys; sys.path[:0] = {sys.path[:2]!r}; import kill; {call}"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return processes.start([sys.executable, "-c", program], cwd=ROOT, env=self.environment, **pipes)


def make_inputs(folder):
    """What commands read that none of them makes."""
    import numpy as np
    from test_coco import official
    from text_helpers import write_config

    np.savez(folder / "a.npz", arr_0=np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3)).astype("uint8"))
    official(folder / "coco")
    os.rename(write_config(folder), folder / "clip.json")


def work(command, place, end_at=None, journal=None, count=None):
    """Runs a command with small settings, in a process that is ended before an operation; counts them otherwise."""
    import functools

    from fcdm_keras import recipes
    from fcdm_keras.data.embedded import PhotoSource
    from fcdm_keras.runs import data, datasets

    recipes.MODEL_SIZES["XS"] = recipes.ModelSize(8, (0, 0, 1, 0, 0))
    PhotoSource.__len__ = lambda self: 3
    data.SCORED_SAMPLES = 10
    small = {"steps": 2, "ckpt_every": 1, "batch_size": 2, "image_size": 16, "log_every": 1, "sample_every": 1}
    datasets.VAEConfig = functools.partial(recipes.VAEConfig, **small)
    if command[0].startswith(("t2i", "train_coco")):
        import text_helpers

        text_helpers.score_few()
    watch = watched(Path(place), end_at=end_at, journal=journal) if end_at or count else None
    sys.argv = command
    try:
        if command[0].endswith(".py"):
            runpy.run_path(str(ROOT / command[0]), run_name="__main__")
        else:
            runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    finally:
        if count:
            Path(count).write_text(str(watch.count))


def contents(folder):
    """Every file below a folder by its name, without what differs from run to run."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.is_file() and not ASIDE & set(file.relative_to(folder).parts):
            found[name] = _content(file.name, file.read_bytes())
    return found


def _content(name, content):
    if name.endswith(".h5"):
        return _arrays(content)
    if name.endswith(".json"):
        return json.dumps(_timeless(json.loads(content)))
    if name.endswith(".csv"):
        rows = [line.split(",") for line in content.decode().splitlines()]
        kept = [i for i, column in enumerate(rows[0]) if column not in TIMES]
        return [[row[i] for i in kept] for row in rows]
    if name.endswith(".keras"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {part: _content(part, archive.read(part)) for part in sorted(archive.namelist())}
    return content


def _timeless(value):
    if isinstance(value, dict):
        named = {"name": re.sub(r"_\d+$", "", str(value["name"]))} if "name" in value else {}  # Keras counts its models
        return {**{name: _timeless(part) for name, part in value.items() if name not in TIMES}, **named}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


def _arrays(content):
    import h5py

    with h5py.File(io.BytesIO(content)) as file:
        every = []
        file.visit(every.append)
        return {name: file[name][()].tobytes() for name in every if isinstance(file[name], h5py.Dataset)}


def compare(found, expected):
    """How two contents differ, in a phrase, or an empty text."""
    missing, more = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    other = [name for name in found.keys() & expected.keys() if found[name] != expected[name]]
    told = {"missing": missing, "more": more, "different": sorted(other)}
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in told.items() if names)


if __name__ == "__main__":
    sys.exit(main())
