"""Train a class-conditional FCDM.

    KERAS_BACKEND=jax python train_imagenet.py                          # the embedded recipe `digits`, minutes on a CPU
    KERAS_BACKEND=jax python train_imagenet.py --recipe imagenet256-xl  # the paper's settings (table 7)

The same command resumes a run that was stopped at any moment. Every field of a recipe is a flag; see --help.
"""

import argparse
import json
import shutil
import sys
import time

from fcdm_keras.presets import add_config_flags, config_from_flags, config_to_json
from fcdm_keras.run_folder import open_run

SCORED_SAMPLES = 500


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_config_flags(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    options = parser.parse_args(arguments)
    try:
        config = config_from_flags(options)
    except ValueError as error:
        parser.error(str(error))
    if options.dry_run:
        print(config_to_json(config), end="")
        sys.exit()
    if config.dataset != "digits":
        parser.error(
            f"recipe {config.recipe} needs latents of {config.dataset}, whose loader is not part of this version yet; "
            "the embedded recipe is `digits`."
        )
    if (config.image_size, config.num_classes) != (8, 10):
        parser.error("the digits are 8 pixels wide and of 10 classes; leave out --image-size and --num-classes.")
    if len(sys.argv) == 1:
        print(
            "No recipe given: training `digits` (1,297 real handwritten digits, pixel space), a few minutes on a CPU.\n"
            "For ImageNet: python train_imagenet.py --recipe imagenet256-xl; all recipes and flags: --help.\n"
        )
    return config


def train(config, folder):
    """Trains `config` to its last step, resuming what is in `folder`. Returns (trainer, task)."""
    import keras

    from fcdm_keras import callbacks, runs
    from fcdm_keras.checkpoint import CheckpointManager
    from fcdm_keras.data.batches import training_batches
    from fcdm_keras.data.digits import load_digits
    from fcdm_keras.plots import plot_losses

    manager = CheckpointManager(folder / "checkpoints", config.keep_last, config.keep_every)
    images, labels = load_digits("train")
    trainer = runs.build_trainer(config)
    start = manager.restore(trainer) or 0
    task = runs.build_task(config, trainer.backbone)
    print(
        f"{folder}: FCDM-{config.model}, {trainer.backbone.count_params():,} parameters, Keras {keras.__version__} on "
        f"{keras.backend.backend()}, {config.steps:,} steps of {config.global_batch_size} images"
        + (f", resumed at step {start:,}" if start else "")
    )
    log = callbacks.CSVWriter(folder / "log.csv", start)
    if start < config.steps:
        shutil.rmtree(folder / "preset", ignore_errors=True)  # of a shorter run
        progress = callbacks.Progress(config.steps)
        tensorboard = callbacks.TensorBoardWriter(folder / "tensorboard", start)
        sampling = {
            "num_steps": config.num_sampling_steps,
            "guidance_scale": config.cfg_scale,
            "sampler": config.sampler,
            "seed": config.seed,
            "batch_size": 100,
        }
        grid_labels = [label for label in range(min(10, config.num_classes)) for _ in range(10)]
        trainer.fit(
            training_batches(images, labels, config.global_batch_size, config.steps, config.seed, start),
            steps_per_epoch=config.steps - start,
            verbose=0,
            shuffle=False,
            callbacks=[
                callbacks.StepLog(config.log_every, config.global_batch_size, [log, tensorboard, progress]),
                callbacks.StopOnNonFinite(),
                callbacks.Checkpoint(manager, config.ckpt_every),
                callbacks.SampleGrid(task, grid_labels, folder, config.sample_every, **sampling),
                *scores_while_training(config, task, folder, start, tensorboard, sampling),
                progress,
            ],
        )
    plot_losses(folder / "log.csv", folder / "loss.png")
    runs.export_preset(trainer, config, folder / "preset")
    return trainer, task


def scores_while_training(config, task, folder, start, tensorboard, sampling):
    """The callback of `--eval-every`, in a list, which is empty if there are to be no scores."""
    import numpy as np

    from fcdm_keras.callbacks import CSVWriter
    from fcdm_keras.evaluation.callback import Evaluate
    from fcdm_keras.evaluation.digits import SCORES, score_digits

    if not config.eval_every:
        return []
    writers = [CSVWriter(folder / "scores.csv", start, ("step", *SCORES)), lambda row: tensorboard(row, "scores")]
    labels = np.arange(config.num_eval_samples) % config.num_classes
    return [Evaluate(task, score_digits, labels, config.eval_every, writers, **sampling)]


def score(config, trainer, task):
    """Draws digits with the EMA weights and scores them."""
    import numpy as np

    from fcdm_keras.evaluation.digits import score_digits

    labels = np.arange(SCORED_SAMPLES) % config.num_classes
    drawn = task.generate(
        labels,
        num_steps=config.num_sampling_steps,
        guidance_scale=config.cfg_scale,
        sampler=config.sampler,
        seed=(config.seed + 1) % 2**64,
        batch_size=100,
        weights=trainer.ema.values(),
        verbose=True,
    )
    return score_digits(drawn, labels)


def main(arguments=None):
    began = time.perf_counter()
    config = parse(arguments)
    try:
        folder = open_run(config)
        trainer, task = train(config, folder)
        scores = score(config, trainer, task)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command resumes from the last checkpoint.")
    scores["seconds"] = round(time.perf_counter() - began, 1)
    (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    print(f"\n{SCORED_SAMPLES} digits, {config.sampler} {config.num_sampling_steps}, guidance {config.cfg_scale}:")
    for name, shown, real in (
        ("read as the digit asked for", f"{scores['agreement']:.1%}", f"{scores['classifier_accuracy']:.1%}"),
        ("Fréchet distance, pixels", f"{scores['frechet']:.3f}", f"{scores['frechet_real']:.3f}"),
        ("nearest training digit", f"{scores['nearest_train']:.3f}", f"{scores['nearest_train_real']:.3f}"),
        ("copies of training digits", f"{scores['copies']:.1%}", "0.0%"),
    ):
        print(f"  {name:28} {shown:>7}  (real digits: {real})")
    print(f"  {scores['seconds']:.0f} s in all; images, curves, scores and the model are in {folder}/")


if __name__ == "__main__":
    main()
