"""Checkpoints that a kill at any moment cannot spoil.

A checkpoint is a folder `step-000001000/` with `trainer.weights.h5` (weights, EMA, optimizer, step) and
`checkpoint.json` (step, checksum, shapes, and in `state` what is no weight, such as the seeds of Dropout). It is
written under a hidden name and renamed when all of it is on disk, so a folder with the final name is whole. Weights
are in Keras's own format, the same on every backend.
"""

import contextlib
import hashlib
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Annotated, Any

import keras
import msgspec
import numpy as np
from keras import ops

from fcdm_keras import distribution, files
from fcdm_keras.arguments import check_integer
from fcdm_keras.diffusion.objectives import described
from fcdm_keras.formats.documents import Count, as_schema, read_json
from fcdm_keras.training import weight_file
from fcdm_keras.training.logs import metric_sums

WEIGHTS, MANIFEST = "trainer.weights.h5", "checkpoint.json"
_NAME = re.compile(r"step-(\d{9})")
_UNFINISHED = ".unfinished-"


class _State(msgspec.Struct):
    metrics: dict[str, list[float]] = {}
    generators: list[Any] = []


class _Manifest(msgspec.Struct):
    step: Count
    shapes: list[Annotated[list[Count], msgspec.Meta(max_length=8)]]
    sha256: str
    objective: str | dict[str, Any] | None = None  # of earlier versions none, whose shapes tell
    state: _State = msgspec.field(default_factory=_State)


class CheckpointManager:
    """Writes, prunes and restores the checkpoints of a `DiffusionTrainer` in one folder.

    Args:
        folder: created if needed.
        keep_last: newest checkpoints kept.
        keep_every: checkpoints whose step is a multiple of this are kept for good; 0 keeps none.
        read_only: leave the folder as it is, for reading beside a run that may be writing there.

    Raises:
        OSError: if the folder cannot be written to, at once.
        ValueError: for numbers of checkpoints that keep none.
    """

    def __init__(self, folder, keep_last=3, keep_every=0, read_only=False):
        self.folder = Path(folder)
        self.keep_last = check_integer("keep_last", keep_last, 1, 2**63)
        self.keep_every = check_integer("keep_every", keep_every, 0, 2**63)
        self.read_only = read_only
        if not read_only:
            self._prepare()

    def _prepare(self):
        if not distribution.is_main():
            return
        try:
            files.make_folder(self.folder)
            files.remove_leftovers(self.folder)
            probe = self.folder / f"{_UNFINISHED}probe"
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            raise OSError(f"Checkpoints cannot be written to {self.folder}: {error.strerror or error}.") from None

    def steps(self):
        """Steps of the checkpoints present, ascending."""
        matches = (_NAME.fullmatch(entry.name) for entry in (self.folder.iterdir() if self.folder.exists() else ()))
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step):
        """Folder of a step's checkpoint."""
        return self.folder / f"step-{step:09d}"

    def save(self, trainer):
        """Writes a checkpoint of `trainer`'s present step and prunes old ones.

        With several processes all call this together, and the first one writes.

        Returns:
            Its folder.

        Raises:
            FloatingPointError: a weight is not finite; nothing is written.
            OSError: the disk is full or read-only; earlier checkpoints are untouched.
        """
        step = trainer.steps_done
        state = {
            "metrics": metric_sums(trainer),
            "generators": [value.tolist() for value in distribution.host_arrays(_generators(trainer))],
        }
        with distribution.readable([*_saved_variables(trainer), *trainer.metrics_variables]):
            _check_finite(trainer, step)
            unfinished = self.folder / f"{_UNFINISHED}{step:09d}"
            distribution.write_once(lambda folder: self._save_weights(trainer, folder, step), unfinished)
        if distribution.is_main():
            self._finish(trainer, unfinished, step, state)
        return self.path(step)

    def _save_weights(self, trainer, folder, step):
        shapes = _shapes(trainer)
        with self._explained(folder, step):
            folder.mkdir(exist_ok=True)
            with files.locked(folder):
                files.reserve(folder, 4 * _count(shapes) + 4096 * len(shapes))
                trainer.save_weights(folder / WEIGHTS)

    def _finish(self, trainer, unfinished, step, state):
        with self._explained(unfinished, step), files.locked(unfinished):
            manifest = {
                "step": step,
                "shapes": _shapes(trainer),
                "state": state,
                **_objective(trainer),
                "keras": keras.__version__,
                "backend": keras.backend.backend(),
            }
            manifest["sha256"] = _checksum(unfinished / WEIGHTS, manifest)
            (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1))
            files.replace_folder(unfinished, self.path(step))
        self._prune(step)

    @contextlib.contextmanager
    def _explained(self, unfinished, step):
        try:
            yield
        except (OSError, RuntimeError) as error:  # h5py raises either
            shutil.rmtree(unfinished, ignore_errors=True)
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            raise OSError(
                f"The checkpoint of step {step} could not be written to {self.folder} ({reason}). "
                f"Earlier checkpoints are untouched: {self.steps() or 'none'}."
            ) from None

    def restore(self, trainer):
        """Loads the newest whole checkpoint into a compiled `trainer`.

        A damaged one is set aside, under a name that begins with `damaged-`, with a warning. The learning rate, or its
        schedule, is the one compiled; a warning says so where the checkpoint's was another. What is frozen may differ
        from when it was written.

        Returns:
            The step, or `None` where there is no checkpoint.

        Raises:
            ValueError: a checkpoint belongs to another configuration, or all are damaged.
        """
        damaged, newest = {}, None
        for step in reversed(self.steps()):
            damaged[step] = self.damage(step)
            if damaged[step] is None:
                newest = step
                break
        distribution.agree("newest whole checkpoint", newest)
        for step, reason in damaged.items():
            if reason is not None:
                aside = newest is not None and self._set_aside(step)
                told = f"; it is set aside as {aside.name}" if aside else ""
                warnings.warn(f"{self.path(step)} is passed over: {reason}{told}.", stacklevel=2)
        if newest is not None:
            self._load(trainer, newest)
        elif damaged:
            raise ValueError(f"All checkpoints in {self.folder} are damaged; remove the folder to start afresh.")
        return newest

    def _set_aside(self, step):
        """Gives a checkpoint a name under which it is none; returns that, or `None` where the folder stays as it is."""
        aside = self.folder / f"damaged-{self.path(step).name}"
        if self.read_only or not distribution.is_main():
            return None
        try:
            shutil.rmtree(aside, ignore_errors=True)
            return self.path(step).rename(aside)
        except OSError:
            return None

    def damage(self, step):
        """What is wrong with a checkpoint, as a phrase, or `None`."""
        try:
            manifest = self._manifest(step)
            if manifest["sha256"] != _checksum(self.path(step) / WEIGHTS, manifest):
                return "its contents do not match their checksum"
            return None if manifest["step"] == step else "its manifest is of another step"
        except (OSError, ValueError) as error:
            return f"it cannot be read ({error})"

    def _manifest(self, step):
        """A checkpoint's manifest as it was written. Raises ValueError or OSError."""
        file = self.path(step) / MANIFEST
        content = read_json(file, dict[str, Any])
        as_schema(content, _Manifest, file)
        return content

    def _load(self, trainer, step):
        manifest = self._manifest(step)
        weight_file.check_adapters(self.path(step) / WEIGHTS, trainer.ema.model)
        _check_objective(manifest.get("objective"), trainer, self.path(step))
        if not _is_of_model(manifest["shapes"], trainer):
            saved, own = _count(manifest["shapes"]), _count(_shapes(trainer))
            raise ValueError(
                f"{self.path(step)} was written by another configuration: it holds {saved:,} numbers in "
                f"{len(manifest['shapes'])} tensors, this trainer {own:,} in {len(_shapes(trainer))}."
            )
        trainer.load_weights(self.path(step) / WEIGHTS)
        for variable, value in zip(_generators(trainer), manifest.get("state", {}).get("generators", [])):
            variable.assign(np.asarray(value, variable.dtype))
        loaded = trainer.steps_done
        if loaded != step:
            raise ValueError(f"{self.path(step)} holds step {loaded}; the checkpoint is inconsistent.")

    def metric_sums(self, step):
        """The `metric_sums` of a step's checkpoint; of an earlier version's none."""
        state = self._manifest(step).get("state", {}) if (self.path(step) / MANIFEST).exists() else {}
        return state.get("metrics", {})

    def _prune(self, newest):
        steps = [step for step in self.steps() if step <= newest]  # later ones are damaged, and could not be set aside
        for step in steps[: -self.keep_last]:
            if not self.keep_every or step % self.keep_every:
                self._remove(step)

    def _remove(self, step):
        """Removes a checkpoint, if there is one, under a hidden name: a kill leaves no half of it."""
        removed = self.folder / f"{_UNFINISHED}{step:09d}-removed"
        with contextlib.suppress(OSError):
            self.path(step).rename(removed)
            shutil.rmtree(removed)


