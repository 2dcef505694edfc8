"""The whole suite, on all backends at once: `make test`.

    python tests/suite.py                                   # everything; for CI
    python tests/suite.py --quick                           # what a change to the core needs
    python tests/suite.py --backends torch -k grn tests/test_backbone.py

A unit of work is a test file on one backend. Three units run at a time, the longest first, for some of them wait more
than they compute; each in a process of its own that `warm.py` forks, which gives all its memory back at its end. The
last lines tell what it cost.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import processes

ROOT = Path(__file__).parents[1]
BACKENDS = ("jax", "torch", "tensorflow")
UNIT_LIMIT = 1200  # seconds
SLOWEST = 10
# One thread for each unit: two OpenMP pools on two cores wait for each other most of the time. Many units compile the
# same programs on JAX, most of them small.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "1",
}
# Two thirds less work for XLA's compiler on the CPU, where rounding and kernels are not the subject.
CHEAP_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
FULLY_COMPILED = (
    "compat",
    "diffusion",
    "golden",
    "kernels",
)
# CPU seconds of the longest units on JAX, PyTorch and TensorFlow, roughly: they start first, in this order.
SECONDS = {
    "distribution": (105, 94, 162),
    "trainer": (70, 15, 150),
    "golden": (79, 5, 35),
    "backbone": (47, 4, 12),
    "compat": (59, 25, 33),
    "t2i": (45, 16, 57),
    "tasks": (19, 7, 43),
    "resume": (42, 33, 38),
    "training_data": (8, 42, 11),
    "autoencoders": (21, 7, 36),
    "train_vae": (21, 34, 27),
    "checkpoint": (15, 34, 24),
    "checkpoint_forms": (0, 33, 0),
    "fuzz": (0, 12, 0),
    "hosts": (0, 85, 0),
    "export": (25, 30, 15),
    "gradients": (30, 3, 30),
    "presets": (22, 10, 10),
    "beside": (15, 15, 15),
    "lora": (15, 9, 16),
    "state": (26, 6, 46),
    "batches": (25, 9, 27),
    "runs": (14, 10, 18),
    "suite": (20, 29, 20),
    "imports": (20, 36, 10),
    "kernels": (24, 5, 17),
    "coco": (0, 18, 0),
    "latent_store": (10, 20, 14),
    "autoencoder_files": (12, 17, 19),
    "autoencoder_layouts": (9, 19, 8),
    "sample": (10, 21, 10),
}


@dataclasses.dataclass
class Unit:
    """A test file on a backend, while it waits, runs, and when it has ended."""

    file: Path
    backend: str
    folder: Path
    process: processes.Forked | subprocess.Popen | None = None
    began: float = 0.0
    seconds: float = 0.0
    failure: str = ""

    @property
    def name(self):
        return f"{self.file.stem}-{self.backend}"

    def expected(self):
        return SECONDS.get(self.file.stem.removeprefix("test_"), (10, 5, 10))[BACKENDS.index(self.backend)]

    def start(self, quick, expression):
        marks = ["quick"] * quick + ["not no_backend"] * (self.backend != "torch")
        command = [sys.executable, "-m", "pytest", str(self.file), "-p", "no:cacheprovider", "-m", " and ".join(marks)]
        command += ["-k", expression] if expression else []
        record = str(self.folder / f"{self.name}.jsonl")
        environment = {**os.environ, "KERAS_BACKEND": self.backend, "SUITE_RECORD": record}
        if self.backend == "jax" and (quick or self.file.stem.removeprefix("test_") not in FULLY_COMPILED):
            environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {CHEAP_COMPILATION}".strip()
        with open(self.folder / f"{self.name}.log", "w") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
            self.process = processes.start(command, cwd=ROOT, env=environment, **streams)
        self.began = time.monotonic()

    def ended(self):
        """Whether it has; ends it if it takes too long."""
        self.seconds = time.monotonic() - self.began
        if self.process.poll() is None and self.seconds > UNIT_LIMIT:
            self.process.kill()
            self.process.wait()
            self.failure = f"took longer than {UNIT_LIMIT} s"
        return self.process.poll() is not None

    def judge(self):
        """Its tests, as (name, outcome, seconds, CPU seconds, peak KiB); says in `failure` what is wrong with it."""
        record, status = self.folder / f"{self.name}.jsonl", self.process.returncode
        tests = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
        if not self.failure and status < 0:
            self.failure = f"died by signal {-status}"
        elif not self.failure and status:
            self.failure = {1: "failed", 5: "ran no test"}.get(status, f"ended with exit code {status}")
        return tests


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--quick", action="store_true", help="only the tests marked `quick`")
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="only the tests that pytest chooses by it")
    parser.add_argument("--workers", type=int, default=3, help="units that run at a time")
    parser.add_argument("--keep", type=Path, help="folder for the output of all units, and a record of every test")
    options = parser.parse_args()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        units = units_of(options, folder)
        began, warm = time.monotonic(), processes.start_warm({unit.backend for unit in units}, Path(temporary))
        try:
            tests = run_all(units, options)
        finally:
            for process in warm:
                process.stdin.close()  # its children end with it
                process.wait()
        return report(units, tests, time.monotonic() - began)


def units_of(options, folder):
    """All units, the longest first; of a file whose tests do not depend on the backend, one."""
    units = []
    for file in sorted(options.files or (ROOT / "tests").glob("test_*.py")):
        text = file.read_text()
        once = "\npytestmark = pytest.mark.no_backend\n" in text or "\npytestmark = [pytest.mark.no_backend" in text
        backends = [backend for backend in options.backends if backend == "torch" or not once]
        if options.quick:
            backends = [b for b in backends if "mark.quick" in text or (b == "torch" and "@quick_on_torch" in text)]
        units += [Unit(file, backend, folder) for backend in backends]
    return sorted(units, key=Unit.expected, reverse=True)


def run_all(units, options):
    """Runs the units, some at a time. Returns every unit's tests by its name."""
    waiting, running, tests = list(units), [], {}
    while waiting or running:
        while waiting and len(running) < options.workers:
            running.append(waiting.pop(0))
            running[-1].start(options.quick, options.k)
        time.sleep(0.05)
        for unit in [unit for unit in running if unit.ended()]:
            running.remove(unit)
            tests[unit.name] = unit.judge()
            if unit.failure:
                print((unit.folder / f"{unit.name}.log").read_text())
            passed = sum(outcome == "passed" for _, outcome, *_ in tests[unit.name])
            print(f"{unit.name:40} {passed:4} passed in {unit.seconds:5.0f} s  {unit.failure}", flush=True)
    return tests


