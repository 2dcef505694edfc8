"""Encode captioned images once, and train on their latents and text embeddings ever after.

    python -m t2i.encode --source coco_captions --vae stabilityai/sd-vae-ft-ema --image-size 256 --output latents/coco
    python -m t2i.encode --source coco/ --split train2017 --vae … --output latents/coco

The source is TensorFlow Datasets' coco_captions, or a folder with the official files: train2017/ (or train2014/), and
annotations/captions_train2017.json. The store is that of `python -m fcdm_keras.encode`, with the captions and all
their embeddings beside the latents. A killed run goes on with the same command.
"""

import argparse
import json
import sys
from pathlib import Path

from fcdm_keras import encode
from fcdm_keras.launch import device_options
from t2i.presets import UNTRAINED


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m t2i.encode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    encode.add_flags(parser, "folder with COCO's official files, or coco_captions of TensorFlow Datasets")
    parser.add_argument("--captions", default=None, help="caption file; default annotations/captions_SPLIT.json")
    parser.add_argument("--text-encoder", default="ViT-L-14", help="open_clip's model (default ViT-L-14)")
    parser.add_argument(
        "--text-weights",
        default="openai",
        help=f"its weights: a tag, a file, or {UNTRAINED} for an untrained one (default openai)",
    )
    parser.add_argument("--text-seed", type=int, default=0, help="seed of an untrained text encoder (default 0)")
    options = parser.parse_args(arguments)
    encode.check_flags(parser, options)
    return options


def run(options):
    """Encodes captions first, as far as a bad text encoder shows, then the images, then the captions."""
    from fcdm_keras import distribution
    from t2i.caption_store import write_captions
    from t2i.coco import open_coco
    from t2i.text_encoder import OpenCLIPTextEncoder

    source = open_coco(options.source, options.split, options.data_dir, options.captions)
    pretrained = None if options.text_weights == UNTRAINED else options.text_weights
    encoder = None
    if distribution.is_main():
        encoder = OpenCLIPTextEncoder(options.text_encoder, pretrained, options.text_seed)
    metadata = encode.run(options, source)
    if metadata is None:
        return
    captions = stored_captions(source, options.output, metadata)
    count = sum(map(len, captions))
    print(f"Encoding {count:,} captions with {options.text_encoder} ({options.text_weights}).")
    write_captions(options.output, captions, encoder)
    print(f"{options.output}: {count:,} captions of {len(captions):,} images, {encoder.embedding_dim} numbers each.")


def stored_captions(source, folder, metadata):
    """Captions of the images that a store holds, in its order: those that could be read."""
    skipped = set()
    for shard in metadata.shards:
        entry = json.loads((Path(folder) / shard["file"]).with_suffix(".json").read_text(encoding="utf-8"))
        skipped |= {key for key, _ in entry["skipped"]}
    captions = [own for key, own in source.captions().items() if key not in skipped]
    if len(captions) != metadata.num_images:
        raise ValueError(
            f"{folder} holds {metadata.num_images:,} images, and {len(captions):,} of {metadata.source} have captions: "
            "was the source changed meanwhile? Encode it into another --output."
        )
    return captions


def main(arguments=None):
    options = parse(arguments)
    try:
        if options.verify is not None:
            encode.verify(options.verify)
            return
        from fcdm_keras import distribution

        with distribution.setup(**device_options(options)):
            run(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on with what is finished.")


if __name__ == "__main__":
    main()
