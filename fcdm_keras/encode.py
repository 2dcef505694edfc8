"""Encode images once, and train on their latents ever after.

    python -m fcdm_keras.encode --source imagenet2012 --vae stabilityai/sd-vae-ft-ema --image-size 256 --output latents/
    python -m fcdm_keras.encode --verify latents/

The source is a folder of class folders, a data set of TensorFlow Datasets, or `photos`. A killed run goes on with the
same command, after the last finished shard. All devices, and all processes of a job, share the work; processes that
know nothing of each other do so with --num-processes and --process-index, each writing shards of its own. With
--overwrite, another store or what else is there is replaced once this one is finished.
"""

import argparse

from fcdm_keras.options import add_device_flags, add_overwrite_flag, check_at_least, command_parser, reported
from fcdm_keras.runs.outputs import STORE, check_folder


def parse(arguments=None):
    parser = command_parser("fcdm_keras.encode", __doc__)
    add_flags(parser, "folder of class folders, TFDS name such as imagenet2012, or photos")
    for what in ("label", "image"):
        parser.add_argument(f"--{what}-feature", help=f"which feature of a TFDS set is the {what}; default as declared")
    options = parser.parse_args(arguments)
    check_flags(parser, options)
    return options


def add_flags(parser, sources):
    """Adds the flags of this command to an argument parser; `sources` says what --source may be."""
    parser.add_argument("--source", help=sources)
    parser.add_argument("--split", default="train", help="split of the source (default train)")
    parser.add_argument("--data-dir", default=None, help="folder of TensorFlow Datasets")
    parser.add_argument("--vae", help="autoencoder: folder or Hub id in diffusers' form")
    parser.add_argument("--image-size", type=int, default=256, help="side of the centre crop, pixels (default 256)")
    parser.add_argument("--output", help="folder of the latent store")
    parser.add_argument(
        "--flips", action=argparse.BooleanOptionalAction, default=True, help="also encode mirror images (default)"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="images encoded at once (default 32)")
    parser.add_argument("--shard-size", type=int, default=16384, help="images of the source per shard (default 16384)")
    parser.add_argument("--max-unreadable", type=int, default=100, help="unreadable images to pass over (default 100)")
    parser.add_argument("--num-processes", type=int, default=1, help="processes that share the work (default 1)")
    parser.add_argument("--process-index", type=int, default=0, help="which of them this is (default 0)")
    parser.add_argument("--verify", metavar="STORE", help="check a store's checksums and stop")
    add_overwrite_flag(parser)
    add_device_flags(parser)


def check_flags(parser, options):
    """Ends the program for flags that make no sense."""
    if options.verify is None:
        for name in ("source", "vae", "output"):
            if getattr(options, name) is None:
                parser.error(f"--{name} is needed (or --verify STORE).")
        try:
            inputs = [options.source, options.vae, options.data_dir]
            check_folder(options.output, STORE, overwrite=options.overwrite, inputs=inputs)
        except ValueError as error:
            parser.error(str(error))
    check_at_least(parser, options, 1, "image_size", "batch_size", "shard_size", "num_processes")
    check_at_least(parser, options, 0, "max_unreadable")
    if not 0 <= options.process_index < options.num_processes:
        parser.error(f"--process-index must lie in [0, {options.num_processes - 1}]. Received: {options.process_index}")


def main(arguments=None):
    options = parse(arguments)
    with reported("Stopped. The same command goes on after the last finished shard."):
        from fcdm_keras.data.encode import encode_source, run
        from fcdm_keras.runs.overwriting import in_its_place

        run(options, in_its_place(encode_source, STORE))


if __name__ == "__main__":
    main()
