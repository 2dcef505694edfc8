"""A small training job for the tests of `fcdm_keras.distribution`, run in processes of its own.

    python tests/distributed_job.py RESULT.npz '{"devices": 4, "steps": 10, …}'

Trains on four kinds of made-up latents, over the devices or processes that its environment gives it, and writes each
step's loss, the weights, their average, and what an evaluation gives.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

DEFAULTS = {
    "devices": None, "model_parallel": 1, "logical": 0, "steps": 10, "batch": 8, "accumulation": 1, "clip": 0.0,
    "checkpointing": False, "precision": "float32", "checkpoints": "", "save_every": 0, "stop_after": 0, "timeout": 50,
    "draw": 0, "kill": [],
}  # fmt: skip


def main(output, settings):
    options = {**DEFAULTS, **json.loads(settings)}
    import keras

    if options["logical"] and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        place = tf.config.list_physical_devices("CPU")[0]
        parts = [tf.config.LogicalDeviceConfiguration() for _ in range(options["logical"])]
        tf.config.set_logical_device_configuration(place, parts)
    from fcdm_keras import distribution

    with distribution.setup(options["devices"], options["model_parallel"], options["timeout"]):
        results = job(options)
        if distribution.is_main():
            import numpy as np

            np.savez(output, **results)


def job(options):
    import keras
    import numpy as np

    from fcdm_keras import DiffusionTrainer, FCDMBackbone, callbacks, distribution, engine
    from fcdm_keras.checkpoint import CheckpointManager
    from fcdm_keras.data.batches import ArraySource, training_batches
    from fcdm_keras.optimizers import AdamW
    from fcdm_keras.tasks import ClassToImage

    distribution.check_batch(options["batch"], options["accumulation"])
    keras.utils.set_random_seed(0)
    backbone = FCDMBackbone(8, (1, 0, 1, 0, 1), num_classes=4, in_channels=1, dtype=options["precision"])
    backbone.gradient_checkpointing = options["checkpointing"]
    trainer = DiffusionTrainer(backbone, ema_decay=0.9, accumulation_steps=options["accumulation"], seed=3)
    trainer.compile(AdamW(1e-3, global_clipnorm=options["clip"] or None))
    generator = np.random.default_rng(0)
    latents = generator.standard_normal((48, 8, 8, 1), np.float32)
    source = ArraySource({"latents": latents, "labels": np.arange(48) % 4})
    manager = CheckpointManager(options["checkpoints"], keep_last=9) if options["checkpoints"] else None
    start = (manager.restore(trainer) or 0) if manager else 0
    rows = distribution.batch_rows(options["batch"])
    batches = training_batches(source, options["batch"], options["steps"], 5, start, rows=rows)
    losses = []

    class Record(callbacks.StepCallback):
        def on_step(self, logs):
            losses.append(float(logs["loss"]))
            self.model.reset_metrics()
            if [distribution.job().process_index, self.step] == options["kill"]:
                os.kill(os.getpid(), 9)

    saving = [callbacks.Checkpoint(manager, options["save_every"])] if manager else []
    steps = (options["stop_after"] or options["steps"]) - start
    trainer.fit(engine.feed(batches), steps_per_epoch=steps, verbose=0, shuffle=False, callbacks=[*saving, Record()])
    placed = distribution.job()
    held = {v.path: v.value for v in trainer.variables} if options["model_parallel"] > 1 else {}
    results = {
        "start": start,
        "losses": np.array(losses),
        "weights": _flat(trainer.trainable_variables),
        "ema": _flat(trainer.ema.averages),
        "processes": placed.process_count,
        "devices": len(placed.devices),
        "cut": [path for path, value in held.items() if not value.is_fully_replicated],
    }
    if options["draw"]:
        task = ClassToImage(backbone, image_size=8)
        task_options = {"num_steps": 4, "seed": 1, "sampler": "ddim", "batch_size": 5}
        results["images"] = task.generate(np.arange(options["draw"]) % 4, weights=trainer.ema.values(), **task_options)
    return results


def _flat(variables):
    import numpy as np

    from fcdm_keras import distribution

    return np.concatenate([array.ravel() for array in distribution.host_arrays([v.value for v in variables])])


if __name__ == "__main__":
    main(*sys.argv[1:])
