"""The flags that say what a model draws, and their checks. Nothing heavy is imported."""

import argparse

from fcdm_keras.arguments import (
    DIFFUSION_FORMS,
    GRIDS,
    LAST_STEP_SIZE,
    LAST_STEPS,
    MULTISTEP,
    SAMPLERS,
    SIDE,
    TOLERANCE,
    integer,
    listed,
    number,
    word,
)
from fcdm_keras.data.classes import parse_classes
from fcdm_keras.options import add_device_flags, add_overwrite_flag

SOLVER_FLAGS = {  # samplers, and the flags that they alone take
    ("ddim",): ("eta",),
    ("euler_maruyama", "stochastic_heun"): ("diffusion_form", "last_step", "last_step_size"),
    ("ode_dopri5",): ("rtol", "atol"),
    MULTISTEP: ("grid",),
    ("unipc",): ("order",),
}
LABEL_ORDERS = ("balanced", "random")

__all__ = [
    "LABEL_ORDERS", "add_output_flags", "add_request_flags", "add_sampling_flags", "check_request_flags",
    "parse_classes",
]  # fmt: skip


def add_request_flags(parser, num_samples):
    """Adds the flags that decide what a model draws to an argument parser."""
    parser.add_argument(
        "--classes",
        type=listed,
        help="classes to draw, by number or name (cat,dog), such as 0-9 or 207,360; default all",
    )
    parser.add_argument(
        "--labels",
        dest="label_order",
        choices=LABEL_ORDERS,
        default="balanced",
        help="balanced: the classes in turn; random: label i drawn from (seed, i) (default balanced)",
    )
    parser.add_argument(
        "--num-samples",
        type=integer(1),
        default=num_samples,
        help=f"number of images (default {num_samples or 'all'})",
    )
    add_sampling_flags(parser)


def add_sampling_flags(parser, cfg_scale=1.5):
    """Adds those of these flags that any kind of condition has."""
    steps = {"type": integer(1, 1000), "default": 250}
    parser.add_argument("--num-sampling-steps", **steps, help="sampling steps, 1 to 1000 (default 250)")
    parser.add_argument(
        "--sampler", choices=SAMPLERS, help="sampler (default the objective's: ddpm, or euler_maruyama of flows)"
    )
    parser.add_argument("--eta", type=number(0, 1), help="noise of ddim, 0 to 1 (default 0)")
    text = "w(t) of euler_maruyama and stochastic_heun (default sigma)"
    parser.add_argument("--diffusion-form", choices=DIFFUSION_FORMS, help=text)
    parser.add_argument("--last-step", choices=LAST_STEPS, help="their last step, without noise (default mean)")
    parser.add_argument("--last-step-size", type=number(*LAST_STEP_SIZE), help="its size (default 0.04)")
    parser.add_argument("--grid", choices=GRIDS, help="times of the multistep solvers (default uniform)")
    parser.add_argument("--order", type=integer(1, 3), help="order of unipc's predictor (default 2)")
    for name, kind in (("--rtol", "relative"), ("--atol", "absolute")):
        parser.add_argument(name, type=number(*TOLERANCE), help=f"{kind} error of a step of ode_dopri5 (default 1e-3)")
    parser.add_argument(
        "--cfg-scale", type=number(0), default=cfg_scale, help=f"guidance scale, 1 is none (default {cfg_scale})"
    )
    parser.add_argument(
        "--cfg-channels",
        choices=("all", "first_three"),
        default="all",
        help="guided channels; first_three is the reference's way (default all)",
    )
    parser.add_argument("--image-size", type=integer(1, SIDE), help="side in pixels; default the model's own")
    parser.add_argument("--batch-size", type=integer(1), default=64, help="images computed at once (default 64)")
    parser.add_argument("--seed", type=integer(0, 2**64 - 1), default=0, help="seed (default 0)")


def add_output_flags(parser):
    """Adds the flags that say where images go, and as what."""
    parser.add_argument("--output", type=word, required=True, help="folder to write")
    parser.add_argument("--npz", action="store_true", help="also write samples.npz with arr_0, uint8 (N, H, W, C)")
    parser.add_argument("--png", action=argparse.BooleanOptionalAction, default=True, help="write one PNG per image")
    add_overwrite_flag(parser)
    add_device_flags(parser)


def check_request_flags(parser, options):
    """Ends the program for options without effect, and for images that would not be written."""
    for samplers, names in SOLVER_FLAGS.items():
        for name in names:
            if getattr(options, name) is not None and options.sampler not in samplers:
                parser.error(
                    f"--{name.replace('_', '-')} has no effect: the sampler {options.sampler or 'ddpm'} takes none, "
                    f"{' or '.join(samplers)} does; leave it out."
                )
    if options.cfg_scale == 1 and options.cfg_channels != "all":
        parser.error("--cfg-channels has no effect: --cfg-scale is 1, which is no guidance; leave it out.")
    if not getattr(options, "png", True) and not options.npz:
        parser.error("--no-png needs --npz: nothing would be written.")
