"""What run folders hold, as rows of cells beside the paper's."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import msgspec

from fcdm_keras.data.store_metadata import read_store
from fcdm_keras.formats.documents import Count, Size, Width, as_schema, read_json
from fcdm_keras.network.costs import COUNTS, count
from fcdm_keras.recipes import MODEL_SIZES, TrainConfig
from fcdm_keras.reporting.paper import TABLES
from fcdm_keras.runs.folder import stored_config
from fcdm_keras.runs.history import HISTORY, read_history
from fcdm_keras.training.callbacks import read_csv

SCORES = ("fid", "sfid", "inception_score", "precision", "recall")
HEADINGS = (
    "Model", "Params (M)", "Steps", "FLOPs (G)", "Images/s", "FID", "sFID", "IS", "Precision", "Recall", "Source",
)  # fmt: skip

SD_FACTOR, SD_SCALE = 8, TrainConfig.latent_scale  # of Stable Diffusion's autoencoder, the only one of this scale

_CURE = "remove it, or write it again"
_Score = bool | int | float | str | list[Any] | None


class _Evaluation(msgspec.Struct):
    """What this program reads of the scores that `python -m fcdm_keras.evaluate --json` wrote."""

    fid: float | None = None
    sfid: float | None = None
    inception_score: float | None = None
    precision: float | None = None
    recall: float | None = None
    num_samples: Count | None = None


class _Identity(msgspec.Struct):
    embedding_dim: Width


class _Conditions(msgspec.Struct):
    identity: _Identity


class _Autoencoder(msgspec.Struct):
    block_out_channels: Annotated[tuple[Width, ...], msgspec.Meta(min_length=1, max_length=12)] = (1,)
    downsampling_factor: Size | None = None


_AutoencoderObject = msgspec.defstruct("_AutoencoderObject", [("config", _Autoencoder)])
_TaskConfig = msgspec.defstruct("_TaskConfig", [("autoencoder", _AutoencoderObject)])
_Task = msgspec.defstruct("_Task", [("config", _TaskConfig)])


@dataclasses.dataclass
class Run:
    """What a run folder holds."""

    folder: Path
    config: object
    rows: list  # of log.csv
    judged: dict  # scores.json
    evaluations: dict  # file name → scores of ADM's suite
    changes: list = dataclasses.field(default_factory=list)  # of settings while it was trained: history.json
    embedding_dim: int | None = None  # of the encoder of the conditions, if they are embeddings

    @property
    def name(self):
        return str(self.folder)

    @property
    def steps(self):
        return self.rows[-1]["step"] if self.rows else 0


def read_run(folder):
    """Reads a run folder. Raises ValueError if it is none or one of its files is damaged."""
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} is no run folder: it holds no config.json. Give folders such as runs/digits.")
    log = folder / "log.csv"
    run = Run(
        folder,
        stored_config(folder, others=True),
        read_csv(log, ("step", "loss", "images_per_second")) if log.exists() else [],
        {},
        {},
    )
    for file in sorted(folder.glob("*.json")):
        content = read_json(file, Any, _CURE)
        if file.name == "scores.json":
            run.judged = as_schema(content, dict[str, _Score], file, _CURE)
        elif file.name == HISTORY:
            run.changes = read_history(folder)
        elif file.name != "config.json" and isinstance(content, dict):
            if set(SCORES) & content.keys():
                as_schema(content, _Evaluation, file, _CURE)
                run.evaluations[file.name] = content
            if file.name == "text.json" or "identity" in content:  # of what made the conditions
                run.embedding_dim = as_schema(content, _Conditions, file, _CURE).identity.embedding_dim
    return run


def model_size(run):
    """Parameters in millions, and multiply-accumulates of one forward pass in billions, or `None` if not known."""
    config, side = run.config, latent_side(run)
    if config.size.network not in COUNTS:
        return None, None
    condition = {"num_classes": config.num_classes, "embedding_dim": run.embedding_dim}
    sides = (side, side) if side else ()
    parameters, macs = count(config.size, *sides, in_channels=config.latent_channels, **condition)
    return parameters / 1e6, macs / 1e9 if side else None


def latent_side(run):
    """Height and width of the latents that a run is on; `None` if its folder does not tell yet.

    The latent store tells, or the preset; without them, the configuration of a run on digits or on Stable Diffusion's
    latents.
    """
    store, task = run.folder / "latents.json", run.folder / "preset" / "task.json"
    if store.exists():
        return read_store(store).latent_shape[0]
    config = run.config
    if task.exists():
        autoencoder = read_json(task, _Task, _CURE).config.autoencoder.config
        factor = autoencoder.downsampling_factor or 2 ** (len(autoencoder.block_out_channels) - 1)
        return config.image_size // factor
    if config.dataset == "digits":
        return config.image_size
    return config.image_size // SD_FACTOR if config.latent_scale == SD_SCALE else None


def our_rows(run):
    """Cells of the model table for a run, one row per evaluation, or one without scores."""
    parameters, gmacs = model_size(run)
    speeds = sorted(row["images_per_second"] for row in run.rows)
    speed = f"{speeds[len(speeds) // 2]:,.0f} (training)" if speeds else None
    for file, scores in run.evaluations.items() or [(None, {})]:
        values = [scores.get(name) for name in SCORES]
        source = f"this run, {run.name}" + (f"/{file}, {scores.get('num_samples')} samples" if file else "")
        cells = (
            f"FCDM-{run.config.model_name}",
            parameters and f"{parameters:.1f}",
            f"{run.steps:,}",
            gmacs and (f"{gmacs:.1f}" if gmacs >= 1 else f"{gmacs:.2g}"),
            speed,
            *(None if value is None else f"{value:.2f}" for value in values[:3]),
            *(None if value is None else f"{value:.4f}" for value in values[3:]),
            source,
        )
        yield cells


def paper_rows(rows, name):
    """Cells of the model table for rows of the paper's table `name`."""
    for row in rows:
        size = MODEL_SIZES.get(row.model.removeprefix("FCDM-")) if row.model.startswith("FCDM-") else None
        numbers = (row.gflops, row.throughput, row.fid, row.sfid, row.inception_score, row.precision, row.recall)
        parameters = f"{size.parameters / 1e6:.1f}" if size else None
        yield (row.model, parameters, row.steps, *(None if n is None else f"{n:g}" for n in numbers), f"paper, {name}")


def tables(runs):
    """Title and rows of cells of each table: ours, then the paper's that belong beside them."""
    yield "Models", [row for run in runs for row in our_rows(run)]
    for title, rows in TABLES:
        name = title.rpartition("(")[2].rstrip(")")
        yield f"The paper's: {title}", list(paper_rows(rows, name))
