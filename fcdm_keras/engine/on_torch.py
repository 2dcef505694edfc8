"""PyTorch: eager, with gradients accumulated in `.grad`."""

import contextlib

import keras
import torch


class TrainStep:
    def train_step(self, data):
        batch = self.draw(self.unpack(data))
        self.zero_grad()
        losses = []
        for micro_batch in self.micro_batches(batch):
            losses.append(self.losses(micro_batch, training=True))
            self.optimizer.scale_loss(losses[-1]["loss"].mean() / self.accumulation_steps).backward()
        with torch.no_grad():
            values = [v.value for v in self.trainable_variables]
            gradients = [torch.zeros_like(v) if v.grad is None else v.grad for v in values]
            self.optimizer.apply(gradients, self.trainable_variables)
            return self.finish_step({name: torch.cat([part[name].detach() for part in losses]) for name in losses[0]})

    def test_step(self, data):
        return self.track(self.losses(self.draw_for_evaluation(self.unpack(data)), training=False))


def interpolate(averages, variables, weight):
    sources = [variable.value.detach().float() for variable in variables]
    weights = [torch.as_tensor(weight, device=sources[0].device, dtype=torch.float32)] * len(sources)
    torch._foreach_lerp_([average.value for average in averages], sources, weights)


def compiled(function, variables):
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
