"""Encode captioned images once, and train on their latents and text embeddings ever after.

    python -m t2i.encode --source coco_captions --vae stabilityai/sd-vae-ft-ema --image-size 256 --output latents/coco
    python -m t2i.encode --source coco/ --split train2017 --vae … --output latents/coco

The source is TensorFlow Datasets' coco_captions, or a folder with the official files: train2017/ (or train2014/), and
annotations/captions_train2017.json. The store is that of `python -m fcdm_keras.encode`, with the captions and all
their embeddings beside the latents. A killed run goes on with the same command.
"""

from fcdm_keras.arguments import integer, word
from fcdm_keras.encode import add_flags, check_flags
from fcdm_keras.options import command_parser, reported
from fcdm_keras.runs.outputs import STORE
from t2i.recipes import UNTRAINED


def parse(arguments=None):
    parser = command_parser("t2i.encode", __doc__)
    add_flags(parser, "folder with COCO's official files, or coco_captions of TensorFlow Datasets")
    parser.add_argument("--captions", type=word, help="caption file; default annotations/captions_SPLIT.json")
    parser.add_argument("--text-encoder", type=word, default="ViT-L-14", help="open_clip's model (default ViT-L-14)")
    parser.add_argument(
        "--text-weights",
        type=word,
        default="openai",
        help=f"its weights: a tag, a file, or {UNTRAINED} for an untrained one (default openai)",
    )
    seeds = integer(-(2**63), 2**64 - 1)
    parser.add_argument("--text-seed", type=seeds, default=0, help="seed of an untrained text encoder (default 0)")
    options = check_flags(parser, arguments)
    if options.text_seed and options.text_weights != UNTRAINED:
        parser.error(f"--text-seed has no effect: --text-weights {options.text_weights} are trained; leave it out.")
    return options


def main(arguments=None):
    options = parse(arguments)
    with reported("Stopped. The same command goes on with what is finished."):
        from fcdm_keras.data.encode import run
        from fcdm_keras.runs.overwriting import in_its_place
        from t2i.encoding import encode_captioned

        run(options, in_its_place(encode_captioned, STORE))


if __name__ == "__main__":
    main()
