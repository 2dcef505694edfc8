"""Folders that are replaced as a whole, by a command that may be stopped and goes on."""

import argparse
import shutil
from pathlib import Path

from fcdm_keras import distribution, files
from fcdm_keras.runs.outputs import kind_of


def in_its_place(work, makes):
    """`work` as a function of parsed flags that replaces the folder `--output` where `--overwrite` asks for that.

    Until it is finished, the new one lies beside the old one as `.overwriting-NAME`, where the same command goes on.

    Args:
        work: `work(flags)` writes to `flags.output`, or raises `files.DifferentContentsError` before it does, in all
            processes; it returns `None` as long as others have work to do there.
        makes: what it makes, see `fcdm_keras.runs.outputs`.
    """

    def run(flags):
        if not flags.overwrite:
            return work(flags)
        output = Path(flags.output).resolve()
        beside = output.with_name(f".overwriting-{output.name}")
        kind = kind_of(output)
        if kind in (None, makes):
            try:
                done = work(_at(flags, output))
                _clear(beside)
                return done
            except files.DifferentContentsError:
                if kind is None:  # other programs' files
                    raise
        if kind_of(beside) not in (None, makes):
            _clear(beside)
        try:
            done = work(_at(flags, beside))
        except files.DifferentContentsError:  # of a command that nobody goes on with
            _clear(beside)
            done = work(_at(flags, beside))
        if done is not None and distribution.is_main():
            files.replace_folder(beside, output)
            print(f"It took the place of what was in {output}.")
        return done

    return run


def _at(flags, output):
    return argparse.Namespace(**{**vars(flags), "output": str(output)})


def _clear(folder):
    distribution.barrier()
    if distribution.is_main():
        shutil.rmtree(folder, ignore_errors=True)
    distribution.barrier()
