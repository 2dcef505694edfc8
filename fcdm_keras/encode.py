"""Encode images once, and train on their latents ever after.

    python -m fcdm_keras.encode --source imagenet2012 --vae stabilityai/sd-vae-ft-ema --image-size 256 --output latents/
    python -m fcdm_keras.encode --verify latents/

The source is a folder of class folders, a data set of TensorFlow Datasets, or `photos`. A killed run goes on with the
same command, after the last finished shard. All devices, and all processes of a job, share the work; processes that
know nothing of each other do so with --num-processes and --process-index, each writing shards of its own. With
--overwrite, another store or what else is there is replaced once this one is finished.
"""

import argparse

from fcdm_keras.arguments import SIDE, given, integer, word
from fcdm_keras.options import add_device_flags, add_overwrite_flag, check_used, command_parser, reported
from fcdm_keras.runs.outputs import STORE, check_folder


def parse(arguments=None):
    parser = command_parser("fcdm_keras.encode", __doc__)
    add_flags(parser, "folder of class folders, TFDS name such as imagenet2012, or photos")
    for what in ("label", "image"):
        parser.add_argument(
            f"--{what}-feature", type=word, help=f"which feature of a TFDS set is the {what}; default as declared"
        )
    return check_flags(parser, arguments)


def add_flags(parser, sources):
    """Adds the flags of this command to an argument parser; `sources` says what --source may be."""
    parser.add_argument("--source", type=word, help=sources)
    parser.add_argument("--split", type=word, default="train", help="split of the source (default train)")
    parser.add_argument("--data-dir", type=word, help="folder of TensorFlow Datasets")
    parser.add_argument("--vae", type=word, help="autoencoder: folder or Hub id in diffusers' form")
    side = {"type": integer(1, SIDE), "default": 256}
    parser.add_argument("--image-size", **side, help="side of the centre crop, pixels (default 256)")
    parser.add_argument("--output", type=word, help="folder of the latent store")
    parser.add_argument(
        "--flips", action=argparse.BooleanOptionalAction, default=True, help="also encode mirror images (default)"
    )
    for flag, lowest, default, text in (
        ("batch-size", 1, 32, "images encoded at once"),
        ("shard-size", 1, 16384, "images of the source per shard"),
        ("max-unreadable", 0, 100, "unreadable images to pass over"),
        ("num-processes", 1, 1, "processes that share the work"),
        ("process-index", 0, 0, "which of them this is"),
    ):
        parser.add_argument(f"--{flag}", type=integer(lowest), default=default, help=f"{text} (default {default})")
    parser.add_argument("--verify", type=word, metavar="STORE", help="check a store's checksums and stop")
    add_overwrite_flag(parser)
    add_device_flags(parser)


def check_flags(parser, arguments):
    """Parses. Ends the program for flags that make no sense."""
    options, named = parser.parse_args(arguments), given(parser.parse_args, arguments)
    if options.verify is not None:
        check_used(
            parser, named, [n for n in vars(options) if n != "verify"], "--verify checks a store, and makes none"
        )
    else:
        for name in ("source", "vae", "output"):
            if getattr(options, name) is None:
                parser.error(f"--{name} is needed (or --verify STORE).")
        try:
            inputs = [options.source, options.vae, options.data_dir]
            check_folder(options.output, STORE, overwrite=options.overwrite, inputs=inputs)
        except ValueError as error:
            parser.error(str(error))
    if not 0 <= options.process_index < options.num_processes:
        parser.error(f"--process-index must lie in [0, {options.num_processes - 1}]. Received: {options.process_index}")
    return options


def main(arguments=None):
    options = parse(arguments)
    with reported("Stopped. The same command goes on after the last finished shard."):
        from fcdm_keras.data.encode import encode_source, run
        from fcdm_keras.runs.overwriting import in_its_place

        run(options, in_its_place(encode_source, STORE))


if __name__ == "__main__":
    main()
