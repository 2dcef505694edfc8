"""Train a class-conditional FCDM.

    python train_imagenet.py                                              # the embedded recipe `digits`, pixels
    python train_imagenet.py --recipe photos                              # embedded photographs, with an autoencoder
    python train_imagenet.py --recipe imagenet256-xl --latents latents/   # the paper's settings (table 7)

KERAS_BACKEND=jax, torch or tensorflow chooses the backend. Latents are made by `python -m fcdm_keras.encode`. The same
command resumes a run that was stopped at any moment. Every field of a recipe is a flag; see --help.
"""

import argparse
import dataclasses
import json
import sys
import time

from fcdm_keras.files import write_atomically
from fcdm_keras.launch import add_device_flags, device_options
from fcdm_keras.presets import add_config_flags, config_from_flags, config_to_json
from fcdm_keras.run_folder import open_run

SCORED_SAMPLES = 500


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_config_flags(parser)
    add_device_flags(parser, model_parallel=True)
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    options = parser.parse_args(arguments)
    try:
        config = with_data(config_from_flags(options), options)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if options.dry_run:
        print(config_to_json(config), end="")
        sys.exit()
    if len(sys.argv) == 1:
        print(
            "No recipe given: training `digits` (1,297 real handwritten digits, pixel space), a few minutes on a CPU.\n"
            "For ImageNet: python train_imagenet.py --recipe imagenet256-xl --latents DIR; all flags: --help.\n"
        )
    return config, device_options(options)


def with_data(config, options):
    """The configuration, with the number of classes read from the store where no flag gives it.

    Raises ValueError or OSError, in one sentence, if there is nothing to train on.
    """
    if config.dataset == "digits":
        if (config.image_size, config.num_classes, config.latent_channels) != (8, 10, 1) or config.latents:
            raise ValueError(
                "the digits are 8 pixels wide, of 1 channel and 10 classes; leave out --image-size, --num-classes, "
                "--latent-channels and --latents."
            )
        return config
    if config.eval_every and not config.eval_reference:
        raise ValueError("--eval-every scores images against a reference: give one with --eval-reference REF.npz.")
    if options.dry_run or not config.cache or (config.dataset == "photos" and not config.latents):
        return config
    if not config.latents:
        raise ValueError(
            f"recipe {config.recipe} trains on latents: give a store with --latents DIR. `python -m fcdm_keras.encode "
            f"--source {config.dataset} --vae stabilityai/sd-vae-ft-ema --image-size {config.image_size} --output DIR` "
            "makes one; --source may also be a folder of class folders. The embedded recipes are `digits` and `photos`."
        )
    from fcdm_keras.data.latent_store import check_fit, read_metadata

    metadata = read_metadata(config.latents)
    if options.num_classes is None:
        config = dataclasses.replace(config, num_classes=metadata.num_classes)
    check_fit(metadata, config)
    return config


def prepare_photos(config, folder):
    """Trains an autoencoder on the embedded photographs and encodes them; what is there already is kept."""
    from fcdm_keras import encode, train_vae

    autoencoder, latents = folder / "autoencoder", folder / "latents"
    if not (autoencoder / "scores.json").exists():
        train_vae.main([f"--output={autoencoder}", f"--seed={config.seed}"])
    image_size, vae = f"--image-size={config.image_size}", f"--vae={autoencoder / 'vae'}"
    if not (latents / "store.json").exists():
        encode.main(["--source=photos", vae, image_size, f"--output={latents}"])
    return dataclasses.replace(config, latents=str(latents))


def score(config, trainer, task):
    """Draws digits with the EMA weights and scores them."""
    import numpy as np

    from fcdm_keras import distribution
    from fcdm_keras.drawing import draw_together
    from fcdm_keras.evaluation.digits import score_digits
    from fcdm_keras.fitting import sampling_options

    labels = np.arange(SCORED_SAMPLES) % config.num_classes
    drawn = draw_together(
        task,
        labels,
        seed=(config.seed + 1) % 2**64,
        batch_size=100,
        weights=trainer.ema.values(),
        verbose=distribution.is_main(),
        **sampling_options(config),
    )
    return score_digits(drawn, labels)


def report(config, scores):
    """Prints the digits' scores beside those of real digits."""
    print(f"\n{SCORED_SAMPLES} digits, {config.sampler} {config.num_sampling_steps}, guidance {config.cfg_scale}:")
    for name, shown, real in (
        ("read as the digit asked for", f"{scores['agreement']:.1%}", f"{scores['classifier_accuracy']:.1%}"),
        ("Fréchet distance, pixels", f"{scores['frechet']:.3f}", f"{scores['frechet_real']:.3f}"),
        ("nearest training digit", f"{scores['nearest_train']:.3f}", f"{scores['nearest_train_real']:.3f}"),
        ("copies of training digits", f"{scores['copies']:.1%}", "0.0%"),
    ):
        print(f"  {name:28} {shown:>7}  (real digits: {real})")


def train(config, folder):
    """Trains to the last step. Returns the scores, of digits."""
    if config.dataset == "photos" and config.cache and not config.latents:
        config = prepare_photos(config, folder)
    from fcdm_keras.fitting import fit_run

    trainer, task = fit_run(config, folder)
    return score(config, trainer, task) if config.dataset == "digits" else {}


def main(arguments=None):
    began = time.perf_counter()
    config, devices = parse(arguments)
    try:
        folder = open_run(config)
        from fcdm_keras import distribution

        with distribution.setup(**devices):
            scores = train(config, folder)
            if not distribution.is_main():
                return
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command resumes from the last checkpoint.")
    if scores:
        report(config, scores)
    scores["seconds"] = round(time.perf_counter() - began, 1)
    write_atomically(folder / "scores.json", json.dumps(scores, indent=2) + "\n")
    print(f"  {scores['seconds']:.0f} s in all; images, curves, scores and the model are in {folder}/")


if __name__ == "__main__":
    main()
