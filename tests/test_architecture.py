"""House rules that are read from the imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mail_torchrec"
# Lower to higher; a module may import its own layer and those before it.
LAYERS = [
    [
        "settings",
        "quiet",
        "auc",
        "installation",
        "phases",
        "launcher",
        "lock",
        "collectives",
        "page",
        "new_folder",
    ],
    ["losses"],
    ["towers", "data", "prepare"],
    ["baselines"],
    ["fields", "objective"],
    ["embeddings"],
    ["parts"],
    ["model"],
    ["checkpoint"],
    ["config", "train"],
    ["doctor", "planning", "reproduce", "export"],
    ["abtest", "vectors", "serve"],
    ["triton"],
    ["cli", "__main__"],
]
# Sideways imports between these would tie together what should be usable apart.
APART = {
    "towers": {"data", "embeddings", "train"},
    "losses": {"data", "towers"},
    "baselines": {"data"},
    "data": {"towers", "losses", "embeddings", "train"},
    "prepare": {"towers", "losses", "data"},
}


def modules(folder: Path = PACKAGE) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def layer(name: str) -> int:
    [index] = [index for index, names in enumerate(LAYERS) if name in names]
    return index


def part_or_file(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return
    for name in imports(path):
        if name.startswith("mail_torchrec."):
            other = name.split(".")[1]
            assert layer(other) <= layer(part(path)), f"{path} imports {name}, which is above it"
            assert other not in APART.get(part(path), set()), (
                f"{path} imports {name}, which it should do without"
            )


@pytest.mark.parametrize(("library", "homes"), [
    ("torchrec.distributed", {"embeddings", "train"}), ("torchrec", {"data", "embeddings", "model.py", "train", "export"}),
    ("pyarrow", {"data", "vectors"}), ("torchx", set()), ("ibis", {"prepare"}), ("duckdb", set()),
    ("onnxruntime", {"export"}), ("onnx_ir", {"export"}), ("faiss", {"vectors"}),
    ("starlette", {"serve"}), ("uvicorn", {"serve"}), ("grpc", {"serve"}), ("tritonclient", {"serve", "triton"}),
    ("prometheus_client", {"serve"}),
])  # fmt: skip
def test_libraries_stay_at_home(library: str, homes: set[str]) -> None:
    users = {
        path.relative_to(PACKAGE).parts[0]
        for path in modules()
        if any(name == library or name.startswith(library + ".") for name in imports(path))
    }
    assert users <= homes


def test_only_components_import_torchx_and_they_name_the_package_as_a_string() -> None:
    [component] = modules(ROOT / "components")
    assert not any(name.startswith("mail_torchrec") for name in imports(component))


def test_importing_the_command_line_loads_no_torch_and_no_engine_and_prints_nothing() -> None:
    code = "import sys, mail_torchrec.cli; print(sorted({'torch', 'ibis', 'duckdb', 'pyspark'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "[]\n" and done.stderr == ""


@pytest.mark.parametrize(
    "path",
    [*modules(), *modules(ROOT / "components"), *modules(ROOT / "tools")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_files_are_under_300_lines_and_functions_under_80(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, node.name
