"""`DiffusionTrainer`: `compile` / `fit` / `evaluate` for a diffusion backbone, with the iDDPM loss.

The noise, timesteps and label drops of a training step are drawn from (seed, step, row in the global batch), see
`fcdm_keras.randomness`: there is no random state, and a run that stops and resumes repeats exactly.
"""

import keras
from keras import ops

from fcdm_keras import backend, randomness
from fcdm_keras.diffusion import GaussianDiffusion
from fcdm_keras.step_trainer import StepTrainer

LABEL_DROPOUT_MODES = ("joint", "per_level")


class DiffusionTrainer(StepTrainer):
    """Trains a backbone to predict noise and variance (paper, appendix A; iDDPM's hybrid loss).

    A batch is `(latents, labels)`, or a dict with `latents` `(B, H, W, C)`, the condition under its own name
    (`labels` `(B,)`) and, to replace what would be drawn, `timesteps` int `(B,)` and `noise` like `latents`.

    `fit` and `evaluate` report `loss`, `mse` and `vb` (bits per dimension), averaged over the samples since the last
    `reset_metrics()`. `evaluate` draws from its own stream, the same at every call, and drops no labels.

    Args:
        backbone: an `FCDMBackbone`.
        diffusion: a `GaussianDiffusion`; the default is the 1000-step process.
        ema_decay: decay of the weights' moving average, `self.ema`.
        ema_warmup: ramp the decay up from 0.1, for short runs.
        label_dropout: probability of training without a condition, for guidance.
        label_dropout_mode: `"joint"` drops a sample's condition at all widths at once; `"per_level"` at each width on
            its own, as the reference does.
        accumulation_steps: micro-batches per optimizer step. They split the batch, whose size they must divide.
        seed: integer in [0, 2⁶⁴).

    Raises:
        ValueError: for arguments out of range, and in `fit` for batches that do not fit.

    Example:

    ```python
    trainer = DiffusionTrainer(backbone)
    trainer.compile()  # AdamW at 1e-4, as in the paper
    trainer.fit(dataset, steps_per_epoch=400_000)
    ```
    """

    def __init__(
        self,
        backbone,
        diffusion=None,
        *,
        ema_decay=0.9999,
        ema_warmup=False,
        label_dropout=0.1,
        label_dropout_mode="joint",
        accumulation_steps=1,
        seed=0,
    ):
        super().__init__(dtype=backbone.dtype_policy, name="diffusion_trainer")
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout must lie in [0, 1). Received: {label_dropout}")
        if label_dropout_mode not in LABEL_DROPOUT_MODES:
            raise ValueError(
                f"label_dropout_mode must be one of {LABEL_DROPOUT_MODES}. Received: {label_dropout_mode!r}"
            )
        self.autocast = False  # latents, noise and timesteps stay float32; the backbone casts what it needs
        self.backbone = backbone
        self.diffusion = diffusion or GaussianDiffusion()
        self.label_dropout = label_dropout
        self.label_dropout_mode = label_dropout_mode
        self.prepare(backbone, ("loss", "mse", "vb"), ema_decay, ema_warmup, accumulation_steps, seed)

    def call(self, inputs, training=None):
        return self.backbone(inputs, training=training)

    def unpack(self, data):
        """A batch as a dict, with `row`, each sample's place in the global batch."""
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        batch = dict(x) if isinstance(x, dict) else {"latents": x, self.backbone.conditioning.input_name: y}
        needed = {"latents", self.backbone.conditioning.input_name}
        if not needed <= batch.keys() <= needed | {"timesteps", "noise"} or any(v is None for v in batch.values()):
            received = sorted(batch) if isinstance(x, dict) else "a tuple without a condition"
            raise ValueError(
                f"A batch must hold {sorted(needed)}, and may hold timesteps and noise. Received: {received}"
            )
        batch["latents"] = ops.cast(batch["latents"], "float32")
        batch["row"] = backend.rows(ops.shape(batch["latents"])[0])
        return batch

    def losses(self, batch, training):
        """Per-sample losses `(B,)` of a batch from `draw`; the backbone runs inside `self.call`."""
        x_t = self.diffusion.q_sample(batch["latents"], batch["timesteps"], batch["noise"])
        name = self.backbone.conditioning.input_name
        original = ops.take(ops.convert_to_tensor(self.diffusion.timesteps, "int32"), batch["timesteps"], axis=0)
        output = self({"x_t": x_t, "timesteps": original, name: batch[name]}, training=training)
        return self.diffusion.training_losses(output, batch["latents"], batch["noise"], batch["timesteps"])

    def draw(self, batch):
        """Adds this step's training draws to a batch from `unpack`: timesteps, noise, dropped conditions."""

        def keys(purpose):
            return randomness.sample_keys(self._seed_words, purpose, self.step.value, batch["row"])

        drawn = self._noised(batch, keys, randomness.TIMESTEPS, randomness.NOISE)
        if self.label_dropout:
            conditioning = self.backbone.conditioning
            levels = (len(conditioning.widths),) if self.label_dropout_mode == "per_level" else ()
            mask = randomness.uniform(keys(randomness.LABEL_DROP), levels) < self.label_dropout
            drawn[conditioning.input_name] = conditioning.drop(drawn[conditioning.input_name], mask)
        return drawn

    def draw_for_evaluation(self, batch):
        """As `draw`, from the evaluation stream: the draws belong to the sample's place in the whole evaluation."""
        place = ops.cast(self._means["loss"].count.value, "int32") + batch["row"]

        def keys(purpose):
            return randomness.sample_keys(self._seed_words, purpose, 0, place)

        return self._noised(batch, keys, randomness.EVAL_TIMESTEPS, randomness.EVAL_NOISE)

    def _noised(self, batch, keys, timesteps_purpose, noise_purpose):
        batch = {name: value for name, value in batch.items() if name != "row"}
        if "timesteps" not in batch:
            batch["timesteps"] = randomness.integers(keys(timesteps_purpose), self.diffusion.num_timesteps)
        if "noise" not in batch:
            batch["noise"] = randomness.normal(keys(noise_purpose), tuple(batch["latents"].shape[1:]))
        return batch
