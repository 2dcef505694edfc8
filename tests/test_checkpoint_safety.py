"""What lies beside the weights of a checkpoint is skipped, and nothing in a file is executed."""

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import io
import os
import pathlib
import pickle
import subprocess
import types
import zipfile

import numpy as np
import pytest
import torch
from checkpoint_files import Part, assert_holds, loads, reference_states
from test_convert import message_of

from fcdm_keras.formats.torch_files import read_torch_file
from fcdm_keras.network.reference import load_torch_checkpoint

pytestmark = pytest.mark.no_backend


@pytest.fixture
def states():
    return reference_states()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pt"


class Color(enum.Enum):
    RED = 1


class Attributes(dict):
    __getattr__ = dict.__getitem__


class History(list):
    pass


@dataclasses.dataclass
class Settings:
    lr: float = 0.1
    folder: pathlib.Path = pathlib.Path("x")


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    lr: float = 0.1


class Loop:
    def __init__(self):
        self.me, self.all = self, [self]


EXTRAS = {
    "NumPy scalars": {"fid": np.float64(3.2), "step": np.int64(7), np.int32(3): np.bool_(True), "h": np.float16(1)},
    "NumPy arrays": [np.arange(3), np.zeros((2, 2), "float16"), np.array(["a"]), np.array([None, {}], dtype=object)],
    "NumPy types": [np.dtype("float32"), np.float32, np.dtype([("a", "int8")])],
    "NumPy generators": [np.random.default_rng(0), np.random.RandomState(0), np.random.get_state()],
    "paths": {pathlib.Path("a"): pathlib.PurePosixPath("/b"), "w": pathlib.PureWindowsPath("C:/c")},
    "containers": [collections.defaultdict(list, a=[1]), collections.OrderedDict(a=1), collections.Counter("aab")],
    "sets": [{1, "a"}, frozenset({2}), collections.deque([1, 2]), range(3), slice(1), {pathlib.Path("a")}],
    "times": [datetime.datetime(2024, 1, 1), datetime.timedelta(1), decimal.Decimal("1.5"), 2**70, 1j],
    "of torch": [torch.device("cuda:0"), torch.Size([1, 2]), torch.bfloat16, torch.strided, torch.get_rng_state()],
    "namespaces": [argparse.Namespace(a=pathlib.Path("b")), types.SimpleNamespace(c=np.float32(1))],
    "classes of the user's": [Color.RED, Attributes(a=1), History([1, Slots()]), Settings(), Loop(), Loop],
    "functions": [functools.partial(sorted, reverse=True), os.path.join, torch.nn.functional.silu, len],
    "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": np.float64(0.1)}]},
    "tensors": [
        torch.zeros(2).to_sparse(),
        torch.zeros(2, dtype=torch.float8_e5m2),
        torch.zeros(2, dtype=torch.uint16),
    ],
}


@pytest.mark.parametrize("zipped, protocol", [(True, 2), (False, 2), (True, 4)])
@pytest.mark.parametrize("extra", EXTRAS)
def test_what_lies_beside_the_weights_is_skipped(extra, zipped, protocol, path, states):
    content = {"model": states["model"], "ema": states["ema"], "beside": EXTRAS[extra]}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    stored = read_torch_file(path)
    for name, state in states.items():
        assert stored[name].keys() == state.keys()
        assert all(torch.equal(stored[name][key], tensor) for key, tensor in state.items())


def test_extras_do_not_change_what_is_loaded(path, states):
    parameters = collections.OrderedDict((name, torch.nn.Parameter(w)) for name, w in states["ema"].items())
    parameters["x_embedder.weight"].tag = "attribute"
    parameters["x_embedder.bias"] = Part({"w": states["ema"]["x_embedder.bias"]}).w.detach()
    parameters["x_embedder.bias"].tag = "attribute"
    loads({"model": {}, "ema": parameters, "beside": list(EXTRAS.values())}, states["ema"], path)


