"""Scenes, their captions, drawing and reading. No Keras: the same on every backend."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from t2i.grid import captioned_grid
from t2i.shapes import (
    COLOURS,
    HELD_OUT,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    captions,
    draw,
    draw_all,
    random_scene,
    read,
    score,
)
from t2i.shapes.data import ShapesSource, probe
from t2i.shapes.report import compare_null, describe, probes, score_model
from t2i.shapes.scenes import Item, Scene
from t2i.shapes.scoring import SCORES, judge

pytestmark = pytest.mark.no_backend
COUNT = 300


@pytest.fixture(scope="module")
def scenes():
    """Of both splits, with one and two items."""
    kinds = itertools.cycle(itertools.product(("train", "held_out"), (1, 2)))
    return [random_scene(3, index, *kind) for index, kind in zip(range(COUNT), kinds)]


@pytest.fixture(scope="module")
def pictures(scenes):
    return draw_all(scenes)


def pil(*items, size=32, background="white"):
    """A picture drawn by Pillow at 8 times the size: `(shape, colour, left, top, right, bottom)` each."""
    canvas = Image.new("RGB", (8 * size, 8 * size), background)
    pen = ImageDraw.Draw(canvas)
    for shape, colour, *box in items:
        left, top, right, bottom = (8 * side for side in box)
        third = (right - left) / 3
        if shape == "circle":
            pen.ellipse((left, top, right - 1, bottom - 1), colour)
        elif shape == "triangle":
            pen.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], colour)
        elif shape == "square":
            pen.rectangle((left, top, right - 1, bottom - 1), colour)
        else:
            pen.rectangle((left + third, top, right - third - 1, bottom - 1), colour)
            pen.rectangle((left, top + third, right - 1, bottom - third - 1), colour)
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX))


def scene(*items, place):
    return Scene(tuple(Item(*item, 0.0, 0.0, 0.0) for item in items), place)


def test_scenes_are_functions_of_seed_and_index():
    assert random_scene(1, 5) == random_scene(1, 5)
    assert len({random_scene(1, index) for index in range(50)} | {random_scene(2, index) for index in range(50)}) == 100


def test_variants_differ_in_geometry_alone():
    plain, moved = random_scene(1, 5, num_items=2), random_scene(1, 5, num_items=2, variant=77)
    assert plain != moved and captions(plain) == captions(moved)


def test_splits_share_values_but_no_held_out_combination():
    train = [item for index in range(3000) for item in random_scene(0, index).items]
    assert not {(item.colour, item.shape) for item in train} & HELD_OUT
    looks = {(item.size, item.colour, item.shape) for item in train}
    assert len(looks) == len(SIZES) * (len(COLOURS) * len(SHAPES) - len(HELD_OUT))
    for values, name in ((SIZES, "size"), (COLOURS, "colour"), (SHAPES, "shape")):
        assert {getattr(item, name) for item in train} == set(values)
    for index in range(200):
        assert any((i.colour, i.shape) in HELD_OUT for i in random_scene(0, index, "held_out").items)


def test_places_and_relations_all_occur():
    assert {random_scene(0, i, num_items=1).place for i in range(100)} == set(PLACES)
    assert {random_scene(0, i, num_items=2).place for i in range(100)} == set(RELATIONS)


def test_captions_name_every_attribute(scenes):
    for one in scenes:
        phrasings = captions(one)
        assert len(set(phrasings)) == len(phrasings) >= 3
        for text, item in itertools.product(phrasings, one.items):
            assert f"a {item.size} {item.colour} {item.shape}" in text


def test_the_second_phrasing_turns_the_relation_round():
    both = scene(("small", "red", "circle"), ("large", "blue", "square"), place="left of")
    assert captions(both)[0] == "a small red circle left of a large blue square"
    assert captions(both)[1] == "a large blue square right of a small red circle"
    one = scene(("large", "green", "triangle"), place="top left")
    assert captions(one)[0] == "a large green triangle in the top left"


def test_pictures_are_whole(scenes, pictures):
    assert pictures.dtype == np.uint8 and pictures.shape == (COUNT, 32, 32, 3)
    np.testing.assert_array_equal(draw(scenes[7]), pictures[7])
    for item in (item for one in scenes for item in one.items):
        assert min(item.x, item.y) - item.radius > 0 and max(item.x, item.y) + item.radius < 32  # nothing is cut off


@pytest.mark.parametrize("shape", SHAPES)
def test_drawing_agrees_with_pillow(shape):
    ours = draw(Scene((Item("large", "blue", shape, 15.0, 17.0, 6.0),), "middle"))
    theirs = pil((shape, (0, 0, 255), 9, 11, 21, 23))
    assert np.abs(ours.astype(int) - theirs).mean() < 1.0


def test_real_scenes_are_read_right(scenes, pictures):
    assert score(pictures, scenes)["caption"] >= 0.99


def test_noise_and_blur_are_borne(scenes, pictures):
    noisy = pictures + np.random.default_rng(0).normal(0, 10, pictures.shape)
    blurred = ndimage.gaussian_filter(pictures.astype(float), (0, 0.4, 0.4, 0))
    for changed in (noisy, blurred):
        assert score(np.clip(changed, 0, 255).astype(np.uint8), scenes)["caption"] >= 0.99


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [8, 12])
@pytest.mark.parametrize("colour", [(220, 30, 30), (20, 160, 40), (40, 40, 230), (230, 30, 220)])
def test_other_pictures_of_the_shapes_are_read_too(shape, width, colour):
    """Pillow's shapes, in other tones and on other backgrounds."""
    for background in ("white", "black", (90, 90, 90)):
        (reading,) = read(pil((shape, colour, 10, 10, 10 + width, 10 + width), background=background))
        assert (reading.shape, reading.size) == (shape, "small" if width == 8 else "large")
        assert reading.colour == {220: "red", 20: "green", 40: "blue", 230: "magenta"}[colour[0]]
        assert abs(reading.x - (10 + width / 2)) < 0.3 and abs(reading.width - width) < 0.75


