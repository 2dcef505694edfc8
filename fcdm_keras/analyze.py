"""Look inside trained models, several at once.

    python -m fcdm_keras.analyze spectrum runs/digits --output analysis/
    python -m fcdm_keras.analyze activations runs/digits RUN --data validation.npz --output analysis/

spectrum: the sum of the log-magnitude spectrum of the predicted noise at each timestep, averaged over samples
(appendix F of the paper). activations: the mean pairwise cosine distance of the channels behind GRN in each block, with
GRN and with every GRN made the identity (figure 7). Both write a curve as PNG and its numbers as CSV.

The samples are held-out digits for models trained on them; for others give --data: an .npz file whose arr_0 holds
images (uint8, N×H×W×C) or latents (float), and arr_1, if it is there, their labels.
"""

from pathlib import Path

from fcdm_keras.arguments import integer, word
from fcdm_keras.options import add_overwrite_flag, command_parser, reported
from fcdm_keras.runs.outputs import check_file


def parse(arguments=None):
    parser = command_parser("fcdm_keras.analyze", __doc__)
    parser.add_argument("analysis", choices=("spectrum", "activations"))
    parser.add_argument(
        "sources", type=word, nargs="+", metavar="MODEL", help="run folder, preset folder, hf://… or kaggle://…"
    )
    parser.add_argument("--data", type=word, metavar="FILE", help=".npz file of samples; default held-out digits")
    samples = {"type": integer(1), "default": 128}
    parser.add_argument("--num-samples", **samples, help="samples, the first of the data (default 128)")
    parser.add_argument(
        "--num-timesteps",
        type=integer(1, 1000),
        help="timesteps, evenly spaced over 0 to 999 (default: all 1000 for spectrum, 10 for activations)",
    )
    parser.add_argument("--batch-size", type=integer(1), default=64, help="samples computed at once (default 64)")
    parser.add_argument("--seed", type=integer(0, 2**64 - 1), default=0, help="seed of the noise (default 0)")
    parser.add_argument("--output", type=word, required=True, help="folder to write")
    add_overwrite_flag(parser)
    options = parser.parse_args(arguments)
    options.num_timesteps = options.num_timesteps or {"spectrum": 1000, "activations": 10}[options.analysis]
    if Path(options.output).is_dir():
        _check_output(parser, options)
    if options.data and not Path(options.data).is_file():
        parser.error(f"--data {options.data}: there is no such file.")
    return options


def _check_output(parser, options):
    """Ends the program for a table or a picture that is no analysis; a picture is one if its table is."""
    table, picture = (Path(options.output) / f"{options.analysis}.{kind}" for kind in ("csv", "png"))
    try:
        check_file(table, b"model,", overwrite=options.overwrite, inputs=[options.data])
        if not table.exists():
            check_file(picture, b"model,", overwrite=options.overwrite)
    except ValueError as error:
        parser.error(str(error))


def main(arguments=None):
    options = parse(arguments)
    with reported():
        Path(options.output).mkdir(parents=True, exist_ok=True)
        from fcdm_keras.reporting import analysis

        found = dict(analysis.curves(options))
        paths = analysis.write(options, found)
        for name, (_, values) in found.items():
            print(f"{name}: {values.mean():.4g} on average, {values.min():.4g} to {values.max():.4g}")
        print(f"{paths[1]} shows the curves, {paths[0]} holds the numbers.")


if __name__ == "__main__":
    main()
