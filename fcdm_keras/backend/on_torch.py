"""PyTorch: eager, with gradients accumulated in `.grad`.

One process per device, started by `torchrun`; `DistributedDataParallel` averages the gradients.
"""

import contextlib
import datetime
import os
import secrets
import time

import keras
import numpy as np
import torch
import torch.distributed
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

CUTS_MODELS = False
FREES_MEMORY = False


class TrainStep:
    def train_step(self, data):
        before = self.updates()
        batch = self.prepare(data, training=True)
        self.zero_grad()
        losses = []
        for micro_batch in self.micro_batches(batch):
            module = self._loss_module(micro_batch)
            last = len(losses) == self.accumulation_steps - 1
            with contextlib.nullcontext() if last else module.no_sync():
                losses.append(module(micro_batch))
                self.optimizer.scale_loss(self.minimised(losses[-1]) / self.accumulation_steps).backward()
        with torch.no_grad():
            values = [v.value for v in self.trainable_variables]
            gradients = [torch.zeros_like(v) if v.grad is None else v.grad for v in values]
            self.optimizer.apply(gradients, self.trainable_variables)
            losses = {name: torch.cat([part[name].detach() for part in losses]) for name in losses[0]}
            return self.finish_step(losses, before)

    def test_step(self, data):
        return self.track(self.weighed_losses(self.prepare(data, training=False), training=False))

    def make_train_function(self, force=False):
        if self.train_function is None or force:
            self.__dict__.pop("_module", None)  # other weights may be trained
            self.train_function = self._several(self.train_step)

    def make_test_function(self, force=False):
        if self.test_function is None or force:
            self.test_function = self._several(torch.no_grad()(self.test_step))

    def _several(self, step):
        """A function of `steps_per_execution` batches, of which Keras takes one alone on PyTorch."""
        step = torch.compile(step) if self.jit_compile else step
        return lambda batches: [step(batch) for batch in batches][-1]

    def check_optimizer(self):
        pass  # all of Keras's work

    def _loss_module(self, batch):
        """The loss as a PyTorch module, which averages the gradients over the processes where there are several."""
        if "_module" not in self.__dict__:
            module = _LossModule(self)
            if torch.distributed.is_initialized():
                module = _synchronized(module, batch)
            object.__setattr__(self, "_module", module)  # Keras would track it as a layer
        return self._module


class _LossModule(torch.nn.Module):
    """`StepTrainer.weighed_losses` as a forward pass: `DistributedDataParallel` synchronises only what runs in one."""

    def __init__(self, trainer):
        super().__init__()
        self.weights = torch.nn.ParameterList([v.value for v in trainer.trainable_variables])
        object.__setattr__(self, "_trainer", trainer)

    def forward(self, batch):
        return self._trainer.weighed_losses(batch, training=True)

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


def placed(batch):
    return batch


def same_keys():
    return False


def interpolate(averages, variables, weight):
    sources = [variable.value.detach().float() for variable in variables]
    weights = [torch.as_tensor(weight, device=sources[0].device, dtype=torch.float32)] * len(sources)
    # One call for all tensors has no public name. Checked with PyTorch 2.14; tests/test_private_apis.py fails first.
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


def connect(launcher, place, timeout, heartbeat, hosts):
    # What `place` and `heartbeat` are for is torchrun's own affair: it says where its processes are, and watches them.
    if not launcher:
        return 0, 1
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    engines = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    limit = datetime.timedelta(seconds=timeout)
    store, rank, count = next(rendezvous("env://", timeout=limit))
    store = _own_part(store, rank, count, timeout)
    hosts.choose_interface(_noted(store, rank, count, hosts.towards(os.environ["MASTER_ADDR"])), rank)
    torch.distributed.init_process_group(engines, store=store, rank=rank, world_size=count, timeout=limit)
    # What a process may wait for another in training: one that draws or judges images takes its time.
    torch.distributed.set_timeout(datetime.timedelta(minutes=30))
    return rank, count


def _own_part(store, rank, count, timeout):
    """A part of the store that only these processes know.

    torchrun keeps its store when it starts processes again, and with it the addresses of those that are dead. So the
    first process names the part, and answers whatever the others ask until each has heard its answer.
    """
    name, limit = secrets.token_hex(8), time.monotonic() + timeout
    if rank:
        store.set(f"ask-{rank}", name)
        part = store.get(f"answer-{name}").decode()
        store.set(f"heard-{part}-{rank}", "")
        return torch.distributed.PrefixStore(part, store)
    missing = set(range(1, count))
    while missing:
        if time.monotonic() > limit:
            raise RuntimeError(f"process {', '.join(map(str, sorted(missing)))} did not come within {timeout} s")
        for other in missing:
            if store.check([f"ask-{other}"]):
                store.set(f"answer-{store.get(f'ask-{other}').decode()}", name)
        missing = {other for other in missing if not store.check([f"heard-{name}-{other}"])}
        time.sleep(0.02)
    return torch.distributed.PrefixStore(name, store)


def _noted(store, rank, count, note):
    """Every process's `note`, by rank."""
    store.set(f"note-{rank}", note)
    return [store.get(f"note-{other}").decode() for other in range(count)]


def devices():
    count = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    return tuple(f"{kind}:{i}" for i in range(count))


def check_devices(asked, count):
    if asked is not None and asked != count:
        raise ValueError(
            f"On PyTorch each device has a process of its own: start `torchrun --nproc-per-node {asked} …` instead of "
            f"--devices {asked}. This job has {count}."
        )


def advice():
    idle = torch.cuda.device_count()
    return f"{idle} GPUs are visible: `torchrun --nproc-per-node {idle} …` uses all" if idle > 1 else ""


def start(used, model_parallel, layout_map):
    return lambda: None


def disconnect(launcher):
    if launcher:
        torch.distributed.destroy_process_group()


def barrier():
    gather(np.zeros(1, np.uint8))


def gather(array):
    own = torch.from_numpy(np.ascontiguousarray(array))
    parts = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, own)
    return np.stack([part.numpy() for part in parts])


def host_arrays(values):
    return [keras.ops.convert_to_numpy(value) for value in values]


def assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def readable(variables):
    return contextlib.nullcontext()  # every process has them whole


def writing():
    return contextlib.nullcontext()


def accompany(write):
    pass


def device_bytes(variables):
    whole = sum(variable.value.nbytes for variable in variables)
    return whole, whole
