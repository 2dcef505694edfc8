"""How a process of a job finds out that it is one."""

import argparse
import json
import re

import pytest

from fcdm_keras.distribution import launch
from fcdm_keras.options import add_device_flags, device_options

pytestmark = pytest.mark.no_backend

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
JAX = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
CLUSTER = {"cluster": {"chief": ["a:1"], "worker": ["b:1", "c:1"]}, "task": {"type": "worker", "index": 1}}
TF_CONFIG = {"TF_CONFIG": json.dumps(CLUSTER)}
SRUN = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


@pytest.mark.parametrize("backend", ["jax", "torch", "tensorflow"])
def test_a_process_alone_has_no_launcher(backend):
    for environment in ({}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}):
        assert launch.launcher(backend, environment) == ""


@pytest.mark.parametrize(
    ("backend", "environment", "name"),
    [
        ("torch", TORCHRUN, launch.TORCHRUN),
        ("torch", {**TORCHRUN, "TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1"}, launch.TORCHRUN),
        ("torch", {"TORCHELASTIC_RUN_ID": "x"}, ""),
        ("torch", {**TORCHRUN, **SRUN}, launch.TORCHRUN),
        ("jax", JAX, launch.JAX_VARIABLES),
        ("jax", SRUN, launch.SLURM),
        ("jax", {"OMPI_COMM_WORLD_SIZE": "2"}, launch.OPEN_MPI),
        ("jax", POD, launch.KUBERNETES),
        ("tensorflow", TF_CONFIG, launch.TF_CONFIG),
        ("tensorflow", {**TF_CONFIG, **SRUN}, launch.TF_CONFIG),
        ("tensorflow", {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, launch.SLURM),
    ],
)
def test_every_engine_knows_its_launchers(backend, environment, name):
    assert launch.launcher(backend, environment) == name


@pytest.mark.parametrize(
    ("backend", "environment", "message"),
    [
        ("jax", TORCHRUN, "started by torchrun, which starts no processes of KERAS_BACKEND=jax: set JAX_COORD.*=torch"),
        ("tensorflow", TORCHRUN, "started by torchrun.*set TF_CONFIG"),
        ("torch", JAX, "started by JAX_COORDINATOR_ADDRESS.*start it with `torchrun.*set KERAS_BACKEND=jax"),
        ("torch", SRUN, "started by SLURM.*`srun torchrun …`"),
        ("torch", TF_CONFIG, "KERAS_BACKEND=tensorflow"),
        ("jax", {**JAX, "JAX_PROCESS_ID": "2"}, r"JAX_PROCESS_ID in \[0, N − 1\]. Received: .*JAX_PROCESS_ID='2'"),
        ("torch", {**TORCHRUN, "RANK": "2"}, r"RANK in \[0, N − 1\].*Received: RANK='2', WORLD_SIZE='2'"),
        ("torch", {**TORCHRUN, "MASTER_PORT": "x"}, "MASTER_PORT='x'"),
        ("torch", {"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR=''"),
        ("jax", {"SLURM_PROCID": "0", "SLURM_NTASKS": "two"}, "SLURM_NTASKS must be the number of .*Received: 'two'"),
        ("jax", {"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS=''"),
        ("jax", {**JAX, "JAX_COORDINATOR_ADDRESS": "host"}, "must be the host:port"),
        ("tensorflow", {"TF_CONFIG": "{"}, "TF_CONFIG must look like .*Received: '{'"),
        ("tensorflow", {"TF_CONFIG": '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}'}, "look"),
    ],
)
def test_other_launchers_and_broken_variables_are_refused(backend, environment, message):
    with pytest.raises(ValueError, match=message):
        launch.launcher(backend, environment)


def test_places_of_processes():
    assert launch.place(launch.TF_CONFIG, TF_CONFIG) == launch.Place(index=2, count=3)
    assert launch.place(launch.JAX_VARIABLES, JAX) == launch.Place(index=1, count=2, address="10.0.0.1:1234")
    assert launch.place(launch.SLURM, SRUN) is None  # the engine asks it itself


def test_the_first_process_has_an_address():
    assert launch.head(launch.TORCHRUN, TORCHRUN) == "localhost"
    assert launch.head(launch.TF_CONFIG, TF_CONFIG) == "a"
    assert launch.head(launch.JAX_VARIABLES, {**JAX, "JAX_COORDINATOR_ADDRESS": "[fd00::1]:1234"}) == "fd00::1"
    assert launch.head(launch.SLURM, SRUN) == ""


def test_flags_of_devices(capsys):
    parser = argparse.ArgumentParser()
    add_device_flags(parser, model_parallel=True)
    options = parser.parse_args(["--devices", "2"])
    assert device_options(options) == {"devices": 2, "model_parallel": 1, "connect_timeout": 50}
    for flag in ("--devices=0", "--model-parallel=-1", "--connect-timeout=soon"):
        with pytest.raises(SystemExit):
            parser.parse_args([flag])
        assert re.search(r"must be (at least 1|an integer)\. Received: ", capsys.readouterr().err)