def test_every_attribute_counts():
    right = scene(("small", "red", "circle"), ("large", "blue", "square"), place="left of")
    picture = pil(("circle", "red", 4, 12, 12, 20), ("square", "blue", 17, 10, 29, 22))
    assert all(value == 1 for value in judge(picture, right).values())
    for part, other in (
        ("size", scene(("large", "red", "circle"), ("large", "blue", "square"), place="left of")),
        ("colour", scene(("small", "red", "circle"), ("large", "cyan", "square"), place="left of")),
        ("shape", scene(("small", "red", "cross"), ("large", "blue", "square"), place="left of")),
        ("position", dataclasses.replace(right, place="above")),
        ("position", dataclasses.replace(right, items=right.items[::-1])),  # the blue one left of the red one
    ):
        judged = judge(picture, other)
        assert judged["caption"] == 0 and judged[part] in (0, 0.5)
        assert all(value == 1 for name, value in judged.items() if name not in (part, "caption"))


def test_the_wrong_colours_on_the_right_shapes_are_no_match():
    """Attributes belong to items: a red square and a blue circle are not a red circle and a blue square."""
    picture = pil(("square", "red", 4, 12, 12, 20), ("circle", "blue", 17, 10, 29, 22))
    judged = judge(picture, scene(("small", "red", "circle"), ("large", "blue", "square"), place="left of"))
    assert judged["caption"] == 0 and judged["shape"] == 0


@pytest.mark.parametrize(
    "picture",
    [
        np.full((32, 32, 3), 255, np.uint8),
        np.zeros((32, 32, 3), np.uint8),
        np.tile(np.array([255, 0, 0], np.uint8), (32, 32, 1)),  # red all over
        np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8),
        pil(("circle", "red", 3, 4, 11, 12), ("circle", "red", 21, 4, 29, 12)),  # two of them
        pil(("circle", "red", 4, 4, 12, 12), ("square", "blue", 20, 4, 23, 7)),  # something else beside it
        pil(("circle", "gray", 4, 4, 12, 12)),
        pil(("circle", "red", 4, 4, 12, 8)),  # flat
        pil(("circle", "red", 4, 4, 12, 12), ("circle", "white", 6, 6, 10, 10)),  # a ring
        pil(("circle", "red", 4, 4, 12, 12), ("square", "blue", 4, 8, 12, 12)),  # half blue
        pil(("circle", "red", 0, 0, 8, 8), ("circle", "white", 3, 3, 8, 8)),  # a sickle
    ],
)
def test_nothing_else_passes_for_a_small_red_circle(picture):
    expected = scene(("small", "red", "circle"), place="top left")
    assert judge(picture, expected)["caption"] == 0
    assert judge(pil(("circle", "red", 4, 4, 12, 12)), expected)["caption"] == 1


def test_one_of_two_is_half():
    judged = judge(
        pil(("circle", "red", 4, 4, 12, 12)),
        scene(("small", "red", "circle"), ("large", "blue", "square"), place="above"),
    )
    assert judged == {"size": 0.5, "colour": 0.5, "shape": 0.5, "position": 0.0, "count": 0.0, "caption": 0.0}


