"""Parses the package and reads its structure: rooms, imports, docstrings, shapes."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mail_torchrec"
SPLIT_ROOMS = (
    *("data", "towers", "prepare", "train", "inference", "embeddings", "planning"),
    *("reproduce",),
)
"""Folders whose subfolders are rooms of their own."""
_RIDDLE = re.compile(r"(What|How|Whether|Who|Whom|Which|Whose)\b")
_TENSOR_TYPES = {"Tensor", "NDArray", "ndarray", "Ints", "Floats", "Bools", "Array", "Arrays"}
_SHAPE_SUFFIX = re.compile(r".*_[A-Z][A-Za-z0-9]*$")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One module, parsed."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        """Dotted name, ``mail_torchrec.data.schema.columns``."""
        parts = self.path.relative_to(PACKAGE.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def room(self) -> str:
        """The room that the module stands in; ``""`` for a module at the package's root."""
        return room_of(self.path.relative_to(PACKAGE).parts[:-1])

    def place(self, node: ast.AST) -> str:
        """``path:line`` of a node."""
        return f"{self.path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def room_of(folders: tuple[str, ...]) -> str:
    """The room of a path's folders below the package."""
    depth = 2 if folders and folders[0] in SPLIT_ROOMS else 1
    return "/".join(folders[:depth])


def sources(folder: Path = PACKAGE) -> list[Source]:
    """All modules below a folder, parsed."""
    paths = sorted(folder.rglob("*.py"))
    return [Source(path, text := path.read_text(), ast.parse(text)) for path in paths]


@cache
def imported_modules(source: Source) -> set[str]:
    """Dotted names that a module imports, inside functions too.

    ``from a.b import c`` counts as ``a.b`` and ``a.b.c``, since ``c`` may be a module.
    """
    found: set[str] = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def module_imports(modules: list[Source]) -> dict[str, set[str]]:
    """Maps each module to the modules of the package that it imports."""
    names = {source.module for source in modules}
    return {
        source.module: (imported_modules(source) & names) - {source.module} for source in modules
    }


def room_imports(modules: list[Source]) -> dict[str, set[str]]:
    """Maps each room to the other rooms that it imports; the package's root is no room."""
    rooms = {source.module: source.room for source in modules}
    found: dict[str, set[str]] = defaultdict(set)
    for module, others in module_imports(modules).items():
        if rooms[module]:
            found[rooms[module]] |= {rooms[other] for other in others} - {rooms[module], ""}
    return found


def two_way_pairs(imports: dict[str, set[str]]) -> list[str]:
    """Pairs that import each other, each once."""
    return [
        f"{one} <-> {other}"
        for one in sorted(imports)
        for other in sorted(imports[one])
        if one < other and one in imports.get(other, ())
    ]


def functions(source: Source) -> Iterator[Function]:
    """All functions and methods of a module, nested ones too."""
    for node in ast.walk(source.tree):
        if isinstance(node, Function):
            yield node


def num_nodes(node: ast.AST) -> int:
    """Syntax nodes of a tree."""
    return sum(1 for _ in ast.walk(node))


def num_lines(function: Function) -> int:
    """Lines of a function, its docstring among them."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def code_lines(source: Source) -> int:
    """Lines that are neither empty nor a comment."""
    lines = map(str.strip, source.text.splitlines())
    return sum(bool(line) and not line.startswith("#") for line in lines)


def riddles(source: Source) -> Iterator[str]:
    """Docstrings that open with a question word instead of a noun and a verb."""
    for node in ast.walk(source.tree):
        if isinstance(node, Function | ast.ClassDef | ast.Module):
            doc = ast.get_docstring(node)
            if doc and _RIDDLE.match(doc):
                yield f"{source.place(node)} {doc.splitlines()[0]}"


def shapeless_tensors(source: Source) -> Iterator[str]:
    """Public tensor arguments and fields whose shape is said nowhere.

    A shape is said by a suffix of shape letters (``logits_B``), or by brackets behind the name in
    the docstring (``[rows, columns]``, ``scalar``).
    """
    for node in source.tree.body:
        if isinstance(node, Function) and _is_public(node.name):
            yield from _shapeless_arguments(source, node, ast.get_docstring(node) or "")
        elif isinstance(node, ast.ClassDef) and _is_public(node.name):
            yield from _shapeless_members(source, node)


def _shapeless_members(source: Source, owner: ast.ClassDef) -> Iterator[str]:
    class_doc = ast.get_docstring(owner) or ""
    for i, node in enumerate(owner.body):
        if isinstance(node, Function):
            if _is_public(node.name) or node.name in ("__init__", "__call__"):
                doc = class_doc + "\n" + (ast.get_docstring(node) or "")
                yield from _shapeless_arguments(source, node, doc)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name, behind = node.target.id, owner.body[i + 1 : i + 2]
            own_doc = _text(behind[0]) if behind else ""
            if _lacks_shape(name, node.annotation, f"{class_doc}\n{name}: {own_doc}"):
                yield f"{source.place(node)} {owner.name}.{name}"


def _shapeless_arguments(source: Source, function: Function, doc: str) -> Iterator[str]:
    arguments = function.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        annotation = argument.annotation
        if annotation is not None and _lacks_shape(argument.arg, annotation, doc):
            yield f"{source.place(function)} {function.name}({argument.arg})"


def _lacks_shape(name: str, annotation: ast.expr, doc: str) -> bool:
    if not _is_public(name) or _SHAPE_SUFFIX.match(name) or not _holds_tensors(annotation):
        return False
    line = rf"\b{re.escape(name)}\b[^\n]*(?:\n {{4,}}[^\n]*)*?"
    return not re.search(line + r"(\[|\bscalar\b)", doc)


def _holds_tensors(annotation: ast.expr) -> bool:
    """Whether a value of this type holds tensors; functions of tensors do not."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    names = {_type_name(node) for node in ast.walk(annotation)}
    return not {"Callable", "type"} & names and bool(_TENSOR_TYPES & names)


def _type_name(node: ast.AST) -> str:
    """The last part of a type's name; Arrow's arrays are columns, so they have no shape to say."""
    if isinstance(node, ast.Attribute):
        return "" if getattr(node.value, "id", "") == "pa" else node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_public(name: str) -> bool:
    return not name.startswith("_")


def _text(node: ast.stmt) -> str:
    constant = node.value if isinstance(node, ast.Expr) else None
    return str(constant.value) if isinstance(constant, ast.Constant) else ""
