"""Train a class-conditional FCDM.

    python train_imagenet.py                                              # the embedded recipe `digits`, pixels
    python train_imagenet.py --recipe photos                              # embedded photographs, with an autoencoder
    python train_imagenet.py --recipe imagenet256-xl --latents latents/   # the paper's settings (table 7)

KERAS_BACKEND=jax, torch or tensorflow chooses the backend. Latents are made by `python -m fcdm_keras.encode`. The same
command resumes a run that was stopped at any moment. Every field of a recipe is a flag; see --help.
"""

from fcdm_keras.recipes import RECIPES
from fcdm_keras.runs.command import TrainCommand
from fcdm_keras.runs.datasets import dataset_of

COMMAND = TrainCommand(
    description=__doc__,
    recipes=RECIPES,
    default="digits",
    dataset_of=dataset_of,
    hint=(
        "No recipe given: training `digits` (1,297 real handwritten digits, pixel space), a few minutes on a CPU.\n"
        "For ImageNet: python train_imagenet.py --recipe imagenet256-xl --latents DIR; all flags: --help.\n"
    ),
)
parse, main = COMMAND.parse, COMMAND.main

if __name__ == "__main__":
    main()
