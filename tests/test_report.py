"""The report of runs, and the analyses, on a run folder that training wrote."""

import base64
import csv
import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import keras
import numpy as np
import pytest
from helpers import store_metadata, tiny_backbone, to_numpy
from PIL import Image

from fcdm_keras import analyze, report
from fcdm_keras.evaluation.callback import Evaluate
from fcdm_keras.network.costs import count
from fcdm_keras.options import to_json
from fcdm_keras.recipes import MODEL_SIZES, RECIPES
from fcdm_keras.reporting import analysis
from fcdm_keras.reporting.paper import IMAGENET_256, IMAGENET_512
from fcdm_keras.reporting.tables import model_size, read_run
from fcdm_keras.sampling.tasks import ClassToImage
from fcdm_keras.training import callbacks
from fcdm_keras.training.trainer import DiffusionTrainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of recipe digits: 6 steps of a tiny network, scored while it trains."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    folder.mkdir()
    trainer = DiffusionTrainer(tiny_backbone((0, 0, 1, 0, 0), in_channels=1), ema_decay=0.5)
    trainer.compile(keras.optimizers.Adam(1e-3))
    task = ClassToImage(trainer.backbone, image_size=8)
    generator = np.random.default_rng(0)
    drawing = {"num_steps": 2, "guidance_scale": 1.0, "batch_size": 4, "seed": 3}
    judge = lambda drawn, labels: {"agreement": float(drawn.mean()), "frechet": float(labels.sum())}  # noqa: E731
    log = callbacks.CSVWriter(folder / "log.csv")
    scores = callbacks.CSVWriter(folder / "scores.csv", fields=("step", "agreement", "frechet"))
    trainer.fit(
        generator.uniform(-1, 1, (24, 8, 8, 1)).astype("float32"),
        generator.integers(0, 10, 24).astype("int32"),
        batch_size=4,
        shuffle=False,
        verbose=0,
        callbacks=[
            callbacks.StepLog(2, 4, [log]),
            callbacks.SampleGrid(task, [1, 2], folder, 3, **drawing),
            Evaluate(task, judge, np.array([5, 6]), 3, [scores], **drawing),
        ],
    )
    (folder / "config.json").write_text(to_json(RECIPES["digits"]))
    (folder / "scores.json").write_text(json.dumps({"agreement": 0.987, "frechet": 0.1234567}))
    drawn = task.generate([5, 6], weights=trainer.ema.values(), **drawing)
    task.save_to_preset(str(folder / "preset"))
    return folder, float(drawn.mean())


@pytest.mark.no_backend
def test_scores_while_training_are_of_the_ema_weights(run):
    folder, mean = run
    rows = callbacks.read_csv(folder / "scores.csv")
    assert [row["step"] for row in rows] == [3, 6] and rows[-1]["frechet"] == 11
    assert rows[-1]["agreement"] == pytest.approx(mean) and rows[0]["agreement"] != rows[-1]["agreement"]


class Page(HTMLParser):
    """What a page refers to and shows."""

    def __init__(self, text):
        super().__init__()
        self.pictures, self.links, self.open, self.cells = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "img":
            self.pictures.append((attributes["alt"], attributes["src"]))
        self.links += [attributes[name] for name in ("href",) if name in attributes]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


