"""What is asked of a text-to-image model: prompts in turn."""

import numpy as np

from fcdm_keras.sampling.request import Request
from t2i.grid import captioned_grid
from t2i.tasks import TextToImage

GRID_COLUMNS = 8


class PromptRequest(Request):
    """Images 0 … N − 1 of one model, of prompts in turn."""

    grid_limit = 64

    def choose(self, options):
        """The prompts, a NumPy array of strings `(N,)`."""
        self._negative_prompt = options.negative_prompt
        count = options.num_samples
        prompts = (options.texts * -(-count // len(options.texts)))[:count]
        self._embeddings = self.task.embed(prompts)
        blank = not (options.negative_prompt or "").strip()
        self._nulls = None if blank else self.task.embed([options.negative_prompt] * count)
        return np.array(prompts)

    def draw(self, places, first):
        """Images of the prompts at `places`, numbered from `first` on."""
        nulls = None if self._nulls is None else self._nulls[places]
        options = {"null_conditions": nulls, **self._options}
        return self.task.draw(self._embeddings[places], first_index=first, **options)

    def describe(self):
        """Nothing: prompts say themselves what they are."""
        return ""

    def grid(self, shown):
        """The first images with their prompts."""
        return captioned_grid(shown, self.labels[: len(shown)].tolist(), GRID_COLUMNS)

    def settings(self):
        """All that decides the images, for JSON."""
        return {**super().settings(), "negative_prompt": self._negative_prompt}


def open_request(options):
    """The `PromptRequest` that the flags ask for."""
    task = TextToImage.from_preset(options.source)
    task.relocate_text_encoder(options.text_encoder, options.text_weights)
    return PromptRequest(task, options)
