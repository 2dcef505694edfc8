"""Published checkpoints (`.pt`) of FCDM, and of the networks that it is compared with, to backbones and back.

    python -m fcdm_keras.convert in.pt out_preset/ [--weights ema|model] [--num-classes N] [--num-heads N] [--variant V]

A reference checkpoint is a dict with the state dicts `model` and `ema`, the optimizer's state and the run's arguments.
Other PyTorch files and `.safetensors` that hold such a network are read too; nothing stored in them is executed.
"""

from pathlib import Path

import numpy as np

from fcdm_keras.arguments import SIDE, integer, word
from fcdm_keras.formats.torch_files import read_torch_file
from fcdm_keras.network import presets
from fcdm_keras.network.architectures import ARCHITECTURES
from fcdm_keras.network.reference import load_torch_checkpoint, save_torch_state_dict
from fcdm_keras.options import add_overwrite_flag, command_parser, reported
from fcdm_keras.recipes.ablations import VARIANTS
from fcdm_keras.runs import outputs

__all__ = ["load_torch_checkpoint", "read_torch_file", "save_torch_state_dict"]


def main(arguments=None):
    parser = command_parser("fcdm_keras.convert", "Convert a reference FCDM checkpoint to a Keras preset folder.")
    parser.add_argument("checkpoint", type=word, help="reference checkpoint (.pt)")
    parser.add_argument("preset", type=word, help="folder to write")
    parser.add_argument("--weights", choices=("ema", "model"), default="ema", help="which weights (default: ema)")
    parser.add_argument(
        "--num-classes", type=integer(1, 10**6), help='classes; needed where no row stands for "no class"'
    )
    parser.add_argument("--architecture", choices=ARCHITECTURES, help="network (default: what the tensors tell)")
    parser.add_argument(
        "--num-heads", type=integer(1, 65_536), help="heads of the attention; needed for DiT, SiT and U-ViT"
    )
    parser.add_argument("--variant", choices=tuple(VARIANTS), help="ablation that it must be of; default what it is")
    parser.add_argument("--head-width", type=integer(1, SIDE), help="of the variant neighborhood, if it is not 32")
    add_overwrite_flag(parser)
    options = parser.parse_args(arguments)
    with reported():
        folder, kind = Path(options.preset), outputs.kind_of(options.preset)
        ours = kind == outputs.PRESET and not options.overwrite and not (folder / "task.json").exists()  # perhaps
        if not ours:
            _check(options)
        asked = {name: getattr(options, name) for name in ("num_heads", "variant", "head_width")}
        arguments = {name: value for name, value in asked.items() if value is not None}
        given = {"num_classes": options.num_classes, "architecture": options.architecture, **arguments}
        backbone = load_torch_checkpoint(options.checkpoint, options.weights, **given)
        if ours and not _is_same(backbone, folder):
            _check(options)
        if not ours:
            with presets.replacing(folder, whatever=kind is not None) as unfinished:
                backbone.save_to_preset(unfinished)
        title, parameters = type(backbone).__name__.removesuffix("Backbone"), backbone.count_params()
        print(f"{options.preset}: {title} with {parameters:,} parameters, {options.weights} weights.")


def _check(options):
    inputs = [options.checkpoint]
    outputs.check_folder(
        options.preset, "a converted model", overwrite=options.overwrite, inputs=inputs, place="folder"
    )


def _is_same(backbone, folder):
    """Whether a preset holds this very backbone: a command that was killed at its end is run again."""
    if presets.read_object(folder / "config.json")["class_name"] != type(backbone).__name__:
        return False
    there = type(backbone).from_preset(folder)
    left_out = {"name": None, "dtype": None}
    same = {**there.get_config(), **left_out} == {**backbone.get_config(), **left_out}
    return same and all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(there.weights, backbone.weights))


if __name__ == "__main__":
    main()
