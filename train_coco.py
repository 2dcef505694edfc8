"""Train a text-to-image FCDM.

    python train_coco.py                                              # the embedded recipe `shapes`
    python train_coco.py --recipe coco256-xl --latents latents/coco   # MS-COCO, the paper's appendix H

KERAS_BACKEND=jax, torch or tensorflow chooses the backend. Latents with captions are made by `python -m t2i.encode`.
The same command resumes a run that was stopped at any moment. Every field of a recipe is a flag; see --help.
"""

import argparse
import dataclasses
import json
import sys
import time

from fcdm_keras.files import write_atomically
from fcdm_keras.launch import add_device_flags, device_options
from fcdm_keras.presets import config_to_json
from fcdm_keras.run_folder import open_run
from t2i.presets import MAY_CHANGE, UNTRAINED, add_config_flags, config_from_flags


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
            "No recipe given: training `shapes` (captioned scenes, drawn as they are read), a quarter of an hour on "
            "two CPU cores.\n"
            "For MS-COCO: python train_coco.py --recipe coco256-xl --latents DIR; all flags: --help.\n"
        )
    return config, device_options(options)


def with_data(config, options):
    """The configuration, with the text encoder of the store where no flag gives it.

    Raises ValueError or OSError, in one sentence, if there is nothing to train on.
    """
    if config.dataset == "shapes":
        if config.image_size != 32 or config.latents:
            raise ValueError("the shapes are drawn, 32 pixels wide; leave out --image-size and --latents.")
        return config
    if config.eval_every and not config.eval_reference:
        raise ValueError("--eval-every scores images against a reference: give one with --eval-reference REF.npz.")
    if options.dry_run:
        return config
    if not config.latents:
        raise ValueError(
            f"recipe {config.recipe} trains on latents: give a store with --latents DIR. `python -m t2i.encode "
            f"--source {config.dataset} --vae stabilityai/sd-vae-ft-ema --image-size {config.image_size} --output DIR` "
            "makes one; --source may also be a folder with COCO's official files. The embedded recipe is `shapes`."
        )
    from fcdm_keras.data.latent_store import check_fit, read_metadata
    from t2i.caption_store import CaptionStore

    check_fit(read_metadata(config.latents), config)
    return with_encoder(config, options, CaptionStore(config.latents).settings)


def with_encoder(config, options, settings):
    """The configuration with the text encoder of a store. Raises ValueError if flags name another."""
    from t2i.text_encoder import absolute

    stored = {
        "text_encoder": settings["model"],
        "text_weights": settings["pretrained"] or UNTRAINED,
        "text_seed": settings["seed"],
    }
    for name, value in stored.items():
        given = getattr(options, name)
        if given not in (None, value) and (isinstance(given, int) or absolute(given) != value):
            raise ValueError(
                f"The captions of {config.latents} were encoded with {name} {value}, and the run asks for "
                f"{getattr(config, name)}; leave out --{name.replace('_', '-')}, or encode them again."
            )
    return dataclasses.replace(config, **stored)


def score(config, folder, trainer, task, source):
    """Draws scenes with the EMA weights, reads them back, and writes a grid of them."""
    from fcdm_keras import distribution
    from fcdm_keras.drawing import draw_together
    from fcdm_keras.fitting import sampling_options
    from t2i.shapes.report import score_model

    options = {**sampling_options(config), "batch_size": 100, "seed": (config.seed + 1) % 2**64, "verbose": True}

    def draw(captions, guidance_scale):
        own = {**options, "guidance_scale": guidance_scale, "weights": trainer.ema.values()}
        return draw_together(task, task.embed(captions), **own)

    scores, picture = score_model(draw, source, config.cfg_scale)
    if distribution.is_main():
        picture.save(folder / "scored.png")
    return scores


def train(config, folder):
    """Trains to the last step. Returns the scores, of shapes."""
    from fcdm_keras.fitting import fit_run
    from t2i.runs import TextRun

    made = []  # the run, for its captions
    trainer, task = fit_run(config, folder, lambda *of: made.append(TextRun(*of)) or made[0])
    return score(config, folder, trainer, task, made[0].data.source) if config.dataset == "shapes" else {}


def main(arguments=None):
    began = time.perf_counter()
    config, devices = parse(arguments)
    try:
        folder = open_run(config, MAY_CHANGE)
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
        from t2i.shapes.report import describe

        print(f"\n{config.sampler} {config.num_sampling_steps}, guidance {config.cfg_scale}:\n{describe(scores)}")
    scores["seconds"] = round(time.perf_counter() - began, 1)
    write_atomically(folder / "scores.json", json.dumps(scores, indent=2) + "\n")
    print(f"  {scores['seconds']:.0f} s in all; images, curves, scores and the model are in {folder}/")


if __name__ == "__main__":
    main()
