"""Draw images with a trained model.

    python -m fcdm_keras.sample runs/digits --classes 0-9 --num-samples 100 --num-sampling-steps 50 --sampler ddim \\
        --cfg-scale 1.5 --output samples/
    python -m fcdm_keras.sample RUN --num-samples 50000 --labels random --output samples/ --npz --no-png

Writes one PNG per image (unless --no-png), a grid, the settings, and with --npz all images as `arr_0` and their labels
as `arr_1` of one file. Image i depends on the seed and i alone: not on the batch size, the devices, nor on what else is
drawn. All devices, and all processes of a job, share the work. The same command goes on where it was stopped. It
draws damaged files again; with more --num-samples it adds to the images that are there. With --overwrite, images of
other settings, or what another command made, are replaced once the new ones are all there.

--classes takes names where the model knows them. Classes are numbered in the order of their names, and a plain number
is always a class's number: of the classes named 0, 1, 10 and 2, --classes 2 draws the one named 10.
"""

from fcdm_keras.arguments import word
from fcdm_keras.options import command_parser, reported
from fcdm_keras.runs.outputs import IMAGES, check_folder
from fcdm_keras.sampling.flags import add_output_flags, add_request_flags, check_request_flags

STOPPED = "Stopped. The same command goes on."


def parse(arguments=None):
    parser = command_parser("fcdm_keras.sample", __doc__)
    parser.add_argument("source", type=word, help="run folder, preset folder, hf://… or kaggle://…")
    add_request_flags(parser, num_samples=100)
    add_output_flags(parser)
    flags = parser.parse_args(arguments)
    check_request_flags(parser, flags)
    try:
        check_folder(flags.output, IMAGES, overwrite=flags.overwrite, inputs=[flags.source])
    except ValueError as error:
        parser.error(str(error))
    return flags


def main(arguments=None):
    flags = parse(arguments)
    with reported(STOPPED):
        from fcdm_keras.runs.sample import run

        run(flags)


if __name__ == "__main__":
    main()
