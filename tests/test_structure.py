"""The structure of the code: what may import what, as `docs/architecture.md` has it, sizes, and cycles."""

import ast
import re
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.no_backend
ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("fcdm_keras", "t2i")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
TREES = {module: ast.parse(path.read_text()) for module, path in FILES.items()}
COMMANDS = {"sample", "encode", "evaluate", "train_vae", "convert", "report", "analyze", "model_table"}

# Every import inside a function, by the reason for it (see `docs/architecture.md`): (module, function).
LAZY = {
    "quick": {
        *((f"fcdm_keras.{command}", "main") for command in COMMANDS - {"convert", "model_table"}),
        ("fcdm_keras.runs.command", "main"),
        ("fcdm_keras.runs.shared", "if_one_of_several"),
        ("fcdm_keras.runs.datasets", "open"),
        ("fcdm_keras.runs.datasets", "latent_side"),
        ("fcdm_keras.runs.datasets", "load_start"),
        ("fcdm_keras.runs.datasets", "fitted"),
        ("fcdm_keras.runs.datasets", "prepare"),
        ("fcdm_keras.network.reference", "load_torch_checkpoint"),  # a bad file is refused first
        ("fcdm_keras.network.reference", "save_torch_state_dict"),
        ("t2i.datasets", "open"),
        ("t2i.datasets", "latent_side"),
        ("t2i.datasets", "load_start"),
        ("t2i.datasets", "fitted"),
        ("t2i.encode", "main"),
        ("t2i.sample", "main"),
        ("fcdm_keras.data.embedded", "load_digits"),  # scikit-learn takes a second
        ("fcdm_keras.data.embedded", "_photographs"),
    },
    "optional": {
        ("fcdm_keras.backend.hub", "hide_tensorflow_gpus"),
        ("fcdm_keras.data.tfds_sources", "_tensorflow_datasets"),
        ("fcdm_keras.training.logs", "__init__"),  # tensorboardX
    },
    "engine": {
        ("fcdm_keras.network.export", "_dynamic"),
        ("fcdm_keras.network.reference", "save_torch_state_dict"),
        ("fcdm_keras.training.streams", "_tensorflow_dataset"),
        ("fcdm_keras.training.streams", "_torch_loader"),
        ("fcdm_keras.formats.torch_files", "find_class"),
        ("fcdm_keras.formats.torch_files", "read_torch_file"),
        ("fcdm_keras.formats.torch_files", "_read_pickled"),
    },
}


def layers():
    """The table of `docs/architecture.md`: package → what it may import; `None` is all above it."""
    rows = re.findall(
        r"^\| `(\w+)` \| [^|]+ \|([^|]*)\|$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE
    )
    return {name: None if "all above" in allowed else set(re.findall(r"`(\w+)`", allowed)) for name, allowed in rows}


def package(module):
    """The row of that table that a module belongs to; `None` for the packages' own `__init__`."""
    parts = module.split(".")
    if parts[0] == "t2i":
        return "t2i"
    return None if len(parts) == 1 else "commands" if parts[1] in COMMANDS else parts[1]


