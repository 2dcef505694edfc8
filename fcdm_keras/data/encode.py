"""The work of `python -m fcdm_keras.encode`: a latent store of a source, shard by shard, or its checksums."""

import sys

from fcdm_keras import distribution
from fcdm_keras.autoencoders import KLAutoencoder
from fcdm_keras.data.latent_store import LatentStore
from fcdm_keras.data.latent_writer import StoreEncoder
from fcdm_keras.data.sources import about, open_source
from fcdm_keras.options import device_options


def run(options, work):
    """Encodes what is missing on the devices that the flags name, or checks a store.

    Args:
        options: parsed flags, see `fcdm_keras.encode.add_flags`.
        work: `work(options)` encodes, such as `encode_source`.
    """
    if options.verify is not None:
        verify(options.verify)
        return
    with distribution.setup(**device_options(options)):
        work(options)


def verify(folder):
    """Checks a store and prints what was found. Exits with 1 if it is damaged. Raises ValueError for wrong numbers."""
    store = LatentStore(folder)
    damaged = store.damaged_shards()
    if damaged:
        sys.exit(
            f"error: {', '.join(map(str, damaged))}: the contents do not match the checksum; delete each with "
            "its .json, and store.json, and run the encode command again."
        )
    store.check_numbers()
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


def arguments(options):
    """Those of parsed flags, see `fcdm_keras.encode.add_flags`, that `encode` takes besides the source."""
    names = ("vae", "output", "image_size", "flips", "batch_size", "shard_size", "max_unreadable")
    return {name: getattr(options, name) for name in (*names, "num_processes", "process_index")}


def encode_source(options):
    """As `encode`, of the source that parsed flags name."""
    features = {"label": options.label_feature, "image": options.image_feature}
    return encode(open_source(options.source, options.split, options.data_dir, **features), **arguments(options))


def encode(
    source,
    *,
    vae,
    output,
    image_size,
    flips=True,
    batch_size=32,
    shard_size=16384,
    max_unreadable=100,
    num_processes=1,
    process_index=0,
):
    """Encodes what is missing. Returns the metadata of the store if it is finished, and else `None`.

    Args:
        source: see `fcdm_keras.data.sources`.
        vae: what `KLAutoencoder.from_diffusers` takes.
        output: folder of the store.
        image_size, flips, batch_size, shard_size, max_unreadable: see `StoreEncoder`.
        num_processes, process_index: processes that know nothing of each other, and which of them this is.
    """
    job = distribution.job()
    if job.process_count > 1 and num_processes > 1:
        raise ValueError(
            f"--num-processes is for processes that know nothing of each other; these {job.process_count}, started by "
            f"{job.launcher}, share the work without it."
        )
    distribution.say(f"{source.name}: {len(source):,} images{_of_classes(len(source.class_names))}")
    for sentence in about(source):
        distribution.say(sentence)
    options = {"flips": flips, "shard_size": shard_size, "batch_size": batch_size, "max_unreadable": max_unreadable}
    autoencoder = KLAutoencoder.from_diffusers(vae)
    encoder = StoreEncoder(output, source, autoencoder, autoencoder_name=vae, image_size=image_size, **options)
    if job.process_count > 1:
        encoder.run(job.process_index, job.process_count)
        distribution.barrier()
        metadata = encoder.finish() if distribution.is_main() else None
    else:
        metadata = encoder.run(process_index, num_processes)
        if metadata is None:
            print(f"The shards of process {process_index} are finished; others are still missing.")
    if metadata is not None:
        _show(metadata, output)
    return metadata


def _show(metadata, folder):
    print(f"{folder}: {describe(metadata)}.")
    if metadata.skipped:
        print(f"{metadata.skipped:,} images could not be read and were left out; the shards' .json files name them.")
    if metadata.enlarged:
        print(f"{metadata.enlarged:,} images were smaller than {metadata.image_size} px and were enlarged.")
