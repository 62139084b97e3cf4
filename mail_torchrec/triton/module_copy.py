"""Copy of those modules of the package that one module imports, directly or through others.

The list is found from the import statements, so a repository holds no trainer and needs no torch.
"""

import ast
import shutil
from pathlib import Path

import mail_torchrec

_ROOT = Path(mail_torchrec.__file__).parent.parent
_PACKAGE = mail_torchrec.__name__


def required_files(module: str) -> list[Path]:
    """Finds the source files that a module of the package needs, its own among them.

    Imports inside functions count as well. Paths are relative to the folder of the package.

    Args:
        module: dotted name, such as ``mail_torchrec.triton.python_backend``.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _source(name)
        if name in found or path is None:
            continue
        found[name] = path
        waiting += [name.rpartition(".")[0], *_imported(path)]
    return sorted(path.relative_to(_ROOT) for path in found.values())


def copy_modules(module: str, folder: Path) -> None:
    """Copies the source files that a module needs, as a package below a folder."""
    for path in required_files(module):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_ROOT / path, folder / path)


def _source(name: str) -> Path | None:
    """Finds a module's file; None for names that are no module of the package."""
    package, *_ = parts = name.split(".")
    if package != _PACKAGE:
        return None
    path = _ROOT.joinpath(*parts)
    candidates = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((file for file in candidates if file.is_file()), None)


def _imported(path: Path) -> list[str]:
    """Lists the dotted names that a file imports, imported attributes among them."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"relative import in {path}"
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names
