"""What autoencoders share: methods that are compiled on their first use."""

from fcdm_keras import backend


class CompiledMethods:
    """Mixin of layers with a dict `_compiled`, at first empty."""

    def _run(self, method, tensor):
        """`method`, by name, of a batch: compiled, with the weights as they are now, spread over the devices."""
        if method not in self._compiled:
            self._compiled[method] = backend.compiled(getattr(self, method), tuple(self.weights), (0,))
        return self._compiled[method]([v.value for v in self.weights], tensor)
