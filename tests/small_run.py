"""`train_imagenet.py` with a very small model, for tests that need processes of their own.

    python tests/small_run.py train_imagenet.py FLAGS…      or any module: fcdm_keras.sample FLAGS…

LOGICAL_DEVICES=N gives TensorFlow so many CPU devices; KILL_AT="1:7" kills process 1 after step 7, with kill -9, the
first time that it gets there.
"""

import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from fcdm_keras import recipes  # noqa: E402

SMALL = recipes.ModelSize(8, (1, 0, 0, 0, 0))


def main(module, *flags):
    recipes.MODEL_SIZES["XS"] = SMALL
    if "LOGICAL_DEVICES" in os.environ and os.environ["KERAS_BACKEND"] == "tensorflow":
        import tensorflow as tf

        parts = [tf.config.LogicalDeviceConfiguration()] * int(os.environ["LOGICAL_DEVICES"])
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
    if "KILL_AT" in os.environ and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        kill_at(*map(int, os.environ["KILL_AT"].split(":")))
    if module == "train_coco.py":
        import text_helpers  # its text encoders start quickly

        text_helpers.score_few()
    sys.argv = [module, *flags]
    if module.endswith(".py"):
        runpy.run_path(str(ROOT / module), run_name="__main__")
    else:
        runpy.run_module(module, run_name="__main__")


def kill_at(process, step):
    from fcdm_keras import distribution
    from fcdm_keras.training import callbacks

    class Deadly(callbacks.StopOnNonFinite):
        def on_step(self, logs):
            super().on_step(logs)
            if (distribution.job().process_index, self.step) == (process, step):
                os.kill(os.getpid(), 9)

    callbacks.StopOnNonFinite = Deadly


if __name__ == "__main__":
    main(*sys.argv[1:])
