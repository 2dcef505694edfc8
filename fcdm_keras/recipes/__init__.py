"""Tables: the settings of a training run, the recipes; model sizes (`sizes`), ablations. Nothing heavy is imported."""

import dataclasses

from fcdm_keras import options
from fcdm_keras.arguments import (
    COUNTED,
    COUNTERPARTS,
    FLOW_PATHS,
    FLOW_PREDICTIONS,
    FLOW_SETTINGS,
    FLOW_TIMES,
    FLOW_WEIGHTINGS,
    LARGEST,
    LEAST_STEPS,
    OBJECTIVES,
    SAMPLERS,
    SIDE,
    check_sampler,
)
from fcdm_keras.options import (
    REQUIRED,
    above,
    adjustable,
    at_least,
    below,
    between,
    changeable,
    filled,
    setting,
    share,
)
from fcdm_keras.recipes.ablations import VARIANTS, sized
from fcdm_keras.recipes.sizes import MODEL_SIZES, ModelSize  # noqa: F401

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
SEED_CHECKS = (at_least(0), below(2**64, "2**64"))
STEPS = (at_least(1), below(10**9, "10**9: checkpoints have nine digits in their names"))
IN_FLOAT32 = below(LARGEST, "3.4e38, the largest number of float32")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run. Defaults are the paper's (table 7)."""

    recipe: str = setting()
    dataset: str = setting(REQUIRED, "data set", filled())
    model: str = setting(REQUIRED, "model size: " + ", ".join(MODEL_SIZES), choices=MODEL_SIZES)
    image_size: int = setting(REQUIRED, "side of the images, pixels", between(4, SIDE))
    num_classes: int = setting(REQUIRED, "number of classes; default the latent store's", between(1, 10**6))
    steps: int = changeable(REQUIRED, "optimizer steps in all", *STEPS)
    variant: str = setting("", f"ablation of FCDM, its width scaled to the model's FLOPs: {', '.join(VARIANTS)}")
    latent_channels: int = setting(4, "channels of the latents", between(1, SIDE))
    latent_scale: float = setting(
        0.18215,
        "factor from the autoencoder's latents to what is diffused, which the store must have; 0 is any",
        at_least(0),
        IN_FLOAT32,
    )
    latents: str = changeable("", "latent store, made by `python -m fcdm_keras.encode`")
    source: str = changeable(
        "", "images for --no-cache: folder of class folders, or TFDS name; default the recipe's data set"
    )
    data_dir: str = changeable("", "folder of TensorFlow Datasets")
    vae: str = changeable(
        "", "autoencoder that decodes samples: folder or Hub id; default what the latent store was made with"
    )
    cache: bool = setting(
        True, "train from a latent store; --no-cache: keep the images in memory and encode every batch (small sets)"
    )
    flips: bool = setting(True, "mirror half of the images")
    sample_posterior: bool = setting(
        True, "draw latents from the autoencoder's posterior anew at each read; else its mean"
    )
    data_workers: int = changeable(0, "processes that read training data; 0 reads in this one", between(0, 1024))
    init_from: str = setting("", "start from the weights of a preset, run or reference checkpoint (.pt)")
    lora_rank: int = setting(
        0,
        "train adapters of this rank and the conditioning, the rest as in --init-from; 0 trains all",
        between(0, SIDE),
    )
    objective: str = setting("iddpm", "what is learnt: iddpm (noise and variance), or flow", choices=OBJECTIVES)
    flow_path: str = setting("linear", "flow: path from noise to data: linear, gvp or vp", choices=FLOW_PATHS)
    flow_prediction: str = setting(
        "velocity", "flow: what the network predicts: velocity, noise or score", choices=FLOW_PREDICTIONS
    )
    flow_weighting: str = setting(
        "none", "flow: weight of the losses of noise and score: none, velocity or likelihood", choices=FLOW_WEIGHTINGS
    )
    flow_times: str = setting("uniform", "flow: how training draws times: uniform or logit_normal", choices=FLOW_TIMES)
    global_batch_size: int = setting(
        256, "images per optimizer step, over all devices and micro-batches", between(1, COUNTED)
    )
    accumulation_steps: int = changeable(
        1, "micro-batches per optimizer step; divides the global batch size", at_least(1)
    )
    learning_rate: float = adjustable(1e-4, "constant step size of AdamW", above(0), IN_FLOAT32)
    weight_decay: float = adjustable(0.0, "AdamW's weight decay", at_least(0), IN_FLOAT32)
    clip_norm: float = adjustable(0.0, "clip the gradients to this global norm; 0 is off", at_least(0), IN_FLOAT32)
    ema_decay: float = setting(0.9999, "decay of the weights' moving average, per step", share())
    ema_warmup: bool = setting(False, "let the decay rise from 0.1 at the start")
    label_dropout: float = setting(0.1, "share of samples trained without label, for guidance", share())
    label_dropout_mode: str = setting(
        "joint",
        "joint: one drop for all three tables; per_level: each on its own, as the reference",
        choices=("joint", "per_level"),
    )
    precision: str = adjustable("float32", "dtype policy: float32, mixed_bfloat16 or mixed_float16", choices=PRECISIONS)
    gradient_checkpointing: bool = changeable(False, "recompute blocks in the backward pass: less memory, more time")
    seed: int = setting(0, "seed of weights, data order, noise and timesteps", *SEED_CHECKS)
    log_every: int = changeable(100, "steps between log lines", at_least(1))
    sample_every: int = changeable(10_000, "steps between sample grids; 0 is never", at_least(0))
    eval_every: int = changeable(
        0, "steps between scores of images drawn from the EMA weights; 0 is never", at_least(0)
    )
    num_eval_samples: int = changeable(200, "images drawn for these scores", between(4, COUNTED))
    eval_reference: str = changeable(
        "", "reference that they are compared with (not for digits), see `python -m fcdm_keras.evaluate`"
    )
    eval_features: str = changeable(
        "inception", "features of these scores: inception, dinov2, pixels or a .keras model", filled()
    )
    inception: str = changeable("", "classify_image_graph_def.pb; default downloads it")
    ckpt_every: int = changeable(10_000, "steps between checkpoints", at_least(1))
    keep_last: int = changeable(3, "newest checkpoints kept", at_least(1))
    keep_every: int = changeable(
        100_000, "checkpoints at multiples of this many steps are kept for good; 0 is none", at_least(0)
    )
    sampler: str = changeable("ddpm", "ddpm or ddim (for iddpm), those of flows, or those of both", choices=SAMPLERS)
    num_sampling_steps: int = changeable(250, "sampling steps, 1 to 1000", between(1, 1000))
    cfg_scale: float = changeable(1.5, "guidance scale on all channels; 1 is none", at_least(0), IN_FLOAT32)
    results_dir: str = changeable("runs", "folder of run folders; the run is in RESULTS_DIR/RECIPE", filled())

    def completed(self, given):
        """The settings with the sampler of the objective, where `given`, names of settings, has none."""
        fits = self.objective in SAMPLERS.get(self.sampler, (self.objective,))
        other = COUNTERPARTS.get(self.sampler, self.sampler)
        return self if fits or "sampler" in given else dataclasses.replace(self, sampler=other)

    @property
    def size(self):
        """The `ModelSize` of the model, or of its variant."""
        return sized(MODEL_SIZES[self.model], self.variant)

    @property
    def model_name(self):
        """The model's name for people, with its variant's."""
        return f"{self.model} ({self.variant})" if self.variant else self.model

    def check(self):
        """Raises ValueError, in one sentence, for values that cannot be trained with."""
        options.check(self)
        sized(MODEL_SIZES[self.model], self.variant)
        if self.global_batch_size % self.accumulation_steps:
            raise ValueError(
                f"global_batch_size must be divisible by accumulation_steps={self.accumulation_steps}. "
                f"Received: {self.global_batch_size}"
            )
        check_sampler(self.sampler, self.objective)
        if self.num_sampling_steps < LEAST_STEPS.get(self.sampler, 1):
            raise ValueError(f"The sampler {self.sampler} takes 2 steps or more. Received: {self.num_sampling_steps}")
        for name in FLOW_SETTINGS:
            if self.objective != "flow" and getattr(self, name) != getattr(TrainConfig, name):
                raise ValueError(
                    f"{name}={getattr(self, name)} has no effect: the objective is {self.objective}; leave it out."
                )
        if self.flow_prediction == "velocity" and self.flow_weighting != "none":
            raise ValueError(
                f"flow_weighting={self.flow_weighting} has no effect: velocities are not weighted; leave it out."
            )
        if self.lora_rank and not self.init_from:
            raise ValueError(f"lora_rank={self.lora_rank} needs init_from, the weights that it adapts. Received: none")


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Everything that decides a training run of `python -m fcdm_keras.train_vae`."""

    source: str = setting(
        "photos", "folder of images, or photos (three photographs that ship inside packages)", filled()
    )
    image_size: int = setting(
        32, "side of the random crops, pixels; images of any size can be encoded later", between(1, SIDE)
    )
    resize: int = setting(
        0, "reduce images whose shorter side is longer than this to it; 0 keeps them as they are", between(0, SIDE)
    )
    block_out_channels: tuple[int, ...] = setting(
        (16, 32, 64), "widths of the levels, such as 16,32,64; each but the last halves"
    )
    layers_per_block: int = setting(
        1, "residual blocks per level of the encoder; the decoder has one more", between(1, 1000)
    )
    latent_channels: int = setting(4, "channels of the latents", between(1, SIDE))
    norm_num_groups: int = setting(8, "groups of the norms; divides every width", between(1, SIDE))
    steps: int = changeable(1000, "optimizer steps in all", *STEPS)
    batch_size: int = setting(16, "crops per step", between(1, COUNTED))
    accumulation_steps: int = changeable(
        1, "micro-batches per step, to save memory; divides the batch size", at_least(1)
    )
    learning_rate: float = adjustable(1e-3, "constant step size of AdamW", above(0), IN_FLOAT32)
    clip_norm: float = adjustable(1.0, "clip the gradients to this global norm; 0 is off", at_least(0), IN_FLOAT32)
    loss: str = setting("l1", "l1 or l2: absolute or squared error", choices=("l1", "l2"))
    kl_weight: float = setting(1e-6, "weight of the KL divergence", at_least(0), IN_FLOAT32)
    ema_decay: float = setting(0.999, "decay of the weights' moving average, per step", share())
    precision: str = adjustable("float32", "dtype policy", choices=PRECISIONS)
    seed: int = setting(0, "seed of weights, crops and noise", *SEED_CHECKS)
    log_every: int = changeable(50, "steps between log lines", at_least(1))
    sample_every: int = changeable(500, "steps between reconstruction grids; 0 is never", at_least(0))
    ckpt_every: int = changeable(500, "steps between checkpoints", at_least(1))

    @property
    def downsampling_factor(self):
        return 2 ** (len(self.block_out_channels) - 1)

    def check(self):
        """Raises ValueError, in one sentence, for values that cannot be trained with."""
        options.check(self)
        if any(width % self.norm_num_groups for width in self.block_out_channels):
            raise ValueError(
                f"block_out_channels must be multiples of norm_num_groups={self.norm_num_groups}. "
                f"Received: {','.join(map(str, self.block_out_channels))}"
            )
        if self.image_size % self.downsampling_factor:
            raise ValueError(
                f"image_size must be a multiple of {self.downsampling_factor}, the downsampling factor of "
                f"{len(self.block_out_channels)} levels. Received: {self.image_size}"
            )
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"batch_size must be divisible by accumulation_steps={self.accumulation_steps}. "
                f"Received: {self.batch_size}"
            )
        if 0 < self.resize < self.image_size:
            raise ValueError(f"resize must be at least image_size={self.image_size}. Received: {self.resize}")


def _imagenet(image_size, model, steps, flow=False):
    name = f"imagenet{image_size}-{model.lower()}" + "-flow" * flow
    own = {"objective": "flow", "sampler": "euler_maruyama"} if flow else {}
    return TrainConfig(
        recipe=name,
        dataset="imagenet2012",
        model=model,
        image_size=image_size,
        num_classes=1000,
        steps=steps,
        data_workers=4,
        **own,
    )


RECIPES = {
    config.recipe: config
    for config in (
        # scikit-learn's handwritten digits in pixel space; minutes on two CPU cores.
        TrainConfig(
            recipe="digits",
            dataset="digits",
            model="XS",
            image_size=8,
            num_classes=10,
            steps=1000,
            latent_channels=1,
            latent_scale=1.0,
            flips=False,
            global_batch_size=128,
            learning_rate=1e-3,
            ema_decay=0.999,
            ema_warmup=True,
            log_every=50,
            sample_every=500,
            ckpt_every=250,
            keep_every=0,
            sampler="ddim",
            num_sampling_steps=50,
        ),
        # Three photographs that ship inside packages, through an autoencoder and a latent store of their own.
        TrainConfig(
            recipe="photos",
            dataset="photos",
            model="XS",
            image_size=48,
            num_classes=3,
            steps=800,
            latent_scale=0.0,
            global_batch_size=64,
            learning_rate=1e-3,
            ema_decay=0.999,
            ema_warmup=True,
            log_every=50,
            sample_every=400,
            ckpt_every=200,
            keep_every=0,
            sampler="ddim",
            num_sampling_steps=50,
        ),
        # Table 7. Scores: not yet reproduced.
        _imagenet(256, "S", 400_000),
        _imagenet(256, "B", 400_000),
        _imagenet(256, "L", 400_000),
        _imagenet(256, "XL", 2_000_000),
        _imagenet(512, "XL", 1_000_000),
        # Table 9 and appendix E. Scores: not yet reproduced.
        *(_imagenet(256, model, 400_000, flow=True) for model in ("S", "B", "L", "XL")),
    )
}