@pytest.mark.no_backend
def test_the_page_is_self_contained_and_shows_curves_grids_scores_and_settings(run, tmp_path, capsys):
    folder, _ = run
    (folder / "evaluation.json").write_text(json.dumps({"fid": 12.3456, "precision": 0.6789, "num_samples": 500}))
    change = {"step": 1234, "date": "2026-11-25", "setting": "clip_norm", "before": 0.0, "after": 0.75}
    (folder / "history.json").write_text(json.dumps([change]))
    report.main([str(folder), "--output", str(tmp_path / "report.html")])
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert not page.open and not page.links and "://" not in text
    titles = [title for title, _ in page.pictures]
    assert titles == ["Loss", "Scores while training", "Samples at step 3", "Samples at step 6"]
    for _, source in page.pictures:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64" and Image.open(io.BytesIO(base64.b64decode(data))).size[0] > 30
    assert {"FCDM-XS", "12.35", "0.6789", "0.987", "learning_rate", "0.001", "285.7", "DiT-XL/2"} <= set(page.cells)
    assert " ".join(page.cells).count("1,234 clip_norm 0.0 0.75 2026-11-25") == 1
    markdown = (tmp_path / "report.md").read_text()
    assert "| 1,234 | clip_norm | 0.0 | 0.75 | 2026-11-25 |" in markdown
    assert "| FCDM-XL | 698.8 | 1M | 64.6 | 272.7 | 7.91 | – | 135.55 | 0.71 | 0.64 | paper, table 3 |" in markdown
    parameters, macs = count(MODEL_SIZES["XS"], 8, 8, num_classes=10, in_channels=1)
    ours = next(line for line in markdown.splitlines() if "| FCDM-XS |" in line)
    assert f"| {parameters / 1e6:.1f} | 6 | {macs / 1e9:.2g} |" in ours and "evaluation.json, 500 samples" in ours
    assert "1 run beside the paper's results" in capsys.readouterr().out


@pytest.mark.no_backend
def test_several_runs_are_compared(run, tmp_path):
    folder, _ = run
    other = tmp_path / "<b>&other"
    other.mkdir()
    for name in ("config.json", "log.csv"):
        (other / name).write_bytes((folder / name).read_bytes())
    report.main([str(folder), str(other), "--output", str(tmp_path / "report.html")])
    page = Page((tmp_path / "report.html").read_text())
    assert page.pictures[0][0] == "Losses of all runs" and "<b>&other" in "".join(page.cells)


@pytest.mark.no_backend
def test_a_run_that_has_logged_nothing_is_reported(tmp_path):
    (tmp_path / "config.json").write_text(to_json(dataclasses.replace(RECIPES["imagenet256-s"], seed=4)))
    report.main([str(tmp_path), "--output", str(tmp_path / "report.html")])
    assert "Nothing is logged yet" in (tmp_path / "report.html").read_text()
    assert re.search(r"\| FCDM-S \| 32.7 \| 0 \| 3\.1 \| – \| – \|", (tmp_path / "report.md").read_text())


@pytest.mark.no_backend
def test_a_run_folder_tells_the_size_of_its_latents_and_conditions(tmp_path):
    """From what runs of all kinds leave behind, finished or not."""

    def size(config, **files):
        for name, content in files.items():
            (tmp_path / f"{name}.json").parent.mkdir(exist_ok=True)
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        (tmp_path / "config.json").write_text(to_json(config))
        return model_size(read_run(tmp_path))

    def counted(side, config, **options):
        parameters, macs = count(MODEL_SIZES[config.model], side, side, in_channels=config.latent_channels, **options)
        return parameters / 1e6, macs / 1e9

    other = dataclasses.replace(RECIPES["imagenet256-s"], latent_scale=1.0, num_classes=1)
    for config, side in ((RECIPES["digits"], 8), (RECIPES["imagenet256-s"], 32), (RECIPES["imagenet512-xl"], 64)):
        assert size(config) == counted(side, config, num_classes=config.num_classes)
    assert size(other) == (counted(32, other, num_classes=1)[0], None)
    embeddings = {"num_classes": 1, "embedding_dim": 48}
    identity = {"identity": {"embedding_dim": 48}}
    assert size(other, conditions=identity) == (counted(32, other, **embeddings)[0], None)
    for kind, factor in (({"downsampling_factor": 4}, 4), ({"block_out_channels": [8, 16, 16]}, 4), ({}, 1)):
        task = {"config": {"autoencoder": {"config": {**kind, "latent_channels": 4}}}}
        assert size(other, **{"preset/task": task}) == counted(256 // factor, other, **embeddings)
    (tmp_path / "latents.json").write_text(store_metadata((16, 16, 4)).to_json())
    assert size(other) == counted(16, other, **embeddings)


@pytest.mark.no_backend
def test_what_is_no_run_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit, match="^error: .* is no run folder: it holds no config.json"):
        report.main([str(tmp_path), "--output", str(tmp_path / "report.html")])
    (tmp_path / "config.json").write_text(to_json(RECIPES["digits"]))
    (tmp_path / "scores.json").write_text('{"fid": ')
    with pytest.raises(SystemExit, match="^error: .*scores.json is damaged .* it is no JSON"):
        report.main([str(tmp_path), "--output", str(tmp_path / "report.html")])
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(SystemExit):
        report.main([str(tmp_path), "--output", "report.pdf"])
    assert "--output must end in .html. Received: 'report.pdf'" in capsys.readouterr().err


