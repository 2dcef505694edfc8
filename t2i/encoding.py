"""The work of `python -m t2i.encode`: a latent store, and its captions with their embeddings."""

from pathlib import Path

from fcdm_keras import distribution
from fcdm_keras.data.encode import arguments, encode
from fcdm_keras.data.store_metadata import ShardEntry
from fcdm_keras.formats.documents import read_json
from t2i.caption_store import write_captions
from t2i.coco import open_coco
from t2i.recipes import UNTRAINED
from t2i.text_encoder import OpenCLIPTextEncoder


def encode_captioned(options):
    """Encodes captions first, as far as a bad text encoder shows, then the images, then the captions.

    Returns:
        The store's metadata where it is finished, with its captions; else `None`.
    """
    source = open_coco(options.source, options.split, options.data_dir, options.captions)
    pretrained = None if options.text_weights == UNTRAINED else options.text_weights
    encoder = None
    if distribution.is_main():
        encoder = OpenCLIPTextEncoder(options.text_encoder, pretrained, options.text_seed)
    metadata = encode(source, **arguments(options))
    if metadata is None:
        return None
    captions = stored_captions(source, options.output, metadata)
    count = sum(map(len, captions))
    for remark in source.remarks:
        print(remark)
    print(f"Encoding {count:,} captions with {options.text_encoder} ({options.text_weights}).")
    write_captions(options.output, captions, encoder)
    print(f"{options.output}: {count:,} captions of {len(captions):,} images, {encoder.embedding_dim} numbers each.")
    return metadata


def stored_captions(source, folder, metadata):
    """Captions of the images that a store holds, in its order: those that could be read."""
    skipped = set()
    for shard in metadata.shards:
        skipped |= {key for key, _ in read_json((Path(folder) / shard.file).with_suffix(".json"), ShardEntry).skipped}
    captions = [own for key, own in source.captions().items() if key not in skipped]
    if len(captions) != metadata.num_images:
        raise ValueError(
            f"{folder} holds {metadata.num_images:,} images, and {len(captions):,} of {metadata.source} have captions: "
            "was the source changed meanwhile? Encode it into another --output."
        )
    return captions
