"""Pictures of a run's logs. A `path` may be a binary file as well."""

from matplotlib.figure import Figure

from fcdm_keras.training.callbacks import read_csv

DIFFUSION = {"mse": "noise, mean squared error", "vb": "variational bound, bits/dim"}


def plot_losses(log, path, columns=DIFFUSION):
    """Draws columns of a `log.csv` over steps to a PNG, logarithmic; `columns` gives their axis labels."""
    plot_runs({"": log}, path, columns)


def plot_runs(logs, path, columns=DIFFUSION):
    """As `plot_losses`, of several runs in one picture.

    Args:
        logs: name → path of its `log.csv`.
        path: PNG to write.
        columns: the columns drawn → axis labels; where a log lacks one, as a flow's does, `loss` is drawn instead.
    """
    runs = {name: read_csv(log, ("step", "loss")) for name, log in logs.items()}
    if any(not columns.keys() <= row.keys() for rows in runs.values() for row in rows[:1]):
        columns = {"loss": "loss"}
    figure, axes = _figure(len(columns))
    for axis, (column, label) in zip(axes, columns.items(), strict=True):
        for name, rows in runs.items():
            axis.plot([row["step"] for row in rows], [row[column] for row in rows], label=name)
        axis.set(xlabel="step", ylabel=label, yscale="log")
        if len(runs) > 1:
            axis.legend()
    _save(figure, path)


def plot_scores(scores, path, columns=("agreement", "frechet")):
    """Draws columns of a `scores.csv`, whichever it has, over steps to a PNG. Returns whether there was anything."""
    rows = read_csv(scores)
    shown = [name for name in columns if rows and name in rows[0]]
    if not shown:
        return False
    figure, axes = _figure(len(shown))
    for axis, name in zip(axes, shown):
        axis.plot([row["step"] for row in rows], [row[name] for row in rows], marker="o")
        axis.set(xlabel="step", ylabel=name.replace("_", " "))
    _save(figure, path)
    return True


def plot_curves(curves, path, x_label, y_label, marker=""):
    """Draws named curves, name → (x, y), to a PNG."""
    figure, (axis,) = _figure(1, width=8)
    for name, (x, y) in curves.items():
        axis.plot(x, y, marker=marker, label=name)
    axis.set(xlabel=x_label, ylabel=y_label)
    axis.legend()
    _save(figure, path)


def _figure(columns, width=5):
    figure = Figure(figsize=(width * columns, 4), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3, which="both")
    return figure, axes


def _save(figure, path):
    figure.savefig(path, dpi=120, format="png")
