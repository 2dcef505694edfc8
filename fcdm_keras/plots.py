"""Pictures of a run's log."""

from fcdm_keras.callbacks import read_csv

DIFFUSION = {"mse": "noise, mean squared error", "vb": "variational bound, bits/dim"}


def plot_losses(log, path, curves=DIFFUSION):
    """Draws two columns of a `log.csv` over the steps to a PNG, logarithmic; `curves` gives their axis labels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_csv(log)
    steps = [row["step"] for row in rows]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, (name, label) in zip(axes, curves.items(), strict=True):
        axis.plot(steps, [row[name] for row in rows])
        axis.set(xlabel="step", ylabel=label, yscale="log")
        axis.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=120)
    plt.close(figure)
