"""A very small text tower for tests, and one process of it for all of them."""

import functools
import json
import os
import subprocess
import types

import processes

from t2i import text_encoder
from t2i.text_encoder import OpenCLIPTextEncoder

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def write_config(folder, name="tiny_clip"):
    """The path of open_clip's configuration of the tower, as a string."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(CONFIG))
    return str(path)


def _start_worker(command, **options):
    return processes.start(command, env={**os.environ, "KERAS_BACKEND": "torch"}, **options)


# The warm process of PyTorch, where there is one, has imported open_clip already.
text_encoder.subprocess = types.SimpleNamespace(PIPE=subprocess.PIPE, Popen=_start_worker)

_started = {}


def share_processes(monkeypatch):
    """Lets encoders with the same settings share one process, which takes seconds to start, and never end it."""
    start = OpenCLIPTextEncoder._start

    def shared(self, settings):
        key = json.dumps(settings)
        # An encoder of an earlier module, deleted between modules, ends its process.
        if key not in _started or _started[key]["_process"].stdin.closed:
            start(self, settings)
            _started[key] = {name: vars(self)[name] for name in ("_process", "embedding_dim", "context_length")}
            _started[key]["_weights_hash"] = self._weights_hash
        vars(self).update(_started[key])

    monkeypatch.setattr(OpenCLIPTextEncoder, "_start", shared)
    monkeypatch.setattr(OpenCLIPTextEncoder, "close", lambda self: None)


def score_few(setattr=setattr):
    """Has four pictures drawn at a time everywhere, without guidance: one sampler is compiled."""
    from t2i import data
    from t2i.shapes import report

    few = functools.partial(report.score_model, count=4, scales=(1.0,), curve_count=1)
    setattr(report, "score_model", few)
    setattr(data, "GRID_IMAGES", 4)
