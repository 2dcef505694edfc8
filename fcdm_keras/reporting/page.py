"""The report as HTML and as Markdown."""

import base64
import dataclasses
import html as escaping
import io

from fcdm_keras.files import write_atomically
from fcdm_keras.reporting.tables import HEADINGS, read_run, tables
from fcdm_keras.training.plots import plot_losses, plot_runs, plot_scores

MAX_GRIDS = 4
CHANGES = ("From step", "Setting", "Before", "After", "Date")

STYLE = """<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --ours: #2a7de11f; --accent: #2a7de1; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { margin-top: 2.6rem; border-bottom: 2px solid var(--accent); }
h2 { padding-bottom: .25rem; font-size: 1.25rem; } h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p.note { opacity: .75; margin-top: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { border-bottom-width: 2px; } th:first-child, td:first-child, th:last-child, td:last-child { text-align: left; }
tbody tr:nth-child(even) { background: var(--soft); } tr.fcdm td:first-child { font-weight: 700; }
tr.ours { background: var(--ours) !important; }
figure { display: inline-block; margin: .4rem 1rem .8rem 0; vertical-align: top; }
figure img { max-width: 100%; max-height: 480px; border-radius: 6px; border: 1px solid var(--line); background: #fff; }
figure img.grid { image-rendering: pixelated; max-width: 320px; }
figcaption { font-size: .85rem; opacity: .75; }
details { margin-top: .8rem; } summary { cursor: pointer; }
</style>"""
NOTE = (
    "Rows marked “paper” are the paper's figures (50,000 samples, ADM's suite); all others were measured here. FLOPs "
    "are multiply-accumulates of one forward pass, as the paper counts them. The paper's images/s are network "
    "evaluations at batch 64 on its GPU; ours are training images, on the machine of the run."
)


def write(folders, path):
    """Writes the page of run folders to `path`, a `Path`, and its tables as Markdown beside it. Returns both paths.

    Raises:
        ValueError: a folder is none of a run, or a file in it is damaged; nothing is written then.
        OSError: a file cannot be read or written.
    """
    runs = [read_run(folder) for folder in folders]
    written = path, path.with_suffix(".md")
    write_atomically(written[1], markdown(runs))
    write_atomically(path, html(runs))
    return written


def html(runs):
    """The page, with everything inside."""
    parts = ["<h1>FCDM: runs and the paper's results</h1>", f'<p class="note">{escaping.escape(NOTE)}</p>']
    (title, ours), *papers = tables(runs)
    parts += [f"<h2>{title}</h2>", _table(HEADINGS, ours, "ours")]
    if sum(bool(run.rows) for run in runs) > 1:
        parts.append(_picture("Losses of all runs", comparison(runs)))
    for run in runs:
        parts += _run(run)
    for title, rows in papers:
        parts += [f"<h2>{escaping.escape(title)}</h2>", _table(HEADINGS, rows)]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>FCDM</title>\n{STYLE}'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def markdown(runs):
    """The tables as Markdown."""
    lines = ["# FCDM: runs and the paper's results", "", NOTE]
    for title, rows in tables(runs):
        lines += ["", f"## {title}", "", *_markdown_table(HEADINGS, rows)]
    for run in runs:
        if run.judged:
            lines += ["", f"## Scores of {run.name}", "", *_markdown_table(("Score", "Value"), _score_rows(run))]
        if run.changes:
            lines += ["", f"## Changed while training {run.name}", "", *_markdown_table(CHANGES, _change_rows(run))]
        lines += ["", f"## Settings of {run.name}", "", *_markdown_table(("Setting", "Value"), _setting_rows(run))]
    return "\n".join(lines) + "\n"


def pictures(run):
    """(title, PNG) of a run's curves and of its sample grids, from the first to the newest."""
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
    png = io.BytesIO()
    plot_runs({run.name: run.folder / "log.csv" for run in runs if run.rows}, png)
    return png.getvalue()


def _run(run):
    config = run.config
    yield f"<h2>{escaping.escape(run.name)}</h2>"
    yield (
        f'<p class="note">recipe {config.recipe}, FCDM-{config.model_name}, '
        f"{config.image_size}×{config.image_size} pixels, {run.steps:,} of {config.steps:,} steps logged</p>"
    )
    if run.judged:
        yield "<h3>Scores</h3>" + _table(("Score", "Value"), _score_rows(run))
    for title, png in pictures(run):
        yield _picture(title, png)
    if not run.rows:
        yield "<p>Nothing is logged yet.</p>"
    if run.changes:
        yield "<h3>Changed while training</h3>" + _table(CHANGES, _change_rows(run))
    yield f"<details><summary>Settings</summary>{_table(('Setting', 'Value'), _setting_rows(run))}</details>"


def _score_rows(run):
    return [(name.replace("_", " "), _number(value)) for name, value in run.judged.items()]


def _change_rows(run):
    return [(f"{e['step']:,}", e["setting"], e["before"], e["after"], e["date"]) for e in run.changes]


def _setting_rows(run):
    return [(name, str(value)) for name, value in dataclasses.asdict(run.config).items()]


def _number(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(headings, rows, kind=""):
    head = "".join(f"<th>{escaping.escape(heading)}</th>" for heading in headings)
    body = "".join(
        f'<tr class="{kind} {"fcdm" if str(row[0]).startswith("FCDM") else ""}">'
        + "".join(f"<td>{'–' if cell is None else escaping.escape(str(cell))}</td>" for cell in row)
        + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _markdown_table(headings, rows):
    yield "| " + " | ".join(headings) + " |"
    yield "|---" * len(headings) + "|"
    for row in rows:
        yield "| " + " | ".join("–" if cell is None else str(cell).replace("|", "\\|") for cell in row) + " |"


def _picture(title, png):
    data = base64.b64encode(png).decode()
    kind = ' class="grid"' if title.startswith("Samples") else ""
    caption = escaping.escape(title)
    image = f'<img{kind} alt="{caption}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
