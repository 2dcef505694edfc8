"""Encode images once, and train on their latents ever after.

    python -m fcdm_keras.encode --source imagenet2012 --vae stabilityai/sd-vae-ft-ema --image-size 256 --output latents/
    python -m fcdm_keras.encode --verify latents/

The source is a folder of class folders, a data set of TensorFlow Datasets, or `photos`. A killed run goes on with the
same command, after the last finished shard. All devices, and all processes of a job, share the work; processes that
know nothing of each other do so with --num-processes and --process-index, each writing shards of its own.
"""

import argparse
import sys

from fcdm_keras.launch import add_device_flags, device_options


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m fcdm_keras.encode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_flags(parser, "folder of class folders, TFDS name such as imagenet2012, or photos")
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
    add_device_flags(parser)


def check_flags(parser, options):
    """Ends the program for flags that make no sense."""
    if options.verify is None:
        for flag in ("source", "vae", "output"):
            if getattr(options, flag) is None:
                parser.error(f"--{flag} is needed (or --verify STORE).")
    for flag in ("image_size", "batch_size", "shard_size", "num_processes"):
        if getattr(options, flag) < 1:
            parser.error(f"--{flag.replace('_', '-')} must be at least 1. Received: {getattr(options, flag)}")
    if options.max_unreadable < 0:
        parser.error(f"--max-unreadable must be at least 0. Received: {options.max_unreadable}")
    if not 0 <= options.process_index < options.num_processes:
        parser.error(f"--process-index must lie in [0, {options.num_processes - 1}]. Received: {options.process_index}")


def verify(folder):
    """Checks a store and prints what was found. Exits with 1 if it is damaged."""
    from fcdm_keras.data.latent_store import LatentStore

    store = LatentStore(folder)
    damaged = store.damaged_shards()
    if damaged:
        sys.exit(
            f"error: {', '.join(map(str, damaged))}: the contents do not match the checksum; delete each with "
            "its .json, and store.json, and run the encode command again."
        )
    print(f"{folder}: {describe(store.metadata)}; all {len(store.metadata.shards)} shards match their checksums.")


def describe(metadata):
    """A store in one phrase."""
    height, width, channels = metadata.latent_shape
    return (
        f"{metadata.num_images:,} images{_of_classes(metadata.num_classes)} at {metadata.image_size} px as "
        f"{height}×{width}×{channels} posteriors" + (", each with its mirror image" if metadata.flips else "")
    )


def _of_classes(count):
    return "" if count == 1 else f" of {count:,} classes"


def main(arguments=None):
    options = parse(arguments)
    try:
        if options.verify is not None:
            verify(options.verify)
            return
        from fcdm_keras import distribution

        with distribution.setup(**device_options(options)):
            run(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on after the last finished shard.")


def run(options, source=None):
    """Encodes what is missing. Returns the metadata of the store if it is finished, and else `None`.

    Args:
        options: what `add_flags` parsed.
        source: see `fcdm_keras.data.sources`; default the one that the options name.
    """
    from fcdm_keras import distribution
    from fcdm_keras.autoencoders import KLAutoencoder
    from fcdm_keras.data.latent_writer import StoreEncoder
    from fcdm_keras.data.sources import open_source

    job = distribution.job()
    if job.process_count > 1 and options.num_processes > 1:
        raise ValueError(
            f"--num-processes is for processes that know nothing of each other; these {job.process_count}, started by "
            f"{job.launcher}, share the work without it."
        )
    source = source or open_source(options.source, options.split, options.data_dir)
    distribution.say(f"{options.source}: {len(source):,} images{_of_classes(len(source.class_names))}")
    if getattr(source, "other_files", 0):
        distribution.say(f"{source.other_files:,} files are no images by their names and are left out.")
    autoencoder = KLAutoencoder.from_diffusers(options.vae)
    encoder = StoreEncoder(
        options.output,
        source,
        autoencoder,
        autoencoder_name=options.vae,
        image_size=options.image_size,
        flips=options.flips,
        shard_size=options.shard_size,
        batch_size=options.batch_size,
        max_unreadable=options.max_unreadable,
    )
    if job.process_count > 1:
        encoder.run(job.process_index, job.process_count)
        distribution.barrier()
        metadata = encoder.finish() if distribution.is_main() else None
        if metadata is None:
            return None
    else:
        metadata = encoder.run(options.process_index, options.num_processes)
    if metadata is None:
        print(f"The shards of process {options.process_index} are finished; others are still missing.")
        return None
    print(f"{options.output}: {describe(metadata)}.")
    if metadata.skipped:
        print(f"{metadata.skipped:,} images could not be read and were left out; the shards' .json files name them.")
    if metadata.enlarged:
        print(f"{metadata.enlarged:,} images were smaller than {metadata.image_size} px and were enlarged.")
    return metadata


if __name__ == "__main__":
    main()
