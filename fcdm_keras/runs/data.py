"""What a run of class labels trains on, and what goes with it: its model, its grids, its scores."""

import numpy as np

from fcdm_keras import distribution
from fcdm_keras.autoencoders import Identity, KLAutoencoder
from fcdm_keras.data.batches import ArraySource, ImageSource, training_batches
from fcdm_keras.data.embedded import load_digits
from fcdm_keras.data.latent_store import LatentStore, StoreSource, check_fit
from fcdm_keras.data.latent_writer import posterior_arrays
from fcdm_keras.data.sources import about, open_source, read_images
from fcdm_keras.data.store_metadata import read_store
from fcdm_keras.evaluation import digits as digit_scores
from fcdm_keras.evaluation.features import load_extractor
from fcdm_keras.evaluation.suite import Judge
from fcdm_keras.files import write_atomically
from fcdm_keras.runs import build, load
from fcdm_keras.runs.folder import LATENTS
from fcdm_keras.sampling.request import draw_together
from fcdm_keras.sampling.writers import grid

GRID_CLASSES, GRID_COLUMNS = 10, 10
SCORED_SAMPLES = 500


class ClassData:
    """Opened data of class-labelled samples; those of other conditions derive from it.

    Args:
        source: the samples; has a length and `take(samples, places)`.
        autoencoder: between samples and images.
        description: the data in one phrase, for the terminal.
        transform: of each batch, in the main process; default none.
        class_names: the classes' names in the order of their numbers, if they have names.
    """

    def __init__(self, source, autoencoder, description, transform=None, class_names=None):
        self.source = source
        self.autoencoder = autoencoder
        self.description = description
        self.transform = transform
        self.class_names = class_names

    def batches(self, config, start):
        """A Grain data set of this process's rows of the batches from step `start` on."""
        rows = distribution.batch_rows(config.global_batch_size)
        batches = training_batches(
            self.source, config.global_batch_size, config.steps, config.seed, start, config.data_workers, rows
        )
        return batches if self.transform is None else batches.map(self.transform)

    def build_backbone(self, config):
        """The backbone with fresh weights."""
        return build.build_backbone(config)

    def start_from(self, source, backbone):
        """Copies the weights of the model at `source` into `backbone`. Returns what was done, in one sentence."""
        return build.copy_weights(load.load_backbone(source), backbone)

    def build_task(self, config, backbone):
        """The task that samples from a backbone."""
        return build.build_task(config, backbone, self.autoencoder, self.class_names)

    def shown(self, config):
        """What a grid shows: conditions, images per row, and `picture(images, columns)` → the grid.

        Here ten images of each of (up to) ten classes, spread over all.
        """
        classes = np.linspace(0, config.num_classes - 1, min(GRID_CLASSES, config.num_classes)).round().astype(int)
        return np.repeat(classes, GRID_COLUMNS), GRID_COLUMNS, grid

    def judge(self, config):
        """What scores images while training: `judge(images, conditions)`, the scores' names, and the conditions."""
        return *reference_judge(config), np.arange(config.num_eval_samples) % config.num_classes

    def score(self, config, folder, trainer, task):
        """Scores of the finished model, a dict for JSON; no scores where `python -m fcdm_keras.evaluate` gives them."""
        return {}

    def write_scored(self, folder):
        """Writes a picture of what was scored, where there is one."""

    def describe(self, config, scores):
        """These scores as text, for the terminal."""
        return ""


class DigitData(ClassData):
    """The handwritten digits, whose samples are read by a classifier of their own."""

    def judge(self, config):
        labels = np.arange(config.num_eval_samples) % config.num_classes
        return digit_scores.score_digits, digit_scores.SCORES, labels

    def score(self, config, folder, trainer, task):
        """Draws digits with the EMA weights and scores them."""
        labels = np.arange(SCORED_SAMPLES) % config.num_classes
        return digit_scores.score_digits(draw_scored(config, trainer, task, labels), labels)

    def describe(self, config, scores):
        """The scores beside those of real digits."""
        lines = [f"{SCORED_SAMPLES} digits, {config.sampler} {config.num_sampling_steps}, guidance {config.cfg_scale}:"]
        for name, shown, real in (
            ("read as the digit asked for", f"{scores['agreement']:.1%}", f"{scores['classifier_accuracy']:.1%}"),
            ("Fréchet distance, pixels", f"{scores['frechet']:.3f}", f"{scores['frechet_real']:.3f}"),
            ("nearest training digit", f"{scores['nearest_train']:.3f}", f"{scores['nearest_train_real']:.3f}"),
            ("copies of training digits", f"{scores['copies']:.1%}", "0.0%"),
        ):
            lines.append(f"  {name:28} {shown:>7}  (real digits: {real})")
        return "\n".join(lines)


