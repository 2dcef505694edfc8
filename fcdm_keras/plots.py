"""Pictures of a run's log."""

from fcdm_keras.callbacks import read_csv


def plot_losses(log, path):
    """Draws the loss curves of a `log.csv` to a PNG: mse and vb over steps, logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_csv(log)
    steps = [row["step"] for row in rows]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, name, label in (
        (axes[0], "mse", "noise, mean squared error"),
        (axes[1], "vb", "variational bound, bits/dim"),
    ):
        axis.plot(steps, [row[name] for row in rows])
        axis.set(xlabel="step", ylabel=label, yscale="log")
        axis.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=120)
    plt.close(figure)
