"""One page about finished or running runs, with the paper's results beside them.

    python -m fcdm_keras.report runs/digits runs/seed7/digits --output report.html

Writes a self-contained HTML page (pictures inside) and, beside it, its tables as Markdown. Scores are those of
scores.json and of every JSON file that `python -m fcdm_keras.evaluate RUN … --json RUN/NAME.json` left in the folder.
"""

import argparse
import dataclasses
import io
import json
import sys
from pathlib import Path

from fcdm_keras.files import write_atomically

SCORES = ("fid", "sfid", "inception_score", "precision", "recall")
HEADINGS = (
    "Model", "Params (M)", "Steps", "FLOPs (G)", "Images/s", "FID", "sFID", "IS", "Precision", "Recall", "Source",
)  # fmt: skip
MAX_GRIDS = 4


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m fcdm_keras.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    parser.add_argument("--output", default="report.html", help="page to write (default report.html)")
    options = parser.parse_args(arguments)
    if not options.output.endswith(".html"):
        parser.error(f"--output must end in .html. Received: {options.output!r}")
    return options


@dataclasses.dataclass
class Run:
    """What a run folder holds."""

    folder: Path
    config: object
    rows: list  # of log.csv
    judged: dict  # scores.json
    evaluations: dict  # file name → scores of ADM's suite

    @property
    def name(self):
        return str(self.folder)

    @property
    def steps(self):
        return self.rows[-1]["step"] if self.rows else 0


def read_run(folder):
    """Reads a run folder. Raises ValueError if it is none or one of its files is damaged."""
    from fcdm_keras.callbacks import read_csv
    from fcdm_keras.runs.folder import stored_config

    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} is no run folder: it holds no config.json. Give folders such as runs/digits.")
    log = folder / "log.csv"
    judged, evaluations = {}, {}
    for file in sorted(folder.glob("*.json")):
        content = _read_json(file)
        if file.name == "scores.json":
            judged = content
        elif file.name != "config.json" and isinstance(content, dict) and set(SCORES) & content.keys():
            evaluations[file.name] = content
    return Run(folder, stored_config(folder, others=True), read_csv(log) if log.exists() else [], judged, evaluations)


def _read_json(file):
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON, or is cut short; remove it or write it again: {error}") from None


def model_size(run):
    """Parameters in millions, and multiply-accumulates of one forward pass in billions."""
    from fcdm_keras.model_table import count
    from fcdm_keras.recipes import MODEL_SIZES

    config, side = run.config, _latent_side(run)
    text = run.folder / "text.json"  # of runs on text embeddings
    embedding_dim = _read_json(text)["identity"]["embedding_dim"] if text.exists() else None
    condition = {"num_classes": config.num_classes, "embedding_dim": embedding_dim}
    parameters, macs = count(MODEL_SIZES[config.model], side, side, in_channels=config.latent_channels, **condition)
    return parameters / 1e6, macs / 1e9


def _latent_side(run):
    store = run.folder / "latents.json"  # of runs on a latent store
    if store.exists():
        return json.loads(store.read_text(encoding="utf-8"))["latent_shape"][0]
    factor = {"digits": 1, "shapes": 4}.get(run.config.dataset, 8)  # the last is SD's autoencoder's
    return run.config.image_size // factor


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
            f"{parameters:.1f}",
            f"{run.steps:,}",
            f"{gmacs:.1f}" if gmacs >= 1 else f"{gmacs:.2g}",
            speed,
            *(None if value is None else f"{value:.2f}" for value in values[:3]),
            *(None if value is None else f"{value:.4f}" for value in values[3:]),
            source,
        )
        yield cells


def paper_rows(rows, name):
    from fcdm_keras.recipes import MODEL_SIZES

    for row in rows:
        size = MODEL_SIZES.get(row.model.removeprefix("FCDM-")) if row.model.startswith("FCDM-") else None
        numbers = (row.gflops, row.throughput, row.fid, row.sfid, row.inception_score, row.precision, row.recall)
        parameters = f"{size.parameters / 1e6:.1f}" if size else None
        yield (row.model, parameters, row.steps, *(None if n is None else f"{n:g}" for n in numbers), f"paper, {name}")


def tables(runs):
    """Title and rows of cells of each table: ours, then the paper's that belong beside them."""
    from fcdm_keras.paper import TABLES

    yield "Models", [row for run in runs for row in our_rows(run)]
    for title, rows in TABLES:
        name = title.rpartition("(")[2].rstrip(")")
        yield f"The paper's: {title}", list(paper_rows(rows, name))


def pictures(run):
    """(title, PNG) of a run's curves and of its sample grids, from the first to the newest."""
    from fcdm_keras.plots import plot_losses, plot_scores

    if run.rows:
        png = io.BytesIO()
        plot_losses(run.folder / "log.csv", png)
        yield "Loss", png.getvalue()
    if (run.folder / "scores.csv").exists():
        png = io.BytesIO()
        if plot_scores(run.folder / "scores.csv", png):
            yield "Scores while training", png.getvalue()
    grids = sorted((run.folder / "samples").glob("step-*.png"))
    chosen = [grids[round(i * (len(grids) - 1) / (MAX_GRIDS - 1))] for i in range(MAX_GRIDS)] if grids else []
    for grid in dict.fromkeys(chosen):
        yield f"Samples at step {int(grid.stem.removeprefix('step-')):,}", grid.read_bytes()


def comparison(runs):
    """PNG of all runs' losses in one plot."""
    from fcdm_keras.plots import plot_runs

    png = io.BytesIO()
    plot_runs({run.name: run.folder / "log.csv" for run in runs if run.rows}, png)
    return png.getvalue()


def main(arguments=None):
    options = parse(arguments)
    page = Path(options.output)
    try:
        from fcdm_keras import report_page

        runs = [read_run(folder) for folder in dict.fromkeys(options.runs)]
        write_atomically(page.with_suffix(".md"), report_page.markdown(runs))
        write_atomically(page, report_page.html(runs))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{page} and {page.with_suffix('.md')}: {len(runs)} run{'s' * (len(runs) > 1)} beside the paper's results.")


if __name__ == "__main__":
    main()
