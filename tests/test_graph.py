"""The interpreter of frozen graphs: TensorFlow's own execution, and recorded layers of ADM's evaluator."""

import keras  # noqa: F401  (before TensorFlow: PyTorch crashes where it comes second)
import numpy as np
import pytest
from helpers import to_numpy
from tensorboardX.proto import graph_pb2

from fcdm_keras.evaluation.inception.graph import FrozenGraph
from fcdm_keras.evaluation.inception.graph_ops import OPERATIONS

FLOAT, INT, UINT8 = 1, 3, 4


class Builder:
    """Writes a random graph of all operations that the Inception file uses, node by node, as TensorFlow 1 stored it."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.graph = graph_pb2.GraphDef()
        self.graph.versions.producer = 8  # of before BatchNormWithGlobalNormalization was retired
        self.count = 0

    def node(self, op, *inputs, name=None, **attributes):
        node = self.graph.node.add(op=op, name=name or f"{op}_{self.count}", input=inputs)
        self.count += 1
        for key, value in attributes.items():
            attribute = node.attr[key]
            if isinstance(value, bool):
                attribute.b = value
            elif isinstance(value, float):
                attribute.f = value
            elif isinstance(value, bytes):
                attribute.s = value
            elif isinstance(value, list):
                attribute.list.i.extend(value)
            elif key == "N":
                attribute.i = value
            else:
                attribute.type = value
        return node.name

    def constant(self, value):
        value = np.asarray(value)
        value = value.astype("float32" if value.dtype.kind == "f" else "int32")
        name = self.node("Const", dtype=FLOAT if value.dtype.kind == "f" else INT)
        tensor = self.graph.node[-1].attr["value"].tensor
        tensor.dtype = self.graph.node[-1].attr["dtype"].type
        for size in value.shape:
            tensor.tensor_shape.dim.add(size=size)
        values = tensor.float_val if value.dtype.kind == "f" else tensor.int_val
        if value.size and (value == value.flat[0]).all():
            values.append(value.flat[0])  # the last value stands for all
        elif self.random.random() < 0.5:
            values.extend(value.ravel().tolist())
        else:
            tensor.tensor_content = value.tobytes()
        return name

    def normal(self, *shape):
        return self.constant(self.random.standard_normal(shape) * 0.5)

    def window(self, limit):
        sides = [int(side) for side in self.random.integers(1, min(limit, 4) + 1, 2)]
        strides = [int(side) for side in self.random.integers(1, 3, 2)]
        padding = [b"SAME", b"VALID"][self.random.integers(2)]
        return sides, {"strides": [1, *strides, 1], "padding": padding, "T": FLOAT}

    def convolution(self, x, channels, limit):
        sides, options = self.window(limit)
        out = int(self.random.integers(1, 7))
        x = self.node("Conv2D", x, self.normal(*sides, channels, out), **options)
        statistics = [self.normal(out), self.constant(self.random.uniform(0.5, 2.0, out)), self.normal(out)]
        x = self.node(
            "BatchNormWithGlobalNormalization", x, *statistics, self.normal(out), T=FLOAT, variance_epsilon=0.001,
            scale_after_normalization=bool(self.random.integers(2)),
        )  # fmt: skip
        check = self.node("CheckNumerics", x, T=FLOAT, message=b"not finite")
        x = self.node("Identity", x, f"^{check}", T=FLOAT)
        return self.node("Relu", self.node("CheckNumerics", x, T=FLOAT, message=b"not finite"), T=FLOAT), out

    def pool(self, x, limit):
        sides, options = self.window(limit)
        return self.node(["MaxPool", "AvgPool"][self.random.integers(2)], x, ksize=[1, *sides, 1], **options)

    def build(self, height, width):
        image = self.node("Placeholder", name="image", dtype=UINT8)
        x = self.node("Cast", image, SrcT=UINT8, DstT=FLOAT)
        x = self.node("ExpandDims", x, self.constant(0), T=FLOAT, Tdim=INT)
        align, half = [(False, False), (False, False), (True, False), (False, True)][self.random.integers(4)]
        x = self.node(
            "ResizeBilinear", x, self.constant(self.random.integers(20, 30, 2)), T=FLOAT, align_corners=align,
            half_pixel_centers=half,
        )  # fmt: skip
        x = self.node("Mul", self.node("Sub", x, self.constant(128.0), T=FLOAT), self.constant(0.0078125), T=FLOAT)
        channels = 3
        x, channels = self.convolution(x, channels, 5)
        x = self.pool(x, 4)
        left, a = self.convolution(x, channels, 1)
        right, b = self.convolution(x, channels, 1)
        pooled = self.node("AvgPool", x, ksize=[1, 3, 3, 1], strides=[1, 1, 1, 1], padding=b"SAME", T=FLOAT)
        x = self.node("Add", x, self.node("MaxPool", x, ksize=[1, 3, 3, 1], strides=[1] * 4, padding=b"SAME", T=FLOAT),
                      T=FLOAT)  # fmt: skip
        x = self.node("Concat", self.constant(3), x, pooled, N=2, T=FLOAT)
        x, channels = self.convolution(x, 2 * channels, 2)
        flat = self.node("Reshape", x, self.constant([1, -1]), T=FLOAT, name="flat")
        outputs = [left, right, x, flat]
        features = self.node("Reshape", x, self.constant([-1, channels]), T=FLOAT)
        transpose = bool(self.random.integers(2))
        weights = self.normal(10, channels) if transpose else self.normal(channels, 10)
        x = self.node("MatMul", features, weights, transpose_a=False, transpose_b=transpose, T=FLOAT)
        x = self.node("BiasAdd", x, self.normal(10), T=FLOAT)
        return [*outputs, self.node("Softmax", x, T=FLOAT)]


def run_in_tensorflow(graph, image, outputs):
    import tensorflow as tf

    definition = tf.compat.v1.GraphDef.FromString(graph.SerializeToString())
    with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
        tf.import_graph_def(definition, name="")
        tensors = [graph.get_tensor_by_name(f"{name}:0") for name in outputs]
        return session.run(tensors, {"image:0": image})


@pytest.mark.parametrize("seed", range(8))
def test_random_graphs_against_tensorflow(seed, tmp_path):
    builder = Builder(seed)
    height, width = builder.random.integers(8, 40, 2)
    outputs = builder.build(height, width)
    image = builder.random.integers(0, 256, (height, width, 3)).astype("uint8")
    path = tmp_path / "graph.pb"
    path.write_bytes(builder.graph.SerializeToString())
    ours = FrozenGraph.load(path).function("image:0", [f"{name}:0" for name in outputs])(image)
    for name, value, expected in zip(outputs, ours, run_in_tensorflow(builder.graph, image, outputs), strict=True):
        np.testing.assert_allclose(to_numpy(value), expected, rtol=2e-4, atol=2e-5, err_msg=name)


def test_the_random_graphs_use_every_operation():
    used = set()
    for seed in range(8):
        builder = Builder(seed)
        builder.build(20, 20)
        used |= {node.op for node in builder.graph.node}
    assert used == set(OPERATIONS) | {"Const", "Placeholder"}


@pytest.fixture(scope="module")
def graph(inception_graph):
    return FrozenGraph.load(inception_graph)


def test_layers_are_those_of_adms_evaluator(graph, golden):
    layers, images = golden("adm/graph/layers"), golden("adm/graph/sample_batch")["arr_0"][:2]
    names = [name for name in layers if not name.endswith(("__channel_mean", "__shape", "__stride"))]
    ours = graph.function("ExpandDims:0", [f"{name.replace('__', '/')}:0" for name in names])(images.astype("float32"))
    for name, value in zip(names, map(to_numpy, ours), strict=True):
        assert value.shape == tuple(layers[f"{name}__shape"])
        step = int(layers[f"{name}__stride"])
        np.testing.assert_allclose(value[:, ::step, ::step], layers[name], atol=5e-3, err_msg=name)
        np.testing.assert_allclose(value.mean((1, 2)), layers[f"{name}__channel_mean"], atol=5e-4, err_msg=name)
    assert len(names) == 19


def test_resizing_is_tensorflow_ones(graph, golden):
    probe = golden("adm/graph/resize_probe")
    resize = graph.function("ExpandDims:0", ["ResizeBilinear:0"])
    sizes = [name.removeprefix("in_") for name in probe if name.startswith("in_")]
    for size in sizes:
        resized = to_numpy(resize(probe[f"in_{size}"].astype("float32"))[0])
        expected = probe[f"out_{size}"]
        np.testing.assert_allclose(resized[:, probe["index"]][:, :, probe["index"]], expected, atol=0.01)
    assert len(sizes) == 6


def test_constants_are_found_behind_identities(graph):
    assert graph.constant("softmax/weights").shape == (2048, 1008)
    assert graph.constant("ResizeBilinear/size").tolist() == [299, 299]
    with pytest.raises(ValueError, match="'pool_3' must be a constant. Received: the result of AvgPool"):
        graph.constant("pool_3")


@pytest.mark.parametrize("length", [0, 10, 5_000, 4_000_000])
def test_a_truncated_file_is_named(inception_graph, tmp_path, length):
    path = tmp_path / "cut.pb"
    path.write_bytes(inception_graph.read_bytes()[:length])
    with pytest.raises(ValueError, match="cut.pb is no frozen TensorFlow graph, or is cut short. Received: "):
        FrozenGraph.load(path)


def test_a_graph_without_its_end_says_which_node_is_missing(graph):
    nodes = [node for node in graph.nodes.values() if node.name != "mixed_9/conv/Conv2D"]
    with pytest.raises(ValueError, match="has no node 'mixed_9/conv/Conv2D'"):
        FrozenGraph(nodes).function("ExpandDims:0", ["pool_3:0"])


def test_an_unknown_operation_is_named_before_anything_runs(graph):
    with pytest.raises(ValueError, match=r"needs the operation 'DecodeJpeg' \(node 'DecodeJpeg'\)"):
        graph.function("DecodeJpeg/contents:0", ["pool_3:0"])
    with pytest.raises(ValueError, match="only first outputs"):
        graph.function("ExpandDims:0", ["pool_3:1"])


def test_an_input_that_does_not_fit_names_the_node(graph):
    run = graph.function("Mul:0", ["conv:0"])
    with pytest.raises(ValueError, match=r"Node 'conv/Conv2D' \(Conv2D\) fails on shapes \[\(1, 9, 9, 5\)"):
        run(np.zeros((1, 9, 9, 5), "float32"))
