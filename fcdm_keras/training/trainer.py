"""`DiffusionTrainer`: `compile` / `fit` / `evaluate` for a diffusion backbone and an objective.

The noise, timesteps and label drops of a training step are drawn from (seed, step, row in the global batch), see
`fcdm_keras.diffusion.randomness`: there is no random state, and a run that stops and resumes repeats exactly.
"""

import keras
from keras import ops

from fcdm_keras import backend
from fcdm_keras.arguments import check_share
from fcdm_keras.diffusion import randomness
from fcdm_keras.diffusion.objectives import IDDPM, as_objective, check_channels
from fcdm_keras.training import checks
from fcdm_keras.training.step import StepTrainer

LABEL_DROPOUT_MODES = ("joint", "per_level")


class DiffusionTrainer(StepTrainer):
    """Trains a backbone on an objective; the default is iDDPM's, noise and variance (paper, appendix A).

    A batch is `(latents, labels)`, or a dict with `latents` `(B, H, W, C)`, the condition under its own name
    (`labels` `(B,)`, integers in [0, num_classes)) and, to replace what would be drawn, `timesteps` `(B,)` (iDDPM's are
    integers, a flow's floats in [0, 1]) and `noise` like `latents`; `(latents, labels, sample_weight)` weighs the
    samples. `fit` and its like take whole arrays, or batches from tf.data, Grain, a PyDataset, a PyTorch loader or a
    generator, and refuse what cannot be right.

    `fit` and `evaluate` report the objective's losses (`loss`, `mse` and `vb`, the latter in bits per dimension),
    averaged over the samples since the last `reset_metrics()`. `evaluate` draws from its own stream, the same at every
    call, and drops no labels.

    Args:
        backbone: an `FCDMBackbone`.
        diffusion: the `GaussianDiffusion` of the default objective; default the 1000-step process.
        objective: see `fcdm_keras.diffusion.objectives`, such as `FlowMatching()`, or a name there, `"iddpm"` or
            `"flow"`; default `IDDPM(diffusion)`.
        ema_decay: decay of the weights' moving average, `self.ema`.
        ema_warmup: ramp the decay up from 0.1, for short runs.
        label_dropout: probability of training without a condition, for guidance.
        label_dropout_mode: `"joint"` drops a sample's condition at all widths at once; `"per_level"` at each width on
            its own, as the reference does.
        accumulation_steps: micro-batches per optimizer step. They split the batch, whose size they must divide; a short
            last batch is filled up with samples that do not count.
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

    trained = "backbone"
    drawn_by = "ClassToImage(trainer.backbone) draws images (`generate`, `predict`)"

    def __init__(
        self,
        backbone,
        diffusion=None,
        *,
        objective=None,
        ema_decay=0.9999,
        ema_warmup=False,
        label_dropout=0.1,
        label_dropout_mode="joint",
        accumulation_steps=1,
        seed=0,
    ):
        check_share("label_dropout", label_dropout)
        if label_dropout_mode not in LABEL_DROPOUT_MODES:
            raise ValueError(
                f"label_dropout_mode must be one of {LABEL_DROPOUT_MODES}. Received: {label_dropout_mode!r}"
            )
        if diffusion is not None and objective is not None:
            raise ValueError("Give an objective, or a diffusion for the default one. Received: both")
        objective = IDDPM(diffusion) if objective is None else as_objective(objective)
        check_channels(objective, backbone)
        super().__init__(
            backbone,
            objective.loss_names,
            name="diffusion_trainer",
            ema_decay=ema_decay,
            ema_warmup=ema_warmup,
            accumulation_steps=accumulation_steps,
            seed=seed,
        )
        self.objective = objective
        self.label_dropout = label_dropout
        self.label_dropout_mode = label_dropout_mode

    def call(self, inputs, training=None):
        return self.backbone(inputs, training=training)

    @property
    def conditioning(self):
        return self.backbone.conditioning

    def named(self, x, y=None):
        """The parts of a batch by name: of `(latents, condition)`, or of a dict, whose condition may be `y`."""
        condition = self.conditioning.input_name
        batch = dict(x) if isinstance(x, dict) else {"latents": x}
        if y is not None and condition in batch:
            raise ValueError(f"{condition} must be given once. Received: in the dict and as y")
        if y is not None or not isinstance(x, dict):
            batch[condition] = y
        needed = {"latents", condition}
        if not needed <= batch.keys() <= needed | {"timesteps", "noise"} or any(v is None for v in batch.values()):
            received = sorted(batch) if isinstance(x, dict) else "a tuple without a condition"
            raise ValueError(
                f"A batch must hold {sorted(needed)}, and may hold timesteps and noise. Received: {received}"
            )
        return batch

    def check_batch(self, batch):
        """Raises ValueError for latents, timesteps or noise that cannot be, as NumPy arrays."""
        checks.check_latents(batch["latents"], self.backbone.in_channels, self.backbone.side_multiple)
        if "noise" in batch:
            checks.check_noise(batch["noise"], batch["latents"])
        if "timesteps" in batch and hasattr(self.objective, "check_timesteps"):
            self.objective.check_timesteps(batch["timesteps"])

    def unpack(self, data):
        """A batch as a dict, with `row`, each sample's place in the global batch."""
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        batch = self.named(x, y)
        batch["latents"] = ops.cast(batch["latents"], "float32")
        batch["row"] = backend.rows(ops.shape(batch["latents"])[0])
        return batch

    def losses(self, batch, training):
        """Per-sample losses `(B,)` of a batch from `draw`; the backbone runs inside `self.call`."""
        name = self.backbone.conditioning.input_name
        x_t, timesteps = self.objective.inputs(batch)
        output = self({"x_t": x_t, "timesteps": timesteps, name: batch[name]}, training=training)
        return self.objective.losses(output, batch)

    def draw(self, batch):
        """Adds this step's training draws to a batch from `unpack`: timesteps, noise, dropped conditions."""

        def keys(purpose):
            return randomness.sample_keys(self._seed_words, purpose, self.step.value, batch["row"])

        drawn = self._with_draws(batch, keys, {"timesteps": randomness.TIMESTEPS, "noise": randomness.NOISE})
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

        return self._with_draws(batch, keys, {"timesteps": randomness.EVAL_TIMESTEPS, "noise": randomness.EVAL_NOISE})

    def _with_draws(self, batch, keys, purposes):
        batch = {name: value for name, value in batch.items() if name != "row"}
        return self.objective.draw(batch, lambda name: keys(purposes[name]))