def imported(module, tree=None):
    """Modules that one imports anywhere in it: ours as modules, others by their first name."""
    for node in ast.walk(tree or TREES[module]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            own = name if name in FILES else name.rpartition(".")[0]
            yield own if own in FILES else name.partition(".")[0]


def test_every_package_has_its_row_and_every_row_its_package():
    assert {package(module) for module in FILES} - {None} == layers().keys()


def test_packages_import_only_what_the_table_allows():
    table, seen = layers(), 0
    for module in FILES:
        own = package(module)
        for name in imported(module):
            other = package(name) if name in FILES else None
            if None in (own, other) or own == other:
                continue
            above = list(table)[: list(table).index(own)]
            assert other in (above if table[own] is None else table[own]), f"{module} imports {name}"
            seen += 1
    assert seen > 200


def test_no_module_imports_itself_by_others():
    """Also by imports inside functions."""
    graph = {module: {name for name in imported(module) if name in FILES and name != module} for module in FILES}
    while ends := [module for module, names in graph.items() if not names & graph.keys()]:
        for module in ends:
            del graph[module]
    assert not graph, sorted(graph)


def test_imports_inside_functions_have_a_reason():
    found = set()
    for module, tree in TREES.items():
        for function in ast.walk(tree):
            inside = isinstance(function, ast.FunctionDef) and any(
                isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.walk(function)
            )
            found |= {(module, function.name)} if inside else set()
    assert found == set().union(*LAZY.values())


def test_files_and_functions_are_short_and_the_top_is_clear():
    for module, path in FILES.items():
        assert len(path.read_text().splitlines()) <= 320, module
        for node in ast.walk(TREES[module]):
            if isinstance(node, ast.FunctionDef):
                kernel = any(ast.unparse(decorator) == "triton.jit" for decorator in node.decorator_list)
                assert node.end_lineno - node.lineno < (90 if kernel else 45), (module, node.name)
    top = [path for path in (ROOT / "fcdm_keras").iterdir() if path.name != "__pycache__"]
    assert sum(path.is_file() for path in top) <= 15 and sum(path.is_dir() for path in top) <= 15


def test_engines_are_imported_in_their_places_only():
    engines = {"jax", "jaxlib", "torch", "torchvision", "tensorflow", "tensorflow_datasets", "keras_hub", "open_clip"}
    places = {
        **{f"fcdm_keras.{folder}.on_{engine}": {engine} for folder in ("kernels", "backend") for engine in engines},
        "fcdm_keras.backend.on_jax_step": {"jax"},
        "fcdm_keras.backend.hub": {"tensorflow", "keras_hub"},
        "fcdm_keras.training.streams": {"tensorflow", "torch"},  # data sets of theirs, on any backend
        "fcdm_keras.network.reference": {"torch"},
        "fcdm_keras.network.export": {"torch"},
        "fcdm_keras.kernels.jax_primitives": {"jax"},
        "fcdm_keras.kernels.gpu.jax_residual": {"jax"},
        **{f"fcdm_keras.kernels.gpu.{name}_{e}": {e} for name in ("on", "devices") for e in ("jax", "torch")},
        "fcdm_keras.data.tfds_sources": {"tensorflow_datasets"},
        "fcdm_keras.formats.torch_files": {"torch"},
        "t2i.open_clip_worker": {"torch", "open_clip"},  # a program of its own
    }
    for module in FILES:
        assert set(imported(module)) & engines == places.get(module, set()), module
    assert not {name for name in imported("t2i.open_clip_worker") if name in FILES or name == "keras"}


def test_backends_know_the_job_and_no_more_of_the_package():
    """What they need of `distribution`, or of a network, they are given: so that no ring of imports forms."""
    allowed = {"fcdm_keras.backend.job", "fcdm_keras.backend.on_jax_step"}
    for name in ("jax", "jax_step", "torch", "tensorflow"):
        own = {n for n in imported(f"fcdm_keras.backend.on_{name}") if n in FILES}
        assert own <= (allowed if name == "jax" else {"fcdm_keras.backend.job"})
    assert set(imported("fcdm_keras.backend.job")) <= set(sys.stdlib_module_names)


def test_backends_have_the_same_names():
    """Each file has every name of the contract, as `backend/__init__.py` lists them, with the same arguments."""
    contract = set(re.findall(r"_on_backend\.(\w+)", FILES["fcdm_keras.backend"].read_text()))
    signatures = []
    for name in ("jax", "torch", "tensorflow"):
        nodes = TREES[f"fcdm_keras.backend.on_{name}"].body
        functions = {node.name: ast.unparse(node.args) for node in nodes if isinstance(node, ast.FunctionDef)}
        others = {node.name for node in nodes if isinstance(node, ast.ClassDef)}
        others |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
        others |= {ast.unparse(node.targets[0]) for node in nodes if isinstance(node, ast.Assign)}
        assert contract <= functions.keys() | others, (name, contract - functions.keys() - others)
        signatures.append({function: functions[function] for function in contract & functions.keys()})
    assert len(contract) > 15 and signatures[0] == signatures[1] == signatures[2]


def test_samplers_and_scores_see_no_network():
    scores = ("metrics", "statistics", "neighbors", "inception.graph", "inception.graph_ops")
    for module in FILES:
        mathematics = module.startswith("fcdm_keras.diffusion")
        if mathematics or module.removeprefix("fcdm_keras.evaluation.") in scores:
            own = {package(name) for name in imported(module) if name in FILES}
            assert own <= {"arguments", "diffusion", "evaluation", "backend", "recipes", "formats", None}, (module, own)
    assert not {"fcdm_keras.diffusion.objectives"} & set(imported("fcdm_keras.diffusion.samplers"))


def test_data_workers_and_shapes_import_no_keras():
    workers = ("order", "batches", "latent_store", "transforms", "sources", "tfds_sources", "labels")
    modules = [f"fcdm_keras.data.{name}" for name in workers]
    modules += [name for name in FILES if name.startswith("fcdm_keras.formats")]
    modules += ["t2i.caption_store", "t2i.text_encoder", "t2i.coco", "t2i.captions"]
    modules += [name for name in FILES if name.startswith("t2i.shapes") and name != "t2i.shapes.autoencoder"]
    for module in modules:
        assert "keras" not in set(imported(module)), module


def test_what_is_read_before_anything_heavy_needs_the_standard_library_and_msgspec_only():
    quick = {"arguments", "recipes", "files", "machine", "machine.memory", "options", "signals", "moved", "registry"}
    quick |= {"runs.folder", "runs.command", "runs.datasets", "runs.owner", "runs.history", "runs.outputs"}
    quick |= {"runs.shared", "formats", "formats.documents", "data", "data.store_metadata"}
    quick |= {
        "sampling.flags",
        "data.classes",
        "machine.engine",
        "machine.terminal",
        "recipes.ablations",
        "recipes.sizes",
    }
    modules = [*(f"fcdm_keras.{name}" for name in quick), "t2i", "t2i.recipes", "t2i.datasets"]
    for module in modules:
        own = set(imported(module, ast.Module(TREES[module].body, [])))
        lazy = {name for f in ast.walk(TREES[module]) if isinstance(f, ast.FunctionDef) for name in imported(module, f)}
        assert own - lazy <= {*sys.stdlib_module_names, *modules, "fcdm_keras", "msgspec"}, (module, own - lazy)
