"""What run folders hold, as rows of cells beside the paper's."""

import dataclasses
import json
from pathlib import Path

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
    run = Run(folder, stored_config(folder, others=True), read_csv(log) if log.exists() else [], {}, {})
    for file in sorted(folder.glob("*.json")):
        content = _read_json(file)
        if file.name == "scores.json":
            run.judged = content
        elif file.name == HISTORY:
            run.changes = read_history(folder)
        elif file.name != "config.json" and isinstance(content, dict):
            if set(SCORES) & content.keys():
                run.evaluations[file.name] = content
            if isinstance(content.get("identity"), dict):  # of what made the conditions
                run.embedding_dim = content["identity"].get("embedding_dim")
    return run


def _read_json(file):
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON, or is cut short; remove it or write it again: {error}") from None


def model_size(run):
    """Parameters in millions, and multiply-accumulates of one forward pass in billions, or `None` if not known."""
    config, side = run.config, latent_side(run)
    if MODEL_SIZES[config.model].network not in COUNTS:
        return None, None
    condition = {"num_classes": config.num_classes, "embedding_dim": run.embedding_dim}
    sides = (side, side) if side else ()
    parameters, macs = count(MODEL_SIZES[config.model], *sides, in_channels=config.latent_channels, **condition)
    return parameters / 1e6, macs / 1e9 if side else None


def latent_side(run):
    """Height and width of the latents that a run is on; `None` if its folder does not tell yet.

    The latent store tells, or the preset; without them, the configuration of a run on digits or on Stable Diffusion's
    latents.
    """
    store, task = run.folder / "latents.json", run.folder / "preset" / "task.json"
    if store.exists():
        return _read_json(store)["latent_shape"][0]
    config = run.config
    if task.exists():
        return config.image_size // _factor(_read_json(task)["config"]["autoencoder"]["config"])
    if config.dataset == "digits":
        return config.image_size
    return config.image_size // SD_FACTOR if config.latent_scale == SD_SCALE else None


def _factor(autoencoder):
    """Pixels to a latent, of an autoencoder's configuration."""
    halvings = len(autoencoder.get("block_out_channels", "-")) - 1
    return autoencoder.get("downsampling_factor", 2**halvings)


def our_rows(run):
    """Cells of the model table for a run, one row per evaluation, or one without scores."""
    parameters, gmacs = model_size(run)
    speeds = sorted(row["images_per_second"] for row in run.rows)
    speed = f"{speeds[len(speeds) // 2]:,.0f} (training)" if speeds else None
    for file, scores in run.evaluations.items() or [(None, {})]:
        values = [scores.get(name) for name in SCORES]
        source = f"this run, {run.name}" + (f"/{file}, {scores.get('num_samples')} samples" if file else "")
        cells = (
            f"FCDM-{run.config.model}",
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
