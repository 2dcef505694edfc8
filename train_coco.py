"""Train a text-to-image FCDM.

    python train_coco.py                                              # the embedded recipe `shapes`
    python train_coco.py --recipe coco256-xl --latents latents/coco   # MS-COCO, the paper's appendix H

KERAS_BACKEND=jax, torch or tensorflow chooses the backend. Latents with captions are made by `python -m t2i.encode`.
The same command resumes a run that was stopped at any moment. Every field of a recipe is a flag; see --help.
"""

from fcdm_keras.runs.command import TrainCommand
from t2i.datasets import dataset_of
from t2i.recipes import RECIPES

COMMAND = TrainCommand(
    description=__doc__,
    recipes=RECIPES,
    default="shapes",
    dataset_of=dataset_of,
    hint=(
        "No recipe given: training `shapes` (captioned scenes, drawn as they are read), a quarter of an hour on "
        "two CPU cores.\n"
        "For MS-COCO: python train_coco.py --recipe coco256-xl --latents DIR; all flags: --help.\n"
    ),
)
parse, main = COMMAND.parse, COMMAND.main

if __name__ == "__main__":
    main()
