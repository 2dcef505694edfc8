"""PyTorch: eager, with gradients accumulated in `.grad`."""

import contextlib

import keras
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel


class TrainStep:
    def train_step(self, data):
        batch = self.draw(self.unpack(data))
        self.zero_grad()
        losses = []
        for micro_batch in self.micro_batches(batch):
            module = self._loss_module(micro_batch)
            last = len(losses) == self.accumulation_steps - 1
            with contextlib.nullcontext() if last else module.no_sync():
                losses.append(module(micro_batch))
                self.optimizer.scale_loss(losses[-1]["loss"].mean() / self.accumulation_steps).backward()
        with torch.no_grad():
            values = [v.value for v in self.trainable_variables]
            gradients = [torch.zeros_like(v) if v.grad is None else v.grad for v in values]
            self.optimizer.apply(gradients, self.trainable_variables)
            return self.finish_step({name: torch.cat([part[name].detach() for part in losses]) for name in losses[0]})

    def test_step(self, data):
        return self.track(self.losses(self.draw_for_evaluation(self.unpack(data)), training=False))

    def _loss_module(self, batch):
        """The loss as a PyTorch module, which averages the gradients over the processes where there are several."""
        if "_module" not in self.__dict__:
            module = _LossModule(self)
            if torch.distributed.is_initialized():
                module = _synchronized(module, batch)
            object.__setattr__(self, "_module", module)  # Keras would track it as a layer
        return self._module


class _LossModule(torch.nn.Module):
    """`StepTrainer.losses` as a forward pass: `DistributedDataParallel` synchronises only what runs in one."""

    def __init__(self, trainer):
        super().__init__()
        self.weights = torch.nn.ParameterList([v.value for v in trainer.trainable_variables])
        object.__setattr__(self, "_trainer", trainer)

    def forward(self, batch):
        return self._trainer.losses(batch, training=True)

    def no_sync(self):
        return contextlib.nullcontext()


def _synchronized(module, batch):
    """The module in `DistributedDataParallel`, which must know the weights that a batch's loss depends on."""
    weights = list(module.weights)
    gradients = torch.autograd.grad(module(batch)["loss"].mean(), weights, allow_unused=True)
    used = [weight for weight, gradient in zip(weights, gradients, strict=True) if gradient is not None]
    module.weights = torch.nn.ParameterList(used)
    device = used[0].device
    return DistributedDataParallel(
        module, device_ids=[device.index] if device.type == "cuda" else None, gradient_as_bucket_view=True
    )


def rows(count):
    """Places of this process's samples in the global batch, int32 `(count,)`."""
    first = torch.distributed.get_rank() * count if torch.distributed.is_initialized() else 0
    return keras.ops.arange(first, first + count, dtype="int32")


def gathered(losses):
    if not torch.distributed.is_initialized():
        return losses
    own = torch.stack(list(losses.values())).detach()
    every = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(every, own)
    return dict(zip(losses, torch.cat(every, dim=1), strict=True))


def feed(batches):
    return batches


def interpolate(averages, variables, weight):
    sources = [variable.value.detach().float() for variable in variables]
    weights = [torch.as_tensor(weight, device=sources[0].device, dtype=torch.float32)] * len(sources)
    torch._foreach_lerp_([average.value for average in averages], sources, weights)


def compiled(function, variables, batched=()):
    @torch.no_grad()
    def run(values, *args):
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return function(*args)

    return run


def allow_tf32():
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


@contextlib.contextmanager
def full_precision():
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    try:
        yield
    finally:
        for switch, allowed in zip(switches, before):
            switch.allow_tf32 = allowed
