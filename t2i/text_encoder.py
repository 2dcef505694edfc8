"""Text encoders: prompts to pooled embeddings, and embeddings on disk that know what made them."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct as Foreign
from msgspec import to_builtins

from fcdm_keras.files import replacing
from fcdm_keras.formats.documents import Identifier, Name, Size, Struct, Width, parse_json, read_json
from fcdm_keras.formats.npz import load_small
from fcdm_keras.formats.numbers import check_finite

_ERRORS = {"ValueError": ValueError, "FileNotFoundError": FileNotFoundError, "OSError": OSError}


class Identity(Struct):
    """What embeddings must agree in to be of the same encoder."""

    model: Name
    weights_hash: Identifier
    embedding_dim: Width


class Settings(Struct):
    """What makes an encoder again, as `OpenCLIPTextEncoder` takes it."""

    model: Name
    pretrained: Name | None
    seed: int = 0


class Arguments(Settings):
    """As a task keeps them: also what decides no embedding."""

    device: Name | None = None
    batch_size: Size = 128


class _ModelConfig(Foreign):
    """What open_clip's model configurations must have."""

    embed_dim: Width
    vision_cfg: dict[str, Any]
    text_cfg: dict[str, Any]


class OpenCLIPTextEncoder:
    """The text tower of an open_clip model, run by PyTorch in a process of its own under every Keras backend.

    Prompts beyond the tower's number of tokens (77 for CLIP) are cut, with a warning that names them. Several threads
    may encode at once; the process answers one after the other.

    Args:
        model: name from `open_clip.list_models()`, or the path of a model configuration (`.json`). Weights files of
            OpenAI need the names that end in `-quickgelu`; the tag `openai` takes care of it.
        pretrained: tag of weights to download, a weights file, or `None` for an untrained tower.
        seed: of the untrained tower's weights.
        device: PyTorch device; default the GPU if there is one.
        batch_size: prompts encoded at once.

    Attributes:
        embedding_dim: D, size of the embeddings.
        context_length: tokens of the longest prompt that is not cut, start and end included.
        truncated: places of the prompts that the last `encode` cut.

    Raises:
        ValueError: unknown model or tag, or a file that holds other weights.
        OSError: there is no such file, the weights cannot be downloaded, or open_clip cannot be started.

    Example:

    ```python
    encoder = OpenCLIPTextEncoder("ViT-L-14", "openai")
    embeddings = encoder.encode(["a red bus", ""])  # float32 (2, 768); "" is "no prompt"
    ```
    """

    def __init__(self, model="ViT-L-14", pretrained="openai", seed=0, device=None, batch_size=128):
        if not isinstance(model, str) or not isinstance(pretrained, (str, type(None))):
            raise ValueError(f"model must be a string, pretrained one or None. Received: {model!r}, {pretrained!r}")
        if model.endswith(".json"):
            read_json(model, _ModelConfig, "give a model configuration of open_clip")
        self.model, self.pretrained, self.seed = absolute(model), absolute(pretrained), int(seed)
        self.batch_size = batch_size
        self.truncated = []
        self._lock = threading.Lock()
        self._start({"model": self.model, "pretrained": self.pretrained, "seed": self.seed, "device": device})
        if pretrained is None:
            print(
                f"The text encoder {model} is UNTRAINED (pretrained=None, seed {seed}): its embeddings tell prompts "
                "apart, and know nothing of what words mean.",
                file=sys.stderr,
            )

    def _start(self, settings):
        program = Path(__file__).with_name("open_clip_worker.py")
        # In a session of its own Ctrl-C does not reach it; it ends when its input or we do, however we end.
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True}
        self._process = subprocess.Popen([sys.executable, "-P", str(program)], **options)
        facts, _ = self._ask(settings)
        self.embedding_dim, self.context_length = facts["embedding_dim"], facts["context_length"]
        self._weights_hash = facts["weights_hash"]

    def _ask(self, message):
        """Sends one line; returns the answer's facts, and its array if there is one."""
        with self._lock:
            return self._answer(message)

    def _answer(self, message):
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise OSError(
                f"The process of the text encoder {self.model} ended with exit code {self._process.wait()}; is "
                "open_clip installed (pip install 'fcdm-keras[t2i]'), and is there enough memory?"
            )
        facts = json.loads(line)
        if "error" in facts:
            raise _ERRORS[facts["error"]](facts["message"])
        if "shape" not in facts:
            return facts, None
        data = self._process.stdout.read(4 * int(np.prod(facts["shape"])))
        return facts, np.frombuffer(data, np.float32).reshape(facts["shape"])

    def encode(self, prompts):
        """Pooled embeddings of prompts.

        Args:
            prompts: a list of strings; `""` means "no prompt".

        Returns:
            float32 NumPy array `(N, D)`, not normalised.

        Raises:
            ValueError: for an empty list or anything else that is no list of strings.
        """
        check_prompts(prompts)
        embeddings, truncated = [], []
        for start in range(0, len(prompts), self.batch_size):
            facts, part = self._ask(list(prompts[start : start + self.batch_size]))
            embeddings.append(part)
            truncated += [start + place for place in facts["truncated"]]
        self.truncated = truncated
        if truncated:
            named = ", ".join(f"{prompts[place].strip()[:40]!r}…" for place in truncated[:3])
            warnings.warn(
                f"{len(truncated)} of {len(prompts)} prompts have more than {self.context_length} tokens and were cut: "
                f"{named}{', …' if len(truncated) > 3 else ''}.",
                stacklevel=2,
            )
        embeddings = np.concatenate(embeddings)
        check_finite(f"An embedding by {self.model}", embeddings)
        return embeddings

    def weights_hash(self):
        """A checksum of the tower's weights, hexadecimal."""
        return self._weights_hash

    def identity(self):
        """What embeddings must agree in to be of the same encoder, for JSON."""
        return to_builtins(Identity(os.path.basename(self.model), self._weights_hash, self.embedding_dim))

    def settings(self):
        """What makes this encoder again, for JSON."""
        return to_builtins(Settings(self.model, self.pretrained, self.seed))

    def close(self):
        """Ends the process."""
        process = getattr(self, "_process", None)
        if process is not None and process.poll() is None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.stdout.close()
            process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def __del__(self):
        self.close()