def sampling_options(config):
    """Arguments of `generate` that a run's settings decide."""
    return {
        "num_steps": config.num_sampling_steps,
        "guidance_scale": config.cfg_scale,
        "sampler": config.sampler,
    }


def draw_scored(config, trainer, task, conditions, **options):
    """Images of `conditions`, drawn with the EMA weights from a seed beside the training's."""
    own = {"seed": (config.seed + 1) % 2**64, "batch_size": 100, "verbose": distribution.is_main()}
    return draw_together(
        task, conditions, weights=trainer.ema.values(), **{**sampling_options(config), **own, **options}
    )


def reference_judge(config):
    """The judge that compares images with the run's reference, and the names of its scores."""
    expected = (config.num_eval_samples, config.image_size, config.image_size, 3)
    extractor = load_extractor(config.eval_features, config.inception or None)
    judge = Judge(config.eval_reference, extractor, expected=expected)
    return judge, judge.metrics


def open_digits(config):
    """The digits as `ClassData`."""
    images, labels = load_digits("train")
    source = ArraySource({"latents": images, "labels": labels})
    return DigitData(source, Identity(config.latent_channels), f"{len(source):,} real handwritten digits")


def open_stored(config, folder):
    """A latent store as `ClassData`.

    Raises:
        FileNotFoundError: the store or the autoencoder is not there.
        ValueError: they do not fit the configuration, each other, or what the run was started on.
    """
    store = LatentStore(config.latents)
    check_fit(store.metadata, config)
    _check_same_store(store, folder)
    name = config.vae or store.metadata.autoencoder
    autoencoder = KLAutoencoder.from_diffusers(name)
    if autoencoder.weights_hash() != store.metadata.autoencoder_hash:
        raise ValueError(
            f"The autoencoder {name} is not the one that made the latent store {config.latents} "
            f"({store.metadata.autoencoder}): their weights differ. Give that one with --vae, or encode again."
        )
    source = StoreSource(store, config.seed, config.sample_posterior, config.flips)
    mirrored = ", half of them mirrored" if source.flips else ""
    description = f"{len(source):,} latents of {store.metadata.source}{mirrored}"
    return ClassData(source, autoencoder, description, class_names=store.metadata.class_names)


def _check_same_store(store, folder):
    """The run folder keeps the metadata of the store that the run was started on."""
    file = folder / LATENTS
    if file.exists() and read_store(file) != store.metadata:
        raise ValueError(
            f"{folder} was trained on another latent store than {store.folder}: compare {file} with its store.json. "
            "Give the store that it was started on, or another --results-dir."
        )
    write_atomically(file, store.metadata.to_json())


def open_in_memory(config):
    """Images in memory, encoded as they come, as `ClassData`.

    Raises:
        FileNotFoundError: the images or the autoencoder are not there.
        ValueError: they do not fit the configuration.
    """
    if not config.vae:
        raise ValueError("--no-cache encodes images while training and needs an autoencoder: give one with --vae.")
    source = open_source(config.source or config.dataset, data_dir=config.data_dir or None)
    if len(source.class_names) != config.num_classes:
        raise ValueError(
            f"{source.name} has {len(source.class_names)} classes, and the run asks for {config.num_classes}; pass "
            f"--num-classes {len(source.class_names)}."
        )
    autoencoder = KLAutoencoder.from_diffusers(config.vae)
    if config.latent_scale and not np.isclose(autoencoder.scale, config.latent_scale, rtol=1e-6):
        raise ValueError(
            f"The autoencoder {config.vae} has the latent scale {autoencoder.scale}, and the run asks for "
            f"{config.latent_scale}; pass --latent-scale {autoencoder.scale}."
        )
    for sentence in about(source):
        distribution.say(sentence)
    images, labels, skipped = read_images(source, config.image_size)
    side = config.image_size // autoencoder.downsampling_factor
    shape = (side, side, autoencoder.latent_channels)
    memory = ImageSource(images, labels, shape, config.seed, config.sample_posterior, config.flips)
    left_out = f"; {len(skipped)} cannot be read and are left out, the first {skipped[0][0]}" if skipped else ""
    text = f"{len(memory):,} images of {source.name} in memory ({images.nbytes / 2**30:.2f} GiB){left_out}"
    return ClassData(memory, autoencoder, text, _encoding(autoencoder), source.class_names)


def _encoding(autoencoder):
    """Turns batches of `ImageSource` into batches of latents."""

    def encode(batch):
        mean, std = posterior_arrays(autoencoder, batch["images"])
        return {"latents": autoencoder.to_diffusion(mean + std * batch["noise"]), "labels": batch["labels"]}

    return encode
