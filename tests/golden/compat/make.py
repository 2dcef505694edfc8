"""Makes the archives in this folder anew, with the code of 10a78ea: see README.md, one folder up.

OMP_NUM_THREADS=1 python tests/golden/compat/make.py BUILD     # BUILD: an empty folder
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def work(kill, module, *flags):
    """A command with the tiny network, in this process, which dies after step `kill` of a run or batch of samples."""
    import runpy

    import small_run
    import test_compat

    small_run.presets.MODEL_SIZES["XS"] = test_compat.TINY
    if int(kill) and module.endswith(".py"):
        small_run.kill_at(0, int(kill))
    elif int(kill):
        from fcdm_keras.tasks import ClassToImage

        generate, calls = ClassToImage.generate, []

        def deadly(self, labels, **options):
            calls.append(len(labels))
            if len(calls) > int(kill) + 1:  # the first call checks the flags
                os.kill(os.getpid(), 9)
            return generate(self, labels, **options)

        ClassToImage.generate = deadly
    sys.argv = [module, *flags]
    if module.endswith(".py"):
        runpy.run_path(str(ROOT / module), run_name="__main__")
    else:
        runpy.run_module(module, run_name="__main__")


def command(kill, module, *flags, backend="jax"):
    environment = {**os.environ, "KERAS_BACKEND": backend}
    words = [sys.executable, __file__, "work", str(kill), module, *map(str, flags)]
    code = subprocess.run(words, env=environment, cwd=ROOT).returncode
    assert code == (-9 if kill else 0), code


def recorded_run(folder, script, flags, recipe, backend="jax"):
    """The run folder that a kill after step 4 leaves, and what the run that was not killed ends with."""
    import numpy as np
    import test_compat

    command(4, script, *flags, f"--results-dir={folder / 'half'}", backend=backend)
    shutil.rmtree(folder / "half" / recipe / "tensorboard")
    command(0, script, *flags, f"--results-dir={folder / 'whole'}", backend=backend)
    whole = folder.with_name(f"{folder.name}_whole")
    (folder / "whole").rename(whole)
    np.savez(folder / "expected.npz", **test_compat.results_of(whole / recipe))
    shutil.copy(whole / recipe / "scores.json", folder)
    (folder / "circumstances.json").write_text(json.dumps(test_compat.circumstances(), indent=1))
    test_compat.pack(folder.name, folder)
    return whole / recipe


def stirred(task):
    """A task in which no weight is zero, so that nothing is hidden."""
    import numpy as np

    generator = np.random.default_rng(0)
    for variable in task.backbone.trainable_variables:
        variable.assign(variable + 0.2 * generator.standard_normal(variable.shape, dtype="float32"))
    return task


def make_photos(build):
    import keras
    import numpy as np
    from PIL import Image

    from fcdm_keras import KLAutoencoder

    folder, generator = build / "photos_torch", np.random.default_rng(0)
    folder.mkdir()
    keras.utils.set_random_seed(0)
    autoencoder = KLAutoencoder((8, 16), 1, norm_num_groups=4)
    autoencoder.save_diffusers(folder / "vae")
    KLAutoencoder((4, 8), 1, norm_num_groups=4).save(Path(__file__).with_name("autoencoder.keras"))
    for i in range(24):
        path = build / "images" / "abc"[i % 3] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (5, 6, 3), "uint8").repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels).save(path)
    names = [f"--source={build / 'images'}", f"--vae={folder / 'vae'}", f"--output={folder / 'latents'}"]
    command(0, "fcdm_keras.encode", *names, "--image-size=16", "--shard-size=10", "--batch-size=8", backend="torch")
    import test_compat

    flags = [*test_compat.PHOTOS, f"--latents={folder / 'latents'}", f"--vae={folder / 'vae'}"]
    recorded_run(folder, "train_imagenet.py", flags, "photos", "torch")


def make_text(build):
    import numpy as np
    import test_compat

    from t2i import TextToImage

    folder = build / "text_torch"
    folder.mkdir()
    flags = test_compat.write_tower(build)
    whole = recorded_run(folder, "train_coco.py", [*test_compat.SHAPES, *flags], "shapes", "torch")
    task = stirred(TextToImage.from_preset(whole))
    task.save_to_preset(str(folder / "preset"))
    np.savez(folder / "images.npz", expected=task.generate(test_compat.PROMPTS, **test_compat.OPTIONS))
    test_compat.pack("text_torch", folder)


def make_samples(build, run):
    import numpy as np
    import test_compat

    from fcdm_keras import ClassToImage

    folder = build / "samples"
    folder.mkdir()
    task = stirred(ClassToImage.from_preset(str(run / "preset")))
    task.save_to_preset(str(folder / "preset"))
    flags = [folder / "preset", *test_compat.DRAWING]
    command(2, "fcdm_keras.sample", *flags, f"--output={folder / 'half'}")
    command(0, "fcdm_keras.sample", *flags, f"--output={build / 'samples_whole'}")
    with np.load(build / "samples_whole" / "samples.npz") as whole:
        drawn = {name: whole[name] for name in whole.files}
    generated = task.generate(test_compat.LABELS, **test_compat.OPTIONS)
    np.savez(folder / "expected.npz", generated=generated, **drawn)
    test_compat.pack("samples", folder)


def make_interface(build):
    import ast

    import pytest
    import test_compat

    target = Path(__file__).with_name("interface.json")
    target.write_text('{"help": {}}')  # which the test reads
    import test_interface

    import fcdm_keras
    import t2i

    commands = ["train_imagenet.py", "train_coco.py", "t2i.sample", "t2i.encode"]
    names = "sample encode evaluate train_vae convert report analyze model_table"
    commands += [f"fcdm_keras.{name}" for name in names.split()]
    with pytest.MonkeyPatch.context() as patch:
        helps = {command: test_interface.help_of(command, patch) for command in commands}
    modules = {}
    for file in sorted([*ROOT.glob("fcdm_keras/**/*.py"), *ROOT.glob("t2i/**/*.py")]):
        defined = [node.name for node in ast.parse(file.read_text()).body if hasattr(node, "decorator_list")]
        path = file.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__").replace("/", ".")
        modules[path] = sorted(name for name in defined if not name.startswith("_"))
    interface = {
        "help": helps,
        "files": {
            "run": test_compat.names_in(build / "digits_jax_whole" / "digits"),
            "samples": test_compat.names_in(build / "samples_whole"),
        },
        "exported": {package.__name__: sorted(package.__all__) for package in (fcdm_keras, t2i)},
        "modules": modules,
    }
    target.write_text(json.dumps(interface, indent=1) + "\n")


def main(build):
    build = Path(build)
    build.mkdir(exist_ok=True)
    import test_compat

    runs = {}
    for backend in ("jax", "torch", "tensorflow"):
        (build / f"digits_{backend}").mkdir()
        runs[backend] = recorded_run(
            build / f"digits_{backend}", "train_imagenet.py", test_compat.DIGITS, "digits", backend
        )
    make_samples(build, runs["jax"])
    make_photos(build)
    make_text(build)
    make_interface(build)


if __name__ == "__main__":
    work(*sys.argv[2:]) if sys.argv[1] == "work" else main(sys.argv[1])
