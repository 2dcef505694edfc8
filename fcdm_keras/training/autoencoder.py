"""`AutoencoderTrainer`: `compile` / `fit` / `evaluate` for a `KLAutoencoder` or `PatchAutoencoder`."""

import keras
from keras import ops

from fcdm_keras import backend
from fcdm_keras.arguments import check_number
from fcdm_keras.autoencoders.base import sample_posterior
from fcdm_keras.diffusion import randomness
from fcdm_keras.training import checks
from fcdm_keras.training.step import StepTrainer

LOSSES = ("l1", "l2")


class AutoencoderTrainer(StepTrainer):
    """Trains an autoencoder on `loss = reconstruction + kl_weight · kl`.

    `reconstruction` is the mean absolute (L1) or squared (L2) error of an image's values in [−1, 1], with latents drawn
    from the posterior; `kl` is KL(posterior ‖ standard normal) in nats over the number of the image's values. With both
    summed over the image, these are the relative weights of latent diffusion (Rombach et al., 2022, appendix G, whose
    weight is 10⁻⁶; the adversarial and perceptual terms, which need other networks, are left out).

    A batch is images `(B, H, W, C)`, uint8 or float in [−1, 1], or a dict with `images`. `evaluate` uses the mean.

    Args:
        autoencoder: a `KLAutoencoder` or `PatchAutoencoder`.
        loss: `"l1"` or `"l2"`.
        kl_weight: weight of the divergence.
        ema_decay: decay of the weights' moving average, `self.ema`.
        ema_warmup: ramp the decay up from 0.1, for short runs.
        accumulation_steps: micro-batches per optimizer step.
        seed: integer in [0, 2⁶⁴); the noise is drawn from (seed, step, row in the batch).

    Raises:
        ValueError: for arguments out of range.
    """

    trained = "autoencoder"
    drawn_by = "trainer.autoencoder encodes and decodes images (`encode`, `decode`)"

    def __init__(
        self,
        autoencoder,
        *,
        loss="l1",
        kl_weight=1e-6,
        ema_decay=0.999,
        ema_warmup=True,
        accumulation_steps=1,
        seed=0,
    ):
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}. Received: {loss!r}")
        check_number("kl_weight", kl_weight)
        super().__init__(
            autoencoder,
            ("loss", "reconstruction", "kl"),
            name="autoencoder_trainer",
            ema_decay=ema_decay,
            ema_warmup=ema_warmup,
            accumulation_steps=accumulation_steps,
            seed=seed,
        )
        self.loss_kind = loss
        self.kl_weight = kl_weight

    def call(self, inputs, training=None):
        """Reconstructed images, and the posterior's mean and log-variance."""
        mean, logvar = self.autoencoder.posterior(inputs["images"])
        return self.autoencoder.reconstruct(sample_posterior(mean, logvar, inputs["noise"])), mean, logvar

    def named(self, x, y=None):
        """The images by name, of an array or a dict; a data set's labels are left aside."""
        if isinstance(x, dict) and x.keys() != {"images"}:
            raise ValueError(f"A batch must hold images. Received: {sorted(x)}")
        return dict(x) if isinstance(x, dict) else {"images": x}

    def check_batch(self, batch):
        """Raises ValueError for images that cannot be, as NumPy arrays."""
        checks.check_images(batch["images"], self.autoencoder.in_channels, self.autoencoder.downsampling_factor)

    def unpack(self, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        images = x["images"] if isinstance(x, dict) else x
        if keras.backend.standardize_dtype(images.dtype) == "uint8":
            images = ops.cast(images, "float32") / 127.5 - 1.0
        images = ops.cast(images, "float32")
        return {"images": images, "row": backend.rows(ops.shape(images)[0])}

    def draw(self, batch):
        keys = randomness.sample_keys(self._seed_words, randomness.POSTERIOR_NOISE, self.step.value, batch["row"])
        return {"images": batch["images"], "noise": randomness.normal(keys, self._latent_shape(batch["images"]))}

    def draw_for_evaluation(self, batch):
        shape = (ops.shape(batch["images"])[0], *self._latent_shape(batch["images"]))
        return {"images": batch["images"], "noise": ops.zeros(shape)}

    def losses(self, batch, training):
        images = batch["images"]
        reconstruction, mean, logvar = self(batch, training=training)
        error = reconstruction - images
        error = ops.mean(ops.abs(error) if self.loss_kind == "l1" else ops.square(error), axis=(1, 2, 3))
        divergence = 0.5 * ops.sum(ops.square(mean) + ops.exp(logvar) - 1.0 - logvar, axis=(1, 2, 3))
        kl = divergence / (images.shape[1] * images.shape[2] * images.shape[3])
        return {"loss": error + self.kl_weight * kl, "reconstruction": error, "kl": kl}

    def _latent_shape(self, images):
        factor = self.autoencoder.downsampling_factor
        return (images.shape[1] // factor, images.shape[2] // factor, self.autoencoder.latent_channels)
