"""Who owns a run folder: claims that live, die, move to other machines, and are fought for."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_launch import JAX, POD, SRUN, TF_CONFIG, TORCHRUN

from fcdm_keras import recipes
from fcdm_keras.distribution import launch
from fcdm_keras.runs import owner, shared
from fcdm_keras.runs.folder import opened, vae_opened

pytestmark = pytest.mark.no_backend
ROOT = Path(__file__).parents[1]
HELD = r"is in use by process {} on .+, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d .*: wait for its end, .* another {}\.$"

# Claims as often as it can; an exclusive file beside the folder is what tells whether one alone is inside.
CONTENDER = """
import os, random, sys, time
from fcdm_keras.runs import owner
folder, seconds = sys.argv[1], float(sys.argv[2])
owner.INTERVAL, owner.QUIET, owner.POLL, owner.LOOKS = 0.05, 0.5, 0.005, 1
owned, two, end = 0, 0, time.monotonic() + seconds
while time.monotonic() < end:
    try:
        with owner.owned(folder):
            try:
                os.close(os.open(folder + ".inside", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                two += 1
            owned += 1
            time.sleep(0.003 * random.random())
            os.unlink(folder + ".inside")
    except OSError as error:
        if "is in use by process" not in str(error):
            raise
print(owned, two)
"""
HOLDER = """
import sys, time
from fcdm_keras.runs import owner
owner.INTERVAL = 0.05
with owner.owned(sys.argv[1]):
    print("owned", flush=True)
    time.sleep(60)
"""


def python(program, *arguments, before=()):
    """A light process: a fresh interpreter in which nothing heavy is imported."""
    command = [*before, sys.executable, "-S", "-c", program, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def holder(tmp_path):
    """A process that owns `tmp_path / "run"`."""
    process = python(HOLDER, tmp_path / "run")
    assert process.stdout.readline() == "owned\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def elsewhere(monkeypatch):
    """As if this process were on another machine, with little patience."""
    monkeypatch.setattr(owner, "_machine", lambda: "another")
    for name, seconds in (("INTERVAL", 0.05), ("POLL", 0.02), ("PATIENCE", 0.1), ("QUIET", 0.5)):
        monkeypatch.setattr(owner, name, seconds)


def claims(folder):
    return sorted(path.name for path in (folder / owner.HOME).glob("*"))


def rewrite(folder, **values):
    """Changes what a claim says."""
    (file,) = (folder / owner.HOME).iterdir()
    sign, text = file.read_text().split("\n")
    file.write_text(sign + "\n" + json.dumps({**json.loads(text), **values}))


def test_a_folder_is_given_back_however_its_command_ends(tmp_path):
    folder = tmp_path / "results" / "run"
    for end in (SystemExit, KeyboardInterrupt, ValueError):
        with pytest.raises(end), owner.owned(folder):
            assert claims(folder) == ["000001"]
            raise end
        assert os.listdir(folder) == []


@pytest.mark.parametrize("alike", [True, False])
def test_a_second_command_is_told_who_is_there(holder, tmp_path, alike, request):
    """On the same machine, and on another that shares the folder."""
    if not alike:
        request.getfixturevalue("elsewhere")
    config = recipes.TrainConfig(**{**vars(recipes.RECIPES["digits"]), "recipe": "run", "results_dir": str(tmp_path)})
    began = time.monotonic()
    with pytest.raises(OSError, match=HELD.format(holder.pid, "--results-dir")), opened(config):
        pass
    vae = vae_opened(tmp_path / "run", recipes.VAEConfig())
    with pytest.raises(OSError, match=HELD.format(holder.pid, "--output")), vae:
        pass
    assert time.monotonic() - began < 3
    assert os.listdir(tmp_path / "run") == [owner.HOME] and claims(tmp_path / "run") == ["000001"]


@pytest.mark.parametrize("alike", [True, False])
def test_a_dead_owners_folder_is_taken_over(holder, tmp_path, alike, request, capsys):
    """At once where it can be asked for; elsewhere when it has given no sign of life for a while."""
    if not alike:
        request.getfixturevalue("elsewhere")
    holder.kill()
    holder.wait()
    if not alike:  # a claim that is ahead of the clock is watched like any other
        os.utime(tmp_path / "run" / owner.HOME / "000001", (2**32, 2**32))
    began = time.monotonic()
    with owner.owned(tmp_path / "run"):
        assert (time.monotonic() - began < 0.45) == alike
        assert claims(tmp_path / "run") == ["000002"]
    told = capsys.readouterr().out
    assert ("is taken over unless that gives a sign of life" in told) != alike
    assert os.listdir(tmp_path / "run") == []


def test_a_process_number_that_lives_on_as_something_else_is_no_owner(holder, tmp_path):
    with pytest.raises(OSError, match="in use"), owner.owned(tmp_path / "run"):
        pass
    holder.kill()
    holder.wait()
    rewrite(tmp_path / "run", pid=os.getppid())
    with owner.owned(tmp_path / "run"):
        pass


def test_a_copied_folder_is_nobodys(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "QUIET", 0.3)
    home = tmp_path / "copy" / owner.HOME
    home.mkdir(parents=True)
    (home / "000001").write_bytes((tmp_path / "run" / owner.HOME / "000001").read_bytes())
    with owner.owned(tmp_path / "copy"), pytest.raises(OSError, match="in use"), owner.owned(tmp_path / "run"):
        pass


def test_an_owner_that_was_stopped_learns_that_the_folder_is_anothers(tmp_path, elsewhere, monkeypatch):
    folder = tmp_path / "run"
    with owner.owned(folder):
        monkeypatch.setattr(owner._Claim, "_live", lambda claim: None)  # of the next one
        owner.check(folder / "checkpoints")
    with owner.owned(folder):
        owner.check(folder)
        successor = python(HOLDER.replace("0.05", "0.05; owner.QUIET = 0.3; owner._machine = str"), folder)
        assert successor.stdout.readline().split()[-1] in ("owned", "life.")
        while claims(folder) != ["000002"]:
            time.sleep(0.01)
        owner.check(folder, surely=False)  # nobody has looked yet
        with pytest.raises(OSError, match=f"was taken over by process {successor.pid} on .* writes nothing more there"):
            owner.check(folder / "checkpoints")
        with pytest.raises(OSError, match="was taken over"):
            owner.check(folder, surely=False)
    assert claims(folder) == ["000002"]
    successor.kill()
    successor.communicate()


def test_damaged_claims(tmp_path, holder, monkeypatch):
    """A living owner mends its own; one that nobody mends is passed over; one that cannot be read is named."""
    file = tmp_path / "run" / owner.HOME / "000001"
    file.write_text("")
    with pytest.raises(OSError, match=HELD.format(holder.pid, "--results-dir")), owner.owned(tmp_path / "run"):
        pass
    holder.kill()
    file.write_text("x" * 50)
    monkeypatch.setattr(owner, "QUIET", 0.3)
    with owner.owned(tmp_path / "run"):
        pass
    file.parent.mkdir()
    file.mkdir()  # root may read everything else
    named = f"^The claim {file} .* cannot be read .*: remove it if no command is at work"
    with pytest.raises(OSError, match=named), owner.owned(tmp_path / "run"):
        pass


def test_folders_that_cannot_be_claimed_are_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        named = f"^The run folder {folder} cannot be written to: [^.]+[.]$"
        with pytest.raises(OSError, match=named), owner.owned(folder):
            pass


@pytest.mark.parametrize("namespaces", [False, True])
def test_of_many_at_once_one_owns_the_folder(tmp_path, namespaces):
    """For a second, thousands of claims; with process numbers of their own the signs of life decide."""
    apart = ["unshare", "-n", "-u", "-p", "-f", "--mount-proc"]
    if namespaces and subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("the kernel or this user's rights allow no namespaces")
    before = [(), apart if namespaces else (), apart if namespaces else ()]
    contenders = [python(CONTENDER, tmp_path / "run", 1.5, before=how) for how in before]
    answers = [list(map(int, process.communicate(timeout=60)[0].splitlines()[-1].split())) for process in contenders]
    assert all(process.returncode == 0 for process in contenders)
    assert sum(owned for owned, _ in answers) > 10 and sum(two for _, two in answers) == 0
    assert os.listdir(tmp_path / "run") == []


def test_a_process_that_a_launcher_started_waits_for_the_first():
    assert shared.alone({}) and shared.alone({"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    started = [("torch", TORCHRUN), ("jax", JAX), ("jax", SRUN), ("jax", POD)]
    for backend, environment in [*started, ("jax", {"OMPI_COMM_WORLD_SIZE": "2"}), ("tensorflow", TF_CONFIG)]:
        assert launch.launcher(backend, environment) and not shared.alone(environment)


def test_a_stopped_owner_on_the_same_machine_keeps_its_folder(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "QUIET", 0.1)
    monkeypatch.setattr(owner, "POLL", 0.05)
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(OSError, match=HELD.format(holder.pid, "--results-dir")), owner.owned(tmp_path / "run"):
        pass
