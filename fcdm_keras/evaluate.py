"""Score images against a reference, as ADM's evaluation suite does.

    python -m fcdm_keras.evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz --inception GRAPH.pb
    python -m fcdm_keras.evaluate RUN --num-samples 50000 --labels random --reference REF.npz --json scores.json
    python -m fcdm_keras.evaluate images/ --write-reference REF.npz
    python -m fcdm_keras.evaluate latents/ --write-reference REF.npz

SAMPLES is an .npz file with arr_0 (uint8, N×H×W×3), an .npy file, a folder of images, a latent store, whose images are
decoded, or a run folder or preset, whose model then draws the images without writing them. The reference is a file of
ADM's, one of ours, or images likewise. What a file is, its content says and not its name. Of images that are there,
--num-samples N takes N that are evenly spaced.

Scores: FID, sFID, Inception score, precision and recall (3 neighbours), KID. --features takes other networks than
Inception: dinov2 for FD-DINOv2, or a Keras model of your own. Beside KID stands the standard deviation of its estimates
on subsets of 1000 images, kid_std in the JSON.
"""

from fcdm_keras.arguments import given, integer, listed, shown, word
from fcdm_keras.evaluation import TITLES, is_model
from fcdm_keras.options import add_device_flags, add_overwrite_flag, check_used, command_parser, flag, reported
from fcdm_keras.runs.outputs import check_file
from fcdm_keras.sampling.flags import SOLVER_FLAGS, add_request_flags, check_request_flags

# Options that say how a model draws; --batch-size is also that of a latent store's images, which are decoded.
GUIDANCE = ["cfg_scale", "cfg_channels"]
SOLVERS = ["num_sampling_steps", "sampler", *(name for names in SOLVER_FLAGS.values() for name in names)]
DRAWING = ["classes", "label_order", *SOLVERS, *GUIDANCE, "image_size", "seed"]


def parse(arguments=None):
    parser = _parser()
    options = parser.parse_args(arguments)
    check_request_flags(parser, options)
    if bool(options.reference) == bool(options.write_reference):
        parser.error("give either --reference, to score SAMPLES, or --write-reference, to make a reference of them.")
    _check_used(parser, options, given(parser.parse_args, arguments))
    options.metrics = _metrics(parser, options.metrics)
    inputs = [options.samples, options.reference, options.inception, options.features]
    try:
        for name, mark in (("json", b'"reference_statistics"'), ("write_reference", b"features.npy")):
            if path := getattr(options, name):
                check_file(path, mark, overwrite=options.overwrite, inputs=inputs, place=flag(name))
    except ValueError as error:
        parser.error(str(error))
    return options


def _parser():
    parser = command_parser("fcdm_keras.evaluate", __doc__)
    parser.add_argument(
        "samples",
        type=word,
        help=".npz or .npy file, folder of images, latent store, run folder, preset folder, hf://… or kaggle://…",
    )
    parser.add_argument(
        "--reference", type=word, metavar="REF", help=".npz file with arr_0, mu, sigma, mu_s, sigma_s, or images"
    )
    parser.add_argument("--json", type=word, metavar="FILE", help="write the scores to this file")
    parser.add_argument(
        "--metrics", type=listed, help=f"some of {','.join(TITLES)}; default all that the features allow"
    )
    parser.add_argument(
        "--features",
        type=word,
        default="inception",
        help="inception, dinov2, dinov2:PRESET, pixels or a .keras model that takes 0 to 255 (default inception)",
    )
    parser.add_argument(
        "--inception", type=word, metavar="GRAPH", help="classify_image_graph_def.pb; default downloads it"
    )
    parser.add_argument(
        "--features-batch-size", type=integer(1), default=64, help="images per network call (default 64)"
    )
    text = "write a reference file of SAMPLES instead of scoring"
    parser.add_argument("--write-reference", type=word, metavar="REF", help=text)
    parser.add_argument(
        "--reference-images", type=integer(1), default=10_000, help="images kept in it, evenly spaced (default 10000)"
    )
    add_overwrite_flag(parser)
    drawing = parser.add_argument_group("when a model draws the images")
    add_request_flags(drawing, num_samples=None)
    add_device_flags(parser, processes=False)
    return parser


def _check_used(parser, options, named):
    """Ends the program for options without effect."""
    if options.features != "inception":
        check_used(parser, named, ["inception"], f"--features {options.features} are not Inception's")
    if options.write_reference:
        check_used(parser, named, ["metrics", "json"], "--write-reference scores nothing")
    else:
        check_used(parser, named, ["reference_images"], "it is for --write-reference")
    if not is_model(options.samples):
        check_used(parser, named, DRAWING, f"nothing is drawn, the images are in {options.samples}")


def _metrics(parser, text):
    """Names of metrics in the order of the suite; capitals, and blanks around or inside them, do not matter."""
    if text is None:
        return None
    chosen = {"_".join(name.lower().split()) for name in text.split(",")} - {""}
    if not chosen <= TITLES.keys():
        parser.error(f"--metrics must be some of {','.join(TITLES)}. Received: {shown(text)}")
    return [metric for metric in TITLES if metric in chosen]


def main(arguments=None):
    options = parse(arguments)
    with reported():
        from fcdm_keras.runs.evaluate import run

        run(options)


if __name__ == "__main__":
    main()