@pytest.mark.no_backend
def test_the_papers_flops_are_those_of_the_model_table():
    for rows, attribute in ((IMAGENET_256, "gmacs_256"), (IMAGENET_512, "gmacs_512")):
        for row in rows:
            if row.model.startswith("FCDM-"):
                assert row.gflops == getattr(MODEL_SIZES[row.model.removeprefix("FCDM-")], attribute)
    assert len(IMAGENET_256) == 24 and len(IMAGENET_512) == 9


class Fixed:
    """A network whose predicted noise is known."""

    def __init__(self, noise):
        self.noise = noise

    def __call__(self, inputs, training):
        return keras.ops.concatenate([self.noise(inputs["x_t"]), inputs["x_t"]], axis=-1)

    trainable_variables = ()
    conditioning = type("Conditioning", (), {"input_name": "labels"})


def test_spectral_energy_of_known_noise():
    """A constant c has one frequency, of magnitude H·W·c; a unit impulse has |F| = 1 everywhere."""
    latents, labels = np.zeros((3, 8, 4, 2), "float32"), np.zeros(3, "int32")
    constant = Fixed(lambda x: keras.ops.full_like(x, 0.5))
    energy = analysis.spectral_energy(constant, latents, labels, [0, 999], batch_size=2)
    np.testing.assert_allclose(energy, 2 * np.log1p(8 * 4 * 0.5), rtol=1e-6)
    impulse = np.zeros((1, 8, 4, 2), "float32")
    impulse[0, 3, 2] = 1
    energy = analysis.spectral_energy(Fixed(lambda x: 0 * x + impulse), latents, labels, [5])
    np.testing.assert_allclose(energy, 2 * 8 * 4 * np.log(2), rtol=1e-6)


def test_spectral_energy_is_of_noised_latents():
    """At t = 0 x_t is almost x_0, at t = 999 almost white noise, whose |F| are Rayleigh-distributed."""
    latents = np.full((64, 8, 8, 1), 0.5, "float32")
    energy = analysis.spectral_energy(Fixed(lambda x: x), latents, np.zeros(64, "int32"), [0, 999], batch_size=50)
    magnitudes = np.abs(np.random.default_rng(0).standard_normal((20_000, 2)) @ [1, 1j]) * np.sqrt(64 / 2)
    assert energy[1] == pytest.approx(64 * np.log1p(magnitudes).mean(), rel=0.03)
    assert energy[0] < 0.2 * energy[1]


def test_cosine_distance_against_all_pairs():
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 7)).astype("float32")
    vectors = x.reshape(2, 15, 7) / np.linalg.norm(x.reshape(2, 15, 7), axis=1, keepdims=True)
    expected = [np.mean([(1 - a @ b) / 2 for a in sample.T for b in sample.T]) for sample in vectors]
    np.testing.assert_allclose(to_numpy(analysis.cosine_distance(x)), expected, rtol=1e-5)
    alike = np.repeat(x[..., :1], 4, axis=-1) * np.arange(1, 5, dtype="float32")
    np.testing.assert_allclose(to_numpy(analysis.cosine_distance(alike)), 0, atol=1e-6)


