"""The text-to-image task: from prompts to uint8 images."""

import keras
import numpy as np
from msgspec import to_builtins

from fcdm_keras.formats.documents import as_schema
from fcdm_keras.runs.load import find_model
from fcdm_keras.sampling.tasks import ImageTask
from t2i.load import unfinished_parts
from t2i.text_encoder import Arguments, Identity, OpenCLIPTextEncoder, check_prompts, check_same_encoder


@keras.saving.register_keras_serializable("t2i")
class TextToImage(ImageTask):
    """Draws images of prompts.

    The text encoder is started when the first prompt is drawn. A preset keeps its name, where its weights came from and
    their checksum, not the weights.

    Args:
        backbone: an `FCDMBackbone` with `TextConditioning`.
        autoencoder, image_size: as in `ImageTask`; so is `objective`.
        text_encoder: an `OpenCLIPTextEncoder`, or a dict of its arguments.
        text_identity: `identity()` of the encoder that the model was trained with; default the given encoder's.

    Raises:
        ValueError: the text encoder is another one than the model was trained with.

    Example:

    ```python
    task = TextToImage.from_preset("runs/shapes")
    images = task.generate(["a red circle", "a large blue square"], num_steps=25, sampler="ddim", seed=0)
    ```
    """

    input_name = "text_embeddings"

    def __init__(self, backbone, autoencoder=None, image_size=256, text_encoder=None, text_identity=None, **kwargs):
        super().__init__(backbone, autoencoder, image_size, **kwargs)
        self._encoder = None
        self._text_settings = None
        self._text_identity = text_identity and to_builtins(as_schema(text_identity, Identity, "text_identity"))
        if isinstance(text_encoder, OpenCLIPTextEncoder):
            self._use(text_encoder)
        elif text_encoder is not None:
            as_schema(text_encoder, Arguments, "text_encoder")
            self._text_settings = dict(text_encoder)
        dimension = (self._text_identity or {}).get("embedding_dim", backbone.conditioning.embedding_dim)
        if dimension != backbone.conditioning.embedding_dim:
            raise ValueError(
                f"The model takes text embeddings of {backbone.conditioning.embedding_dim} numbers. "
                f"Received: a text encoder with {dimension}"
            )

    def _use(self, encoder):
        if self._text_identity:
            check_same_encoder(self._text_identity, encoder, "The model")
        self._encoder = encoder
        self._text_settings = encoder.settings()
        self._text_identity = encoder.identity()

    @property
    def text_encoder(self):
        """The `OpenCLIPTextEncoder`, started on first use.

        Raises:
            ValueError: the task has none, or its weights are others than those that the model was trained with.
            OSError: its weights are not there.
        """
        with self._one_at_a_time:
            if self._encoder is None:
                if self._text_settings is None:
                    raise ValueError("This model has no text encoder: give text_encoder=OpenCLIPTextEncoder(…).")
                self._use(OpenCLIPTextEncoder(**self._text_settings))
            return self._encoder

    def __dir__(self):
        return [name for name in super().__dir__() if name != "text_encoder"]  # Keras reads all that it lists

    def relocate_text_encoder(self, model=None, pretrained=None):
        """Says where the files of the text encoder lie now, before it is started; `None` is where they were."""
        changes = {"model": model, "pretrained": pretrained}
        changes = {name: value for name, value in changes.items() if value is not None}
        if changes and self._encoder is not None:
            raise ValueError("The text encoder has been started already.")
        self._text_settings = {**(self._text_settings or {}), **changes} or None

    def generate(
        self,
        prompts,
        num_steps=250,
        guidance_scale=4.0,
        negative_prompts=None,
        seed=None,
        sampler=None,
        **options,
    ):
        """Draws one image per prompt.

        Args:
            prompts: a string, a list of strings, or a dict of `prompts` and, if wanted, `negative_prompts`. The empty
                string is "no prompt".
            num_steps, guidance_scale, seed, sampler, **options: as in `ImageTask.draw`.
            negative_prompts: what guidance leads away from: a string for all images or one per image; default nothing.

        Returns:
            uint8 array `(N, H, W, channels)`.

        Raises:
            ValueError: for prompts that are no strings and arguments out of range, before anything is drawn.
        """
        if isinstance(prompts, dict):
            prompts, negative_prompts = _from_dict(prompts, negative_prompts)
        prompts = [prompts] if isinstance(prompts, str) else prompts
        check_prompts(prompts)
        nulls = None
        if negative_prompts is not None:
            nulls = [negative_prompts] * len(prompts) if isinstance(negative_prompts, str) else negative_prompts
            check_prompts(nulls)
            if len(nulls) != len(prompts):
                raise ValueError(f"Expected one negative prompt per prompt, {len(prompts)}. Received: {len(nulls)}")
            nulls = self.embed(nulls) if any(map(str.strip, nulls)) else None
        embeddings = self.embed(prompts)
        return self.draw(embeddings, num_steps, guidance_scale, seed, sampler, null_conditions=nulls, **options)

    def embed(self, prompts):
        """Text embeddings of a list of prompts, float32 `(N, D)`; the empty prompt's is the model's own."""
        null = keras.ops.convert_to_numpy(self.backbone.conditioning.null_embedding)
        places = {prompt: i for i, prompt in enumerate(dict.fromkeys(p for p in prompts if p.strip()), start=1)}
        encoded = self.text_encoder.encode(list(places)) if places else np.zeros((0, len(null)), np.float32)
        return np.concatenate([null[None], encoded])[[places.get(prompt, 0) for prompt in prompts]]

    def get_config(self):
        return {
            **super().get_config(),
            "text_encoder": self._text_settings and dict(self._text_settings),
            "text_identity": self._text_identity and dict(self._text_identity),
        }

    @classmethod
    def from_preset(cls, preset, load_weights=True, **kwargs):
        """The task of a run folder, a preset folder, `hf://…` or `kaggle://…`.

        A run that is not finished gives the EMA weights of its newest checkpoint.

        Args:
            preset: where the model is.
            load_weights: as in KerasHub.
            **kwargs: arguments of this class that replace the preset's, such as `text_encoder`.

        Raises:
            FileNotFoundError: there is no model.
            ValueError: its files are damaged, or it is no text-to-image model.
        """
        load = super().from_preset

        def unfinished(folder):
            parts = unfinished_parts(folder, kwargs.get("autoencoder"))
            return parts and cls(**{**parts, **kwargs})

        return find_model(preset, lambda folder: load(folder, load_weights=load_weights, **kwargs), unfinished)


def _from_dict(inputs, negative_prompts):
    unknown = inputs.keys() - {"prompts", "negative_prompts"}
    if "prompts" not in inputs or unknown:
        raise ValueError(f"A dict must have prompts, and may have negative_prompts. Received: {sorted(inputs)}")
    if "negative_prompts" in inputs and negative_prompts is not None:
        raise ValueError("negative_prompts must be given once: in the dict, or beside it. Received: both")
    return inputs["prompts"], inputs.get("negative_prompts", negative_prompts)
