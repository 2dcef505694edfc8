"""A run folder that is opened once: by a process alone before anything heavy is imported, else by a job's first.

    with if_alone(opened):                                     # refused here, in no time
        import keras, …
        with distribution.setup(), if_one_of_several(opened):  # or here, all processes with the same sentence
            …

Nothing heavy is imported, until a job's processes are connected.
"""

import contextlib
import os

# Whoever starts several processes sets one of these (`fcdm_keras.distribution.launch`); some are there without.
VARIABLES = (
    "TORCHELASTIC_RUN_ID", "RANK", "TF_CONFIG", "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "SLURM_PROCID",
    "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_INDEX",
)  # fmt: skip


def alone(environ=os.environ):
    """Whether this process is surely none of several."""
    return not any(name in environ for name in VARIABLES)


def if_alone(opened):
    """The context `opened` where this process is surely alone; else one that does nothing."""
    return opened if alone() else contextlib.nullcontext()


@contextlib.contextmanager
def if_one_of_several(opened):
    """A context in which the first process has entered `opened`, where none did before; inside `distribution.setup`.

    Raises:
        ValueError: in every process, what it raised in the first.
    """
    if alone():
        yield
        return
    from fcdm_keras import distribution

    with contextlib.ExitStack() as stack:
        refusal = ""
        if distribution.is_main():
            try:
                stack.enter_context(opened)
            except (ValueError, OSError) as error:
                refusal = str(error)
        refusal = distribution.gather_texts(refusal)[0]
        if refusal:
            raise ValueError(refusal)
        yield