def test_older_names_of_numpy_are_skipped(path, states):
    torch.save({"ema": states["ema"], "fid": np.float64(3)}, path, _use_new_zipfile_serialization=False)
    stored = path.read_bytes()
    assert b"cnumpy._core.multiarray\nscalar\n" in stored
    path.write_bytes(stored.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert_holds(load_torch_checkpoint(path), states["ema"], path.parent)


def test_extras_are_refused_where_pytorch_is_told_to_refuse_them(path, states, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    loads({"ema": states["ema"], "args": argparse.Namespace(a=1)}, states["ema"], path)
    torch.save({"ema": states["ema"], "fid": np.float64(3)}, path)
    assert "which TORCH_FORCE_WEIGHTS_ONLY_LOAD forbids to skip" in message_of(path)


class Reduced:
    """An object that is pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Stateful:
    """An object that acts whenever it is touched."""

    def __init__(self, evidence):
        self.evidence = evidence

    def __setstate__(self, state):
        pathlib.Path(state["evidence"]).touch()

    def __getstate__(self):
        return {"evidence": str(self.evidence)}


class Sequence(list):
    def extend(self, items):
        for item in items:
            pathlib.Path(item).touch()

    append = None


def touch(evidence):
    pathlib.Path(evidence).touch()
    return evidence


def packed(evidence):
    """The bytes of a file that touches `evidence` when it is loaded, for functions that load bytes."""
    file = io.BytesIO()
    torch.save(Reduced(touch, str(evidence)), file)
    return file.getvalue()


REFUSED = {
    "os.system": lambda e: Reduced(os.system, f"touch {e}"),
    "eval": lambda e: Reduced(eval, f"open({str(e)!r}, 'w')"),
    "exec": lambda e: Reduced(exec, f"open({str(e)!r}, 'w')"),
    "open": lambda e: Reduced(open, str(e), "w"),
    "subprocess": lambda e: Reduced(subprocess.check_call, ["touch", str(e)]),
    "nested": lambda e: Reduced(sorted, [{"a": (1, Reduced(os.system, f"touch {e}"))}]),
    "as a state": lambda e: Reduced(functools.partial, eval, f"open({str(e)!r}, 'w')"),
}
SKIPPED = {
    "a function of the user's": lambda e: Reduced(touch, str(e)),
    "setstate": lambda e: Stateful(e),
    "extend": lambda e: Sequence([str(e)]),
    "nested": lambda e: Reduced(sorted, [Reduced(touch, str(e))]),
    "a call on an object": lambda e: Reduced(map, touch, [str(e)]),
    "bytes that are loaded": lambda e: Reduced(torch.storage._load_from_bytes, packed(e)),
    "pickle.loads": lambda e: Reduced(pickle.loads, pickle.dumps(Reduced(touch, str(e)))),
    "torch.save": lambda e: Reduced(torch.save, 1, str(e)),
    "numpy.save": lambda e: Reduced(np.save, str(e), 1),
    "Path.touch": lambda e: Reduced(pathlib.Path.touch, pathlib.Path(e)),
    "as a key": lambda e: {Reduced(touch, str(e)): Stateful(e)},
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("attack", [*((REFUSED, name) for name in REFUSED), *((SKIPPED, name) for name in SKIPPED)])
def test_nothing_in_a_file_is_executed(attack, zipped, protocol, tmp_path, states):
    kind, name = attack
    evidence, path = tmp_path / "evidence", tmp_path / "evil.pt"
    content = {"model": states["model"], "ema": states["ema"], "args": kind[name](evidence)}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    evidence.unlink(missing_ok=True)
    if kind is REFUSED:
        assert "which is refused because loading it could run code; nothing was executed" in message_of(path)
    else:
        assert read_torch_file(path)["ema"].keys() == states["ema"].keys()
    left = [entry for entry in tmp_path.iterdir() if entry != path]
    assert not left, left


@pytest.mark.parametrize("kind", [REFUSED, SKIPPED])
def test_the_attacks_bite_where_they_are_let(kind, tmp_path):
    for name, make in kind.items():
        evidence = tmp_path / f"{name}.evidence"
        torch.save(make(evidence), tmp_path / "evil.pt")
        evidence.unlink(missing_ok=True)
        content = torch.load(tmp_path / "evil.pt", weights_only=False)
        if name in ("as a state", "a call on an object"):
            list(content) if isinstance(content, map) else content()
        assert [*tmp_path.glob(f"{name}.evidence*")], name


def test_a_file_cannot_change_a_class_of_ours_or_pytorchs(path, states):
    """A pickle may set attributes of whatever it has named: here of classes and functions that tensors need."""
    torch.save({"ema": states["ema"]}, path)
    targets = [("argparse", "Namespace"), ("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict")]
    targets += [("torch.storage", "UntypedStorage"), ("torch._utils", "_rebuild_parameter")]
    for module, name in targets:
        with zipfile.ZipFile(path) as archive:
            records = {entry: archive.read(entry) for entry in archive.namelist()}
        # {"a": numpy.dtype, "b": <target, built with the state (None, {"evil": 1})>}
        attack = b"\x80\x02}(X\x01\x00\x00\x00acnumpy\ndtype\nX\x01\x00\x00\x00bc" + f"{module}\n{name}\n".encode()
        attack += b"N}X\x04\x00\x00\x00evilK\x01s\x86bu."
        with zipfile.ZipFile(path.with_name("evil.pt"), "w") as archive:
            for entry, stored in records.items():
                archive.writestr(entry, attack if entry.endswith("data.pkl") else stored)
        message_of(path.with_name("evil.pt"))
        target = getattr(__import__(module, fromlist=[name]), name)
        assert not hasattr(target, "evil"), name
