"""Draw images of prompts with a trained model.

    python -m t2i.sample runs/shapes "a small red circle" "a large blue square" --cfg-scale 4 --output DIR
    python -m t2i.sample RUN --prompts prompts.txt --num-samples 1000 --output DIR --npz

Writes one PNG per image (unless --no-png), a grid with the prompts under the images, the settings, and with --npz all
images as `arr_0` and their prompts as `arr_1` of one file. Prompts are taken in turn. Image i depends on its prompt,
the seed and i alone. The same command goes on where it was stopped.
"""

import argparse
from pathlib import Path

from fcdm_keras import sample
from fcdm_keras.drawing import Drawing, add_sampling_flags, check_drawing_flags
from fcdm_keras.launch import add_device_flags
from t2i.presets import UNTRAINED

GRID_COLUMNS = 8


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m t2i.sample", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="run folder, preset folder, hf://… or kaggle://…")
    parser.add_argument("texts", nargs="*", metavar="PROMPT", help='what to draw; "" is no prompt')
    parser.add_argument("--prompts", default=None, help="file with one prompt per line")
    parser.add_argument("--negative-prompt", default=None, help="what guidance leads away from; default nothing")
    parser.add_argument("--num-samples", type=int, default=None, help="number of images (default one per prompt)")
    add_sampling_flags(parser, cfg_scale=4.0)
    parser.add_argument("--text-encoder", default=None, help="open_clip's model; default the one it was trained with")
    parser.add_argument("--text-weights", default=None, help="its weights, if they lie elsewhere now: a tag or a file")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--npz", action="store_true", help="also write samples.npz with arr_0, uint8 (N, H, W, C)")
    parser.add_argument("--png", action=argparse.BooleanOptionalAction, default=True, help="write one PNG per image")
    add_device_flags(parser)
    options = parser.parse_intermixed_args(arguments)  # prompts may stand behind flags
    check_drawing_flags(parser, options)
    if not (options.png or options.npz):
        parser.error("--no-png needs --npz: nothing would be written.")
    if bool(options.texts) == (options.prompts is not None):
        parser.error("give prompts, or a file of them with --prompts (one of the two).")
    if options.text_weights == UNTRAINED:
        parser.error("--text-weights is for weights that lie elsewhere now: a tag or a file.")
    try:
        options.texts = options.texts or read_prompts(options.prompts)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    options.num_samples = options.num_samples or len(options.texts)
    return options


def read_prompts(file):
    """The lines of a file. Raises ValueError or OSError, in one sentence, for one without."""
    try:
        texts = Path(file).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text in UTF-8.") from None
    except OSError as error:
        raise OSError(f"The prompts {file} cannot be read: {error.strerror}.") from None
    if not texts:
        raise ValueError(f"{file} holds no prompts. Expected one per line.")
    return texts


class PromptDrawing(Drawing):
    """Images 0 … N − 1 of one model, of prompts in turn."""

    grid_limit = 64

    def choose(self, options):
        """The prompts, a NumPy array of strings `(N,)`."""
        import numpy as np

        self._negative_prompt = options.negative_prompt
        count = options.num_samples
        prompts = (options.texts * -(-count // len(options.texts)))[:count]
        self._embeddings = self.task.embed(prompts)
        self._nulls = self.task.embed([options.negative_prompt or ""] * count)
        return np.array(prompts)

    def draw(self, places, first):
        """Images of the prompts at `places`, numbered from `first` on."""
        options = {"null_conditions": self._nulls[places], **self._options}
        return self.task.draw(self._embeddings[places], first_index=first, **options)

    def grid(self, shown):
        """The first images with their prompts."""
        from t2i.grid import captioned_grid

        return captioned_grid(shown, self.labels[: len(shown)].tolist(), GRID_COLUMNS)

    def settings(self):
        """All that decides the images, for JSON."""
        return {**super().settings(), "negative_prompt": self._negative_prompt}


def open_drawing(options):
    """The `PromptDrawing` that the flags ask for."""
    from t2i.tasks import TextToImage

    task = TextToImage.from_preset(options.source)
    task.relocate_text_encoder(options.text_encoder, options.text_weights)
    return PromptDrawing(task, options)


def main(arguments=None):
    sample.run(parse(arguments), open_drawing)


if __name__ == "__main__":
    main()