def report(units, tests, seconds):
    """Prints what each backend's tests cost, and the result. Returns the exit code."""
    passed = failed = 0
    for backend in BACKENDS:
        own = [unit for unit in units if unit.backend == backend]
        if not own:
            continue
        every = [test for unit in own for test in tests[unit.name]]
        good, bad = (sum(test[1] == outcome for test in every) for outcome in ("passed", "failed"))
        passed, failed = passed + good, failed + bad
        cpu = sum(test[3] for test in every)
        wall = sum(unit.seconds for unit in own)
        peak = max((test[4] for test in every), default=0) / 2**20
        cost = f"{cpu:.0f} s of CPU, {wall:.0f} s of units, {peak:.1f} GiB at most"
        print(f"\n{backend}: {good} passed, {bad} failed; {cost}")
        for name, _, took, used, _ in sorted(every, key=lambda test: -test[3])[:SLOWEST]:
            print(f"  {used:6.1f} s of CPU, {took:6.1f} s  {name}")
    broken = [unit for unit in units if unit.failure]
    for unit in broken:
        print(f"\nFAILED {unit.name}: {unit.failure}")
        for name, outcome, *_ in tests[unit.name]:
            if outcome == "failed":
                print(f"  FAILED {name}")
    failed += sum(all(test[1] != "failed" for test in tests[unit.name]) for unit in broken)
    print(f"\n{passed} passed, {failed} failed")
    print(f"=== {passed} passed, {failed} failed in {seconds:.0f} s ===")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
