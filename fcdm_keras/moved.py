"""Module names of earlier versions, which users' code and the JSON of stored presets still hold. Standard library only.

A name in a table is imported as a module with the public names of the modules that have its contents now.
"""

import importlib
import importlib.abc
import importlib.util
import sys


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, table):
        self.table = table

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name in self.table else None

    def create_module(self, spec):
        return None  # a plain one

    def exec_module(self, module):
        for home in self.table[module.__name__]:
            public = {n: v for n, v in vars(importlib.import_module(home)).items() if not n.startswith("_")}
            vars(module).update(public)


def keep(table):
    """Lets the names in `table`, old module → modules now, be imported still."""
    sys.meta_path.insert(0, _Finder(table))
