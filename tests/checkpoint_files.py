"""Checkpoint files for tests: what the reference wrote, as a module's parameters, written again and loaded."""

import functools

import torch
from test_convert import GOLDEN, read

from fcdm_keras.network.reference import load_torch_checkpoint, save_torch_state_dict


@functools.cache
def reference_states():
    """State dicts by what they are: `model` and `ema` of the reference's file, which differ."""
    reference = read(GOLDEN)
    return {name: dict(reference[name]) for name in ("model", "ema")}


def assert_holds(backbone, state, tmp_path):
    """Holds `backbone` to have exactly the tensors of a state dict."""
    save_torch_state_dict(backbone, tmp_path / "back.pt")
    ours = torch.load(tmp_path / "back.pt")["model"]
    assert ours.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(ours[name], tensor.detach().float()), name


def loads(content, state, path, weights="ema", **options):
    """Saves `content` and holds the loaded backbone to have the tensors of `state`."""
    torch.save(content, path, **options)
    assert_holds(load_torch_checkpoint(path, weights=weights), state, path.parent)


class Part(torch.nn.Module):
    """A module with the parameters and submodules that the names of a state dict say."""

    def __init__(self, state):
        super().__init__()
        for name in {name.partition(".")[0] for name in state}:
            inside = {n.partition(".")[2]: w for n, w in state.items() if n.partition(".")[0] == name}
            if "" in inside:
                self.register_parameter(name, torch.nn.Parameter(inside[""]))
            else:
                self.add_module(name, Part(inside))
