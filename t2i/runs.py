"""Runs of text-to-image models: what they have of their own in `fcdm_keras.fitting`."""

import functools
import json
from pathlib import Path

import numpy as np
from keras import ops

from fcdm_keras import distribution, runs
from fcdm_keras.autoencoders import Identity
from fcdm_keras.callbacks import SampleGrid
from fcdm_keras.data.training_data import TrainingData, open_training_data
from fcdm_keras.files import write_atomically
from fcdm_keras.fitting import ClassRun, drawing, reference_judge
from fcdm_keras.run_folder import stored_config
from t2i.caption_store import CaptionedSource, CaptionStore
from t2i.conditioning import TextConditioning
from t2i.grid import captioned_grid
from t2i.presets import TextTrainConfig
from t2i.shapes.autoencoder import open_autoencoder, read_autoencoder
from t2i.shapes.data import ShapesSource, probe
from t2i.tasks import TextToImage
from t2i.text_encoder import OpenCLIPTextEncoder, cached_embeddings

GRID_IMAGES, GRID_COLUMNS = 24, 8
TEXT = "text.json"  # in the run folder: the text encoder's settings and identity


class TextRun(ClassRun):
    """A run on text embeddings: `ClassRun` with captions for labels.

    Attributes:
        data: a `TrainingData`.
        text: dict of `settings` and `identity` of the text encoder, as in the run folder's `text.json`.
    """

    def open_data(self):
        data = self._open_shapes() if self.config.dataset == "shapes" else self._open_store()
        _remember(self.folder, self.text)
        return data

    def _open_shapes(self):
        config = self.config
        self.encoder = OpenCLIPTextEncoder(**config.encoder_options)
        self.text = {"settings": self.encoder.settings(), "identity": self.encoder.identity()}
        _check_remembered(self.folder, self.text)
        encode = functools.partial(cached_embeddings, self.encoder, path=self.folder / "embeddings.npz")
        source = ShapesSource(encode, config.num_captions, config.seed, config.share_of_two)
        self.embeddings, self.null_embedding = source.embeddings, self.encoder.encode([""])[0]
        autoencoder = open_autoencoder(config, self.folder)
        text = f"scenes of {len(set(source.captions)):,} captions, drawn as they are read"
        return TrainingData(source, autoencoder, text, _to_latents(autoencoder))

    def _open_store(self):
        config = self.config
        captions = CaptionStore(config.latents)
        self.encoder = None  # all embeddings are there
        self.text = {"settings": captions.settings, "identity": captions.encoder}
        _check_remembered(self.folder, self.text)
        data = open_training_data(config, self.folder)
        self.captions = captions
        self.embeddings, self.null_embedding = captions.all_embeddings(), captions.null_embedding()
        source = CaptionedSource(data.source, captions, config.mirror_sided)
        text = f"{data.description}, with {len(self.embeddings):,} captions"
        return TrainingData(source, data.autoencoder, text, data.transform)

    def start_from(self, source, backbone):
        """As in `ClassRun`, from a text-to-image model or a class-conditional one.

        The conditioning is kept if the model at `source` had the same text encoder.
        """
        start = load_backbone(source)
        return runs.copy_weights(start, backbone, stored_identity(source) == self.text["identity"])

    def build_backbone(self):
        """The backbone with fresh weights, and the statistics of the captions' embeddings."""
        backbone = build_backbone(self.config, self.text["identity"]["embedding_dim"])
        backbone.conditioning.adapt(self.embeddings, self.null_embedding)
        return backbone

    def build_task(self, backbone):
        """The task that samples from a backbone."""
        return build_task(self.config, backbone, self.text, self.data.autoencoder, self.encoder)

    def grid(self, task):
        """The callback that draws grids with the captions under the images."""
        captions, embeddings = self._shown(GRID_IMAGES)
        picture = lambda drawn, columns: captioned_grid(drawn, captions, columns)  # noqa: E731
        options = {"picture": picture, **drawing(self.config)}
        return SampleGrid(task, embeddings, self.folder, self.config.sample_every, GRID_COLUMNS, **options)

    def judge(self):
        """`judge(images, embeddings)`, the names of its scores, and the embeddings of the images to score."""
        count = self.config.num_eval_samples
        if self.config.dataset != "shapes":
            return *reference_judge(self.config), self._shown(count)[1]
        from t2i.shapes.report import held_out_probe
        from t2i.shapes.scoring import SCORES, score

        asked = held_out_probe(self.config.seed, count)
        embeddings = self.encoder.encode(asked.captions)
        return lambda drawn, _: score(drawn, asked.scenes), SCORES, embeddings

    def _shown(self, count):
        """Captions and their embeddings: of scenes of all kinds, or of images spread over the store."""
        if self.config.dataset == "shapes":
            kinds = [("train", 1), ("held_out", 1), ("train", 2)]
            parts = [probe(self.config.seed + 1, -(-count // 3), *kind).captions for kind in kinds]
            captions = [caption for part in parts for caption in part][:count]
            return captions, self.encoder.encode(captions)
        images = np.linspace(0, len(self.captions) - 1, count).round().astype(int)
        captions = [self.captions.captions[image][0] for image in images]
        return captions, self.captions.read(images, np.zeros(count, int))


def _to_latents(autoencoder):
    """Turns batches of uint8 `images` into batches of `latents`."""

    def encode(batch):
        images = batch["images"].astype(np.float32) / 127.5 - 1
        latents = autoencoder.to_diffusion(autoencoder.encode(images)[0])
        return {"latents": ops.convert_to_numpy(latents), "text_embeddings": batch["text_embeddings"]}

    return encode


def _check_remembered(folder, text):
    """The run folder keeps to the text encoder that the run was started with."""
    file = folder / TEXT
    if file.exists():
        stored, own = json.loads(file.read_text(encoding="utf-8"))["identity"], text["identity"]
        if stored != own:
            raise ValueError(
                f"{folder} was trained with another text encoder ({stored} there, {own} now): give that one, or "
                "another --results-dir."
            )


def _remember(folder, text):
    if distribution.is_main():
        write_atomically(folder / TEXT, json.dumps(text, indent=1) + "\n")


def build_backbone(config, embedding_dim):
    """A backbone with fresh weights, conditioned on text embeddings of `embedding_dim` numbers."""
    return runs.build_backbone(config, TextConditioning(embedding_dim, name="conditioning"))


def build_task(config, backbone, text, autoencoder=None, text_encoder=None):
    """The task that samples from `backbone`.

    Args:
        config: a `TextTrainConfig`.
        backbone: the backbone.
        text: what `text.json` holds.
        autoencoder: between latents and images; default none.
        text_encoder: the `OpenCLIPTextEncoder`, if it is running.
    """
    return TextToImage(
        backbone,
        autoencoder or Identity(backbone.in_channels),
        image_size=config.image_size,
        text_encoder=text_encoder or text["settings"],
        text_identity=text["identity"],
    )


def load_backbone(source):
    """The backbone of a preset, a run folder or a reference checkpoint, conditioned on text or on classes."""
    from fcdm_keras.backbone import FCDMBackbone

    if str(source).endswith(".pt"):
        return runs.load_backbone(source)

    def unfinished(folder):
        if (folder / TEXT).exists():
            task = unfinished_task(folder)
            return task and task.backbone
        return runs.load_backbone(folder)

    return runs.find_model(source, FCDMBackbone.from_preset, unfinished)


def stored_identity(source):
    """The identity of the text encoder of a run or preset folder; `None` where there is none."""
    for file in (Path(source, "preset", "task.json"), Path(source, "task.json"), Path(source, TEXT)):
        if file.exists():
            content = json.loads(file.read_text(encoding="utf-8"))
            return content["identity"] if file.name == TEXT else content["config"].get("text_identity")
    return None


def unfinished_task(folder, autoencoder=None, text_encoder=None):
    """The task of a run folder without a preset, from its newest checkpoint; `None` where there is none."""
    if not (folder / TEXT).exists():
        raise ValueError(f"{folder} holds no run of a text-to-image model (no {TEXT}).")
    config = stored_config(folder, TextTrainConfig)
    text = json.loads((folder / TEXT).read_text(encoding="utf-8"))
    backbone = build_backbone(config, text["identity"]["embedding_dim"])
    backbone = runs.newest_average(config, folder, backbone)
    if backbone is None:
        return None
    if autoencoder is None:
        shapes = config.dataset == "shapes"
        autoencoder = read_autoencoder(config, folder) if shapes else runs.stored_autoencoder(config, folder)
    return build_task(config, backbone, text, autoencoder, text_encoder)