def absolute(name):
    """The absolute path of a file that is there; any other name as it is."""
    return os.path.abspath(name) if name is not None and os.path.isfile(name) else name


def check_prompts(prompts):
    """Raises ValueError unless `prompts` is a list of strings with at least one."""
    if not isinstance(prompts, (list, tuple)):
        raise ValueError(f"Prompts must be a list of strings. Received: {type(prompts).__name__} {str(prompts)[:60]!r}")
    if not prompts:
        raise ValueError("Prompts must be a list with at least one string. Received: an empty list")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"Prompts must be strings. Received: {prompt!r} ({type(prompt).__name__}) as number {i}")


def check_same_encoder(stored, encoder, where):
    """Raises ValueError unless a stored identity is an encoder's.

    Args:
        stored: dict with the keys of `OpenCLIPTextEncoder.identity`.
        encoder: the encoder.
        where: what the identity was stored with, to begin the sentence.
    """
    own = encoder.identity()
    different = [f"{name} {stored.get(name)} there, {own[name]} here" for name in own if stored.get(name) != own[name]]
    if different:
        raise ValueError(
            f"{where} is of another text encoder ({'; '.join(different)}): give the model and weights that made it, or "
            "make it again in another place."
        )


def captions_hash(captions):
    """A checksum of a list of strings and its order, hexadecimal."""
    return hashlib.sha256(json.dumps(list(captions)).encode()).hexdigest()[:32]


def cached_embeddings(encoder, captions, path):
    """Embeddings of captions, from the file `path` if they are there, else encoded and written to it.

    Args:
        encoder: an `OpenCLIPTextEncoder`.
        captions: list of strings.
        path: file (`.npz`) of `embeddings`, `captions` (a checksum) and the encoder's identity.

    Returns:
        float32 `(N, D)`.

    Raises:
        ValueError: the file is of another encoder or other captions, or damaged. It is left as it is.
    """
    path, checksum = Path(path), captions_hash(captions)
    if not path.exists():
        embeddings = encoder.encode(captions)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez(file, embeddings=embeddings, captions=checksum, encoder=json.dumps(encoder.identity()))
        return embeddings
    try:
        described, made_of = (str(load_small(path, name, "U")) for name in ("encoder", "captions"))
        embeddings = load_small(path, "embeddings", "f")
    except ValueError as error:
        raise ValueError(
            f"The embeddings in {path} cannot be read ({str(error).rstrip('.')}): remove the file."
        ) from None
    stored = parse_json(described, Identity, f"`encoder` of {path}", "remove the file")
    check_same_encoder(to_builtins(stored), encoder, f"The file of embeddings {path}")
    if made_of != checksum or embeddings.shape != (len(captions), encoder.embedding_dim):
        raise ValueError(f"The embeddings in {path} are of other captions: remove the file, or give another one.")
    return embeddings
