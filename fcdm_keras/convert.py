"""Reference FCDM checkpoints (`.pt`) to backbones and back.

    python -m fcdm_keras.convert in.pt out_preset/ [--weights ema|model] [--num-classes N]

A reference checkpoint is a dict with the state dicts `model` and `ema`, the optimizer's state and the run's arguments.
Other PyTorch files and `.safetensors` that hold such a network are read too; nothing stored in them is executed.
"""

from fcdm_keras.arguments import integer, word
from fcdm_keras.formats.torch_files import read_torch_file
from fcdm_keras.network.reference import load_torch_checkpoint, save_torch_state_dict
from fcdm_keras.options import command_parser, reported

__all__ = ["load_torch_checkpoint", "read_torch_file", "save_torch_state_dict"]


def main(arguments=None):
    parser = command_parser("fcdm_keras.convert", "Convert a reference FCDM checkpoint to a Keras preset folder.")
    parser.add_argument("checkpoint", type=word, help="reference checkpoint (.pt)")
    parser.add_argument("preset", type=word, help="folder to write")
    parser.add_argument("--weights", choices=("ema", "model"), default="ema", help="which weights (default: ema)")
    parser.add_argument(
        "--num-classes", type=integer(1, 10**6), help='classes; needed where no row stands for "no class"'
    )
    options = parser.parse_args(arguments)
    with reported():
        backbone = load_torch_checkpoint(options.checkpoint, options.weights, num_classes=options.num_classes)
        backbone.save_to_preset(options.preset)
    print(f"{options.preset}: FCDM with {backbone.count_params():,} parameters, {options.weights} weights.")


if __name__ == "__main__":
    main()