def _objective(trainer):
    """What a checkpoint says of a trainer's objective; of an autoencoder's nothing."""
    return {"objective": described(trainer.objective)} if hasattr(trainer, "objective") else {}


def _check_objective(stored, trainer, path):
    own = _objective(trainer).get("objective")
    if stored is not None and own is not None and stored != own:
        raise ValueError(f"{path} was written for the objective {stored}, and this trainer's is {own}.")


def _saved_variables(trainer):
    return [*trainer.variables, *trainer.optimizer.variables]


def _shapes(trainer):
    return [list(variable.shape) for variable in _saved_variables(trainer)]


def _is_of_model(shapes, trainer):
    """Whether the model's part of a manifest's shapes is that of this trainer's: it does not depend on freezing."""
    own, model = trainer.variables, trainer.ema.model.variables
    first = next(i for i, variable in enumerate(own) if variable is model[0])
    return shapes[first : first + len(model)] == [list(variable.shape) for variable in model]


def _generators(trainer):
    """State of the model that its weights file leaves out: the seeds of random layers."""
    weights = {id(variable) for variable in trainer.ema.model.weights}
    return [variable for variable in trainer.ema.model.variables if id(variable) not in weights]


def _count(shapes):
    return int(sum(np.prod(shape) for shape in shapes))


def _check_finite(trainer, step):
    for variable in trainer.trainable_variables:
        if not np.isfinite(ops.convert_to_numpy(variable)).all():
            raise FloatingPointError(f"{variable.path} is not finite at step {step}; no checkpoint is written.")


def _checksum(weights, manifest):
    """SHA-256 of the weights file followed by the manifest's other entries."""
    others = {name: value for name, value in manifest.items() if name != "sha256"}
    with open(weights, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(others, sort_keys=True).encode())
    return digest.hexdigest()
