"""The work of `python -m fcdm_keras.encode`: a latent store of a source, shard by shard, or its checksums."""

import sys

from fcdm_keras import distribution
from fcdm_keras.autoencoders import KLAutoencoder
from fcdm_keras.data.latent_store import LatentStore
from fcdm_keras.data.latent_writer import StoreEncoder
from fcdm_keras.data.sources import open_source
from fcdm_keras.options import device_options


def run(options, work=None):
    """Encodes what is missing on the devices that the flags name, or checks a store.

    Args:
        options: parsed flags, see `fcdm_keras.encode.add_flags`.
        work: `work(options)` encodes; default `encode`.
    """
    if options.verify is not None:
        verify(options.verify)
        return
    with distribution.setup(**device_options(options)):
        (work or encode)(options)


def verify(folder):
    """Checks a store and prints what was found. Exits with 1 if it is damaged."""
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


def encode(options, source=None):
    """Encodes what is missing. Returns the metadata of the store if it is finished, and else `None`.

    Args:
        options: parsed flags, see `fcdm_keras.encode.add_flags`.
        source: see `fcdm_keras.data.sources`; default the one that the options name.
    """
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
    else:
        metadata = encoder.run(options.process_index, options.num_processes)
        if metadata is None:
            print(f"The shards of process {options.process_index} are finished; others are still missing.")
    if metadata is not None:
        _show(metadata, options.output)
    return metadata


def _show(metadata, folder):
    print(f"{folder}: {describe(metadata)}.")
    if metadata.skipped:
        print(f"{metadata.skipped:,} images could not be read and were left out; the shards' .json files name them.")
    if metadata.enlarged:
        print(f"{metadata.enlarged:,} images were smaller than {metadata.image_size} px and were enlarged.")
