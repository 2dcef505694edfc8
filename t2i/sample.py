"""Draw images of prompts with a trained model.

    python -m t2i.sample runs/shapes "a small red circle" "a large blue square" --cfg-scale 4 --output DIR
    python -m t2i.sample RUN --prompts prompts.txt --num-samples 1000 --output DIR --npz

Writes one PNG per image (unless --no-png), a grid with the prompts under the images, the settings, and with --npz all
images as `arr_0` and their prompts as `arr_1` of one file. Prompts are taken in turn. Image i depends on its prompt,
the seed and i alone. The same command goes on where it was stopped. It draws damaged files again; with more
--num-samples it adds to the images that are there. With --overwrite, what else is there is replaced by the finished
images.
"""

from fcdm_keras.arguments import integer, texts, word
from fcdm_keras.files import read_lines
from fcdm_keras.options import command_parser, reported
from fcdm_keras.runs.outputs import IMAGES, check_folder
from fcdm_keras.sample import STOPPED
from fcdm_keras.sampling.flags import add_output_flags, add_sampling_flags, check_request_flags
from t2i.recipes import UNTRAINED


def parse(arguments=None):
    parser = command_parser("t2i.sample", __doc__)
    parser.add_argument("source", type=word, help="run folder, preset folder, hf://… or kaggle://…")
    parser.add_argument("texts", type=texts, nargs="*", metavar="PROMPT", help='what to draw; "" is no prompt')
    parser.add_argument("--prompts", type=word, help="file with one prompt per line; a blank line is no prompt")
    parser.add_argument("--negative-prompt", type=texts, help="what guidance leads away from; default nothing")
    parser.add_argument("--num-samples", type=integer(1), help="number of images (default one per prompt)")
    add_sampling_flags(parser, cfg_scale=4.0)
    parser.add_argument("--text-encoder", type=word, help="open_clip's model; default the one it was trained with")
    parser.add_argument("--text-weights", type=word, help="its weights, if they lie elsewhere now: a tag or a file")
    add_output_flags(parser)
    options = parser.parse_intermixed_args(arguments)  # prompts may stand behind flags
    check_request_flags(parser, options)
    if bool(options.texts) == (options.prompts is not None):
        parser.error("give prompts, or a file of them with --prompts (one of the two).")
    if options.text_weights == UNTRAINED:
        parser.error("--text-weights is for weights that lie elsewhere now: a tag or a file.")
    try:
        check_folder(options.output, IMAGES, overwrite=options.overwrite, inputs=[options.source, options.prompts])
        options.texts = options.texts or read_prompts(options.prompts)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if options.cfg_scale == 1 and (options.negative_prompt or "").strip():
        parser.error("--negative-prompt has no effect: --cfg-scale is 1, which is no guidance; leave it out.")
    options.num_samples = options.num_samples or len(options.texts)
    return options


def read_prompts(file):
    """The lines of a file. Raises ValueError or OSError, in one sentence, for one without."""
    texts = read_lines(file)
    if not texts:
        raise ValueError(f"{file} holds no prompts. Expected one per line.")
    return texts


def main(arguments=None):
    options = parse(arguments)
    with reported(STOPPED):
        from fcdm_keras.runs.sample import run
        from t2i.request import open_request

        run(options, open_request)


if __name__ == "__main__":
    main()
