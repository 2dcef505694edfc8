"""Classes that Keras finds by their registered names, imported when one is asked for. Standard library only.

`keras.saving.load_model` and KerasHub's presets look a name such as `fcdm_keras>FCDMBackbone` up in a dict of Keras's,
`keras.saving.get_custom_objects()`. What is offered here stands there from the moment Keras is imported, and is
replaced by the class itself when its module is imported.
"""

import importlib
import importlib.abc
import importlib.util
import sys


class _Class:
    """Stands for a class whose module is not imported yet, and imports it at the first look at an attribute."""

    def __init__(self, module, name):
        self._home = module, name

    @property
    def __bases__(self):  # makes it a class to `issubclass`
        return (self._real(),)

    def _real(self):
        module, name = self._home
        return getattr(importlib.import_module(module), name)

    def __getattr__(self, name):
        return getattr(self._real(), name)

    def __call__(self, *args, **kwargs):
        return self._real()(*args, **kwargs)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports `keras` as it is, and then enters the classes."""

    def __init__(self, enter):
        self.enter, self.searching, self.loader = enter, False, None

    def find_spec(self, name, path=None, target=None):
        if name != "keras" or self.searching:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.enter(module)


def offer(package, classes):
    """Enters classes with Keras, now or when it is imported.

    Args:
        package: the package that they are registered under.
        classes: module below the package → names of classes in it.
    """

    def enter(keras):
        known = keras.saving.get_custom_objects()
        for module, names in classes.items():
            for name in names:
                known.setdefault(f"{package}>{name}", _Class(f"{package}.{module}", name))

    if "keras" in sys.modules:
        enter(sys.modules["keras"])
    else:
        sys.meta_path.insert(0, _Finder(enter))
