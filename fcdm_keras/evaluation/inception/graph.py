"""Frozen TensorFlow graphs run on the active Keras backend, without TensorFlow.

The file is a serialised `GraphDef`, read with the protobufs that TensorBoardX brings. The operations are in
`fcdm_keras.evaluation.inception.graph_ops`.

Example:

```python
graph = FrozenGraph.load("classify_image_graph_def.pb")
run = graph.function("ExpandDims:0", ["pool_3:0", "mixed_6/conv:0"])
pool, spatial = run(images)  # float32 (B, H, W, 3), 0 … 255
```
"""

import graphlib
from pathlib import Path

from google.protobuf.message import DecodeError
from keras import ops
from tensorboardX.proto import graph_pb2

from fcdm_keras import backend
from fcdm_keras.evaluation.inception.graph_ops import OPERATIONS
from fcdm_keras.evaluation.inception.graph_values import constant
from fcdm_keras.formats import regular

LARGEST = 2**30  # bytes of a file
_PASSES_ON = ("Identity", "CheckNumerics")


class FrozenGraph:
    """The nodes of a `GraphDef`, by name.

    Args:
        nodes: iterable of `NodeDef`.
        name: what to call the graph in errors, such as its path.
    """

    def __init__(self, nodes, name="The graph"):
        self.name = name
        self.nodes = {node.name: node for node in nodes}

    @classmethod
    def load(cls, path):
        """Reads a `.pb` file. Raises ValueError if it is none or is cut short, and OSError if it cannot be read."""
        regular.size(path, LARGEST)
        content = Path(path).read_bytes()
        definition = graph_pb2.GraphDef()
        try:
            definition.ParseFromString(content)
        except DecodeError:
            definition = None
        if definition is None or not definition.node:
            raise ValueError(
                f"{path} is no frozen TensorFlow graph, or is cut short. Received: {len(content):,} bytes; get it "
                "again."
            )
        return cls(definition.node, str(path))

    def node(self, name):
        """The node of a tensor such as `"pool_3:0"`. Raises ValueError if there is none, or for another output."""
        base, _, output = name.partition(":")
        if output not in ("", "0"):
            raise ValueError(f"{self.name}: only first outputs can be read. Received: {name!r}")
        if base not in self.nodes:
            raise ValueError(
                f"{self.name} has no node {base!r} ({len(self.nodes)} nodes); it is another graph or is cut short."
            )
        return self.nodes[base]

    def inputs(self, name):
        """Names of a node's data inputs."""
        return [source for source in self.node(name).input if not source.startswith("^")]

    def input(self, name, place):
        """Name of one of a node's data inputs. Raises ValueError if it has fewer."""
        names = self.inputs(name)
        if place >= len(names):
            raise ValueError(f"{self.name}: node {name!r} must have {place + 1} inputs. Received: {len(names)}")
        return names[place]

    def constant(self, name):
        """A constant as a NumPy array, also behind identities. Raises ValueError if the tensor is computed."""
        node = self.node(name)
        for _ in self.nodes:  # no longer way than there are nodes, unless one leads to itself
            if node.op in _PASSES_ON:
                node = self.node(self.input(node.name, 0))
        if node.op != "Const":
            raise ValueError(f"{self.name}: {name!r} must be a constant. Received: the result of {node.op}")
        return constant(node, self.name)

    def function(self, feed, fetches):
        """A function of one tensor, compiled for each shape of it.

        Args:
            feed: name of the tensor that the argument stands for; nothing before it runs.
            fetches: names of the tensors returned.

        Returns:
            `run(x)` → list of tensors.

        Raises:
            ValueError: a node is missing, or needs an operation that is not in `OPERATIONS`.
        """
        return GraphFunction(self, feed, fetches)

    def order(self, feed, fetches):
        """Nodes to run, each after its inputs, from the node `feed` (left out) to those of `fetches`."""
        before, first = {}, self.node(feed).name
        waiting = [self.node(fetch) for fetch in fetches]
        while waiting:
            node = waiting.pop()
            if node.name not in before:
                sources = [] if node.name == first else [self.node(name) for name in self.inputs(node.name)]
                before[node.name] = [source.name for source in sources]
                waiting += sources
        try:
            ordered = graphlib.TopologicalSorter(before).static_order()
            return [self.nodes[name] for name in ordered if name != first]
        except graphlib.CycleError as error:
            raise ValueError(f"{self.name} refers to itself: {' → '.join(error.args[1][:5])}; get it again.") from None


class GraphFunction:
    """See `FrozenGraph.function`."""

    def __init__(self, graph, feed, fetches):
        order = graph.order(feed, fetches)
        self._feed = graph.node(feed).name
        self._fetches = [graph.node(fetch).name for fetch in fetches]
        self._steps = [
            (node, [graph.node(source).name for source in graph.inputs(node.name)])
            for node in order
            if node.op != "Const"
        ]
        for node, _ in self._steps:
            if node.op not in OPERATIONS:
                raise ValueError(
                    f"{graph.name} needs the operation {node.op!r} (node {node.name!r}), which is not among those "
                    f"known: {', '.join(OPERATIONS)}."
                )
        values = {node.name: graph.constant(node.name) for node in order if node.op == "Const"}
        static = {name for name, value in values.items() if value.dtype.kind in "iub"}
        self._static = {name: values[name] for name in static}
        # Weights are arguments of the compiled function: as constants they would be compiled into it.
        self._weights = {name: ops.convert_to_tensor(values[name]) for name in values.keys() - static}
        self._run = backend.compiled(self._interpret, [], (1,))
        self._last_use = {source: i for i, (_, sources) in enumerate(self._steps) for source in sources}

    def __call__(self, x):
        with backend.full_precision():
            return self._run([], self._weights, ops.convert_to_tensor(x))

    def _interpret(self, weights, x):
        values = {**self._static, **weights, self._feed: x}
        for i, (node, sources) in enumerate(self._steps):
            try:
                values[node.name] = OPERATIONS[node.op](node.attr, *(values[source] for source in sources))
            except Exception as error:  # each backend has its own
                shapes = [tuple(values[source].shape) for source in sources]
                reason = str(error).partition("\n")[0]
                raise ValueError(f"Node {node.name!r} ({node.op}) fails on shapes {shapes}: {reason}") from error
            for source in set(sources):  # frees what no later node needs
                if self._last_use[source] == i and source not in self._fetches:
                    del values[source]
        return [ops.convert_to_tensor(values[name]) for name in self._fetches]
