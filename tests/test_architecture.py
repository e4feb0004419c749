"""Who may import whom, and what may lie where."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("data", "training", "evaluation", "registry")
MAY_USE = {"data": set(), "training": {"data"}, "evaluation": {"data", "training"}, "registry": {"data", "training"}}
FINDINGS = "tasks.evaluation.result."
"""The document that evaluation hands to its sibling, the registry: the one thing of it that gates may know."""


def modules(folder):
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def imports(path):
    """Dotted names that a file imports, wherever in it they stand."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who uses whom"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", modules("tasks"), ids=name_of)
def test_tasks_never_import_flows(path):
    assert not [name for name in imports(path) if name.split(".")[0] == "flows"]


@pytest.mark.parametrize("path", [path for path in modules("tasks") if path.parent.name in LAYERS], ids=name_of)
def test_a_package_of_tasks_uses_only_those_below_it(path):
    package = path.parent.name
    names = [name for name in imports(path) if not (package == "registry" and name.startswith(FINDINGS))]
    used = {name.split(".")[1] for name in names if name.startswith("tasks.")} & set(LAYERS)
    assert used <= MAY_USE[package] | {package}


@pytest.mark.parametrize("path", [path for path in modules("tasks") if path.parent.name == "tasks"], ids=name_of)
def test_what_all_stages_share_knows_no_stage(path):
    assert not {name.split(".")[1] for name in imports(path) if name.startswith("tasks.")} & set(LAYERS)


def test_layers_are_those_that_stage_keys_are_made_of():
    from tasks import stage

    assert stage.LAYERS == LAYERS
    assert all(MAY_USE[name] <= set(LAYERS[: LAYERS.index(name)]) for name in LAYERS)


def test_stages_run_without_prefect():
    assert not [name_of(path) for path in modules("tasks") if any(name.split(".")[0] == "prefect" for name in imports(path))]


@pytest.mark.parametrize("folder", ["mlflow", "data"])
def test_no_python_shadows_an_installed_package(folder):
    made_by_runs = ROOT / "mlflow" / "artifacts"  # registered models bring their own
    assert not [path for path in modules(folder) if made_by_runs not in path.parents]


def test_every_package_is_listed_for_the_wheel_and_nothing_else_is():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(path.parent.relative_to(ROOT).parts) for top in ("tasks", "flows") for path in modules(top)}
    assert listed == found
    assert all((ROOT / name.replace(".", "/") / "__init__.py").is_file() for name in found)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Names in the wheel, built from a copy so that nothing is left in the project."""
    copy = tmp_path_factory.mktemp("project")
    for folder in ("flows", "tasks", "data", "mlflow", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "*.db*", "artifacts"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    program = "import sys, setuptools.build_meta as build; build.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(copy / "dist")], cwd=copy, check=True, capture_output=True)
    (path,) = (copy / "dist").iterdir()
    return set(zipfile.ZipFile(path).namelist())


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel):
    files = [path for top in ("flows", "tasks") for path in (ROOT / top).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {name for name in wheel if ".dist-info/" not in name} == {name_of(path) for path in files}


def test_the_installed_mlflow_is_imported_and_not_our_folder():
    import mlflow

    assert not Path(mlflow.__file__).is_relative_to(ROOT / "mlflow")
    assert mlflow.__version__


@pytest.mark.parametrize("path", [*modules("tasks"), *modules("flows")], ids=name_of)
def test_no_module_outgrows_400_lines_or_is_called_utils(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    assert path.stem not in ("utils", "util", "helpers", "common")
