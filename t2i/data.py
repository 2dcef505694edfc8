"""What a run of text embeddings trains on, and what goes with it: its model, its captioned grids, its scores."""

import functools
import json

import numpy as np
from keras import ops

from fcdm_keras import distribution
from fcdm_keras.files import replacing, write_atomically
from fcdm_keras.runs import build
from fcdm_keras.runs.data import ClassData, draw_scored, open_stored, reference_judge
from fcdm_keras.runs.folder import begun
from t2i import load
from t2i.caption_store import CaptionedSource, CaptionStore
from t2i.grid import captioned_grid
from t2i.load import TEXT
from t2i.shapes import report
from t2i.shapes.autoencoder import open_autoencoder
from t2i.shapes.data import ShapesSource, probe
from t2i.shapes.scoring import SCORES, score
from t2i.tasks import TextToImage
from t2i.text_encoder import OpenCLIPTextEncoder, cached_embeddings

GRID_IMAGES, GRID_COLUMNS = 24, 8


class TextData(ClassData):
    """Opened data of samples with captions, from a latent store.

    Args:
        opened: a `ClassData`, whose samples have text embeddings.
        text: dict of `settings` and `identity` of the text encoder, as in the run folder's `text.json`.
        embeddings: all captions', `(N, D)`.
        null_embedding: the empty prompt's, `(D,)`.
        captions: the `CaptionStore`, if there is one.
        encoder: the `OpenCLIPTextEncoder`, if it is running.
    """

    def __init__(self, opened, text, embeddings, null_embedding, captions=None, encoder=None):
        super().__init__(opened.source, opened.autoencoder, opened.description, opened.transform)
        self.text = text
        self.embeddings, self.null_embedding = embeddings, null_embedding
        self.captions, self.encoder = captions, encoder

    def start_from(self, source, backbone):
        """As in `ClassData`, from a text-to-image model or a class-conditional one.

        The conditioning is kept if the model at `source` had the same text encoder.
        """
        same = load.stored_identity(source) == self.text["identity"]
        return build.copy_weights(load.load_backbone(source), backbone, same)

    def build_backbone(self, config):
        """The backbone with fresh weights, and the statistics of the captions' embeddings."""
        backbone = load.build_backbone(config, self.text["identity"]["embedding_dim"])
        backbone.conditioning.adapt(self.embeddings, self.null_embedding)
        return backbone

    def build_task(self, config, backbone):
        return TextToImage(
            backbone,
            self.autoencoder,
            image_size=config.image_size,
            objective=build.build_objective(config),
            text_encoder=self.encoder or self.text["settings"],
            text_identity=self.text["identity"],
        )

    def shown(self, config):
        """As in `ClassData`, with the captions under the images."""
        captions, embeddings = self.spread(config, GRID_IMAGES)
        return embeddings, GRID_COLUMNS, lambda drawn, columns: captioned_grid(drawn, captions, columns)

    def judge(self, config):
        return *reference_judge(config), self.spread(config, config.num_eval_samples)[1]

    def spread(self, config, count):
        """Captions and their embeddings of `count` images spread over the store."""
        images = np.linspace(0, len(self.captions) - 1, count).round().astype(int)
        captions = [self.captions.captions[image][0] for image in images]
        return captions, self.captions.read(images, np.zeros(count, int))


class ShapesData(TextData):
    """Scenes that are drawn as they are read, and read back from what the model draws."""

    _scored = None  # their grid

    def spread(self, config, count):
        """Captions and their embeddings of `count` scenes of all kinds."""
        kinds = [("train", 1), ("held_out", 1), ("train", 2)]
        parts = [probe(config.seed + 1, -(-count // 3), *kind).captions for kind in kinds]
        captions = [caption for part in parts for caption in part][:count]
        return captions, self.encoder.encode(captions)

    def judge(self, config):
        asked = report.held_out_probe(config.seed, config.num_eval_samples)
        return lambda drawn, _: score(drawn, asked.scenes), SCORES, self.encoder.encode(asked.captions)

    def score(self, config, folder, trainer, task):
        """Draws scenes with the EMA weights and reads them back."""

        def draw(captions, guidance_scale):
            return draw_scored(config, trainer, task, task.embed(captions), guidance_scale=guidance_scale)

        scores, self._scored = report.score_model(draw, self.source, config.cfg_scale)
        return scores

    def write_scored(self, folder):
        """The grid of the scenes."""
        if self._scored is None:
            return
        with replacing(folder / "scored.png") as file:
            self._scored.save(file, "PNG")

    def describe(self, config, scores):
        return f"{config.sampler} {config.num_sampling_steps}, guidance {config.cfg_scale}:\n{report.describe(scores)}"


def open_shapes(config, folder):
    """Captioned scenes as `TextData`. Raises ValueError if the run was started with another text encoder."""
    encoder = OpenCLIPTextEncoder(**config.encoder_options)
    text = {"settings": encoder.settings(), "identity": encoder.identity()}
    _check_remembered(folder, text)
    encode = functools.partial(cached_embeddings, encoder, path=folder / "embeddings.npz")
    source = ShapesSource(encode, config.num_captions, config.seed, config.share_of_two)
    null_embedding = encoder.encode([""])[0]
    autoencoder = open_autoencoder(config, folder)
    described = f"scenes of {len(set(source.captions)):,} captions, drawn as they are read"
    opened = ClassData(source, autoencoder, described, _to_latents(autoencoder))
    _remember(folder, text)
    return ShapesData(opened, text, source.embeddings, null_embedding, encoder=encoder)


def open_captioned(config, folder):
    """A latent store with captions as `TextData`; no text encoder is started, for all embeddings are there.

    Raises:
        FileNotFoundError: the store, its captions or its autoencoder are not there.
        ValueError: they do not fit the configuration, each other, or what the run was started on.
    """
    captions = CaptionStore(config.latents)
    text = {"settings": captions.settings, "identity": captions.encoder}
    _check_remembered(folder, text)
    opened = open_stored(config, folder)
    embeddings, null_embedding = captions.all_embeddings(), captions.null_embedding()
    opened.source = CaptionedSource(opened.source, captions, config.mirror_sided)
    blank = f" ({captions.blank:,} blank ones are left out)" if captions.blank else ""
    opened.description += f", with {len(embeddings):,} captions{blank}"
    _remember(folder, text)
    return TextData(opened, text, embeddings, null_embedding, captions=captions)


def _to_latents(autoencoder):
    """Turns batches of uint8 `images` into batches of `latents`."""

    def encode(batch):
        images = batch["images"].astype(np.float32) / 127.5 - 1
        latents = autoencoder.to_diffusion(autoencoder.encode(images)[0])
        return {"latents": ops.convert_to_numpy(latents), "text_embeddings": batch["text_embeddings"]}

    return encode


def _check_remembered(folder, text):
    """The run folder keeps to the text encoder that the run was trained with so far."""
    file = folder / TEXT
    if file.exists() and begun(folder):
        stored, own = load.read_text_settings(folder)["identity"], text["identity"]
        if stored != own:
            raise ValueError(
                f"{folder} was trained with another text encoder ({stored} there, {own} now): give that one, or "
                "another --results-dir."
            )


def _remember(folder, text):
    if distribution.is_main():
        write_atomically(folder / TEXT, json.dumps(text, indent=1) + "\n")