def test_channel_diversity_is_that_of_the_activations_behind_grn():
    backbone = tiny_backbone((1, 0, 1, 0, 0))
    latents = np.random.default_rng(0).standard_normal((3, 8, 8, 2)).astype("float32")
    labels = np.arange(3, dtype="int32")
    with_grn = analysis.channel_diversity(backbone, latents, labels, [100, 900], batch_size=2)
    without = analysis.channel_diversity(backbone, latents, labels, [100, 900], with_grn=False, batch_size=3)
    assert with_grn.shape == (2,) and ((with_grn > 0) & (with_grn < 1)).all() and (with_grn != without).all()
    for block in backbone.blocks:
        assert "call" not in vars(block.grn)
        block.grn.gamma.assign(0 * block.grn.gamma)
        block.grn.beta.assign(0 * block.grn.beta)
    np.testing.assert_allclose(
        analysis.channel_diversity(backbone, latents, labels, [100, 900], batch_size=2), without, rtol=1e-4
    )


@pytest.mark.no_backend
@pytest.mark.parametrize("kind", ["spectrum", "activations"])
def test_analyses_write_a_plot_and_numbers(run, tmp_path, kind, capsys):
    folder, _ = run
    flags = ("--num-samples", "5", "--num-timesteps", "3", "--output", str(tmp_path))
    analyze.main([kind, str(folder), *flags])
    with open(tmp_path / f"{kind}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    if kind == "spectrum":
        assert [row["timestep"] for row in rows] == ["0", "500", "999"]
    else:
        assert [row["model"].rpartition(", ")[2] for row in rows] == ["with GRN", "without GRN"]
    assert Image.open(tmp_path / f"{kind}.png").size == (960, 480)
    assert {path.name for path in tmp_path.iterdir()} == {f"{kind}.csv", f"{kind}.png"}
    assert "on average" in capsys.readouterr().out


@pytest.mark.no_backend
def test_analyses_of_files_of_images_and_latents(run, tmp_path):
    folder, _ = run
    pictures = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1)).astype("uint8")
    np.savez(tmp_path / "images.npz", arr_0=pictures, arr_1=np.arange(6))
    np.savez(tmp_path / "latents.npz", arr_0=(pictures / 127.5 - 1).astype("float32"), arr_1=np.arange(6))
    values = []
    for name in ("images", "latents"):
        flags = ("--data", str(tmp_path / f"{name}.npz"), "--num-samples", "6", "--num-timesteps", "2")
        analyze.main(["spectrum", str(folder / "preset"), *flags, "--output", str(tmp_path)])
        with open(tmp_path / "spectrum.csv", newline="") as file:
            values.append([float(list(row.values())[-1]) for row in csv.DictReader(file)])
    assert len(values[0]) == 2 and values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("arrays", "flags", "message"),
    [
        (None, (), "is not known to be trained on the digits: give samples with --data"),
        ({"arr_0": np.zeros((4, 8, 8, 1), "int64")}, (), "must be images .* Received: int64"),
        ({"arr_0": np.zeros((4, 8, 8, 2), "float32")}, (), r"must have 1 channels.*Received: shape \(4, 8, 8, 2\)"),
        ({"arr_0": np.zeros((4, 8, 8, 1), "float32")}, ("--num-samples", "9"), "4 samples. Received: --num-samples 9"),
        ({"arr_0": np.zeros((4, 8, 8, 1), "float32"), "arr_1": np.full(4, 11)}, (), "Labels must lie in"),
    ],
)  # fmt: skip
def test_samples_that_do_not_fit_are_named(run, tmp_path, arrays, flags, message):
    folder, _ = run
    if arrays:
        np.savez(tmp_path / "data.npz", **arrays)
        flags = ("--data", str(tmp_path / "data.npz"), *flags)
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        analyze.main(["spectrum", str(folder / "preset"), "--num-samples", "4", "--output", str(tmp_path), *flags])