def test_the_source_draws_each_caption_anew_and_encodes_it_once():
    calls = []

    def encode(texts):
        calls.append(texts)
        return np.array([[len(text), hash(text) % 1000] for text in texts], np.float64)

    source = ShapesSource(encode, num_captions=400, seed=5)
    (encoded,) = calls
    assert len(source) == 400 and len(set(encoded)) == len(encoded) < 400
    batch = source.take(np.array([3, 8, 3]), np.array([10, 11, 700]))
    assert batch["images"].shape == (3, 32, 32, 3) and batch["images"].dtype == np.uint8
    assert (batch["images"][0] != batch["images"][2]).any()
    np.testing.assert_array_equal(batch["images"][1], source.take(np.array([8]), np.array([11]))["images"][0])
    expected = encode([source.captions[index] for index in (3, 8, 3)])
    np.testing.assert_array_equal(batch["text_embeddings"], expected.astype(np.float32))
    for sample, picture in zip((3, 8, 3), batch["images"]):
        assert source.captions[sample] in captions(source.scene(sample))
        assert judge(picture, source.scene(sample))["caption"] == 1
    assert {len(source.scene(index).items) for index in range(4)} == {1, 2}


def test_a_probe_is_of_its_split():
    asked = probe(7, 20, "held_out", 2)
    assert len(asked.scenes) == len(asked.captions) == 20
    assert all(caption in captions(one) for one, caption in zip(asked.scenes, asked.captions))
    assert all(any((i.colour, i.shape) in HELD_OUT for i in one.items) for one in asked.scenes)


def letters(texts):
    """Embeddings that tell captions apart."""
    return np.array([[text.count(letter) for letter in "abcdefghij"] for text in texts], np.float32)


@pytest.fixture(scope="module")
def source():
    return ShapesSource(letters, num_captions=60)


@pytest.fixture(scope="module")
def perfect(source):
    """A model that knows all scenes, but draws another picture where guidance is 1, and captions it does not know."""
    asked = [scene for count in (6, 12) for part in probes(source, count).values() for scene in part.scenes]
    known = {text: scene for scene in asked for text in captions(scene)}

    def draw(texts, guidance_scale):
        others = [random_scene(9, index) for index in range(len(texts))]
        return draw_all([other if guidance_scale == 1 else known[text] for text, other in zip(texts, others)])

    return draw


def test_a_perfect_model_scores_perfectly(source, perfect):
    scores, picture = score_model(perfect, source, 2.0, count=12, scales=(1.0, 3.0), curve_count=6)
    kinds = ("seen", "heldout", "seen_two", "heldout_two")
    assert all(scores[f"{name}_accuracy_{kind}"] == 1 for name in SCORES for kind in kinds)
    assert scores["checker_accuracy_real"] == 1 and scores["null_scenes"] == 1
    weak, strong = scores["guidance"]
    assert (weak["scale"], strong["scale"]) == (1, 3)
    for kind in kinds:
        assert weak[f"caption_accuracy_{kind}"] < 0.5 and strong[f"caption_accuracy_{kind}"] == 1
    assert picture.width > 8 * 128 and picture.height > 5 * 128
    rows = {line.split()[0]: line.split()[1:] for line in describe(scores).splitlines()}
    assert rows["caption"] == rows["shape"] == ["100.0"] * 4
    json.dumps(scores, allow_nan=False)


def test_pictures_without_prompt_are_compared_with_the_whole_set(pictures):
    same = compare_null(pictures[:150], pictures[150:])
    assert same["null_scenes"] == 1 and same["null_distance"] < 0.2
    one = compare_null(np.repeat(pictures[:1], 50, axis=0), pictures)  # the same picture again and again
    assert one["null_distance"] > 0.6
    blank = compare_null(np.full((5, 32, 32, 3), 255, np.uint8), pictures)
    assert blank == {"null_scenes": 0.0, "null_distance": 1.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_scene(0, 0, "test"), "split must be one of train, held_out. Received: 'test'"),
        (lambda: random_scene(0, 0, num_items=3), "num_items must be 1, 2 or None. Received: 3"),
        (lambda: read(np.zeros((32, 32, 3))), "must be uint8"),
        (lambda: read(np.zeros((32, 32), np.uint8)), r"Received: uint8 \(32, 32\)"),
        (lambda: score(np.zeros((2, 32, 32, 3), np.uint8), []), "2 pictures, 0 scenes"),
        (lambda: ShapesSource(None, num_captions=0), "num_captions must be at least 1"),
        (lambda: ShapesSource(None, share_of_two=1.5), "share_of_two must lie in"),
        (lambda: captioned_grid(np.zeros((2, 8, 8, 3), np.uint8), ["one"]), "2 images, 1 captions"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_captioned_grid_has_the_pictures_and_ink_under_them(pictures):
    texts = ["a word " * 30, "Donaudampfschifffahrtsgesellschaft", "", "two\nlines", "x"]
    page = np.asarray(captioned_grid(pictures[:5], texts, columns=3, min_side=64))
    assert page.shape[1] == 3 * (64 + 6) + 6
    np.testing.assert_array_equal(page[6:70:2, 6:70:2], pictures[0])
    cell = (page.shape[0] - 6) // 2
    below = [page[6 + r * cell + 66 : 6 + (r + 1) * cell, 6 + c * 70 : 70 + c * 70] for r, c in np.ndindex(2, 3)]
    assert [bool((part < 128).any()) for part in below] == [True, True, False, True, True, False]
