"""The flags that say which devices a command uses. Standard library only."""

import argparse


def add_device_flags(parser, model_parallel=False, processes=True):
    """Adds the flags that say which devices a command uses to an argument parser.

    Args:
        parser: an `argparse.ArgumentParser`.
        model_parallel: whether the command can cut one model over several devices.
        processes: whether it can run as several processes.
    """
    group = parser.add_argument_group("devices")
    group.add_argument("--devices", type=_positive, default=None, help="devices to use; default all that are visible")
    if model_parallel:
        group.add_argument(
            "--model-parallel", type=_positive, default=1, help="devices that share one copy of the model (JAX)"
        )
    if processes:
        group.add_argument(
            "--connect-timeout", type=_positive, default=50, help="seconds to wait for the job's other processes (50)"
        )


def device_options(options):
    """What these flags say, as arguments of `distribution.setup`."""
    names = ("devices", "model_parallel", "connect_timeout")
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def _positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer. Received: {text!r}")
    return int(text)
