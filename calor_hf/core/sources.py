"""Registered names and fields of dataclasses, read from source files: importing them may take seconds."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SourceField:
    """A field of a dataclass, as far as its source tells.

    Attributes:
        types: Names in its annotation, such as ``{"Sequence", "str"}``.
        required: Whether it has no default.
        default: Its default; None also stands for one that is not a literal.
        metadata: Its metadata that are literals, and ``choices`` of a ``Literal``, an enumeration or a constant.
    """

    types: frozenset[str]
    required: bool
    default: Any = None
    metadata: dict[str, Any] = field(default_factory=dict)


def registered(package: str) -> dict[str, tuple[str, ast.ClassDef]]:
    """Module and definition of each class that is registered in ``package``, by name."""
    found = dict[str, tuple[str, ast.ClassDef]]()
    for file in _place(package).glob("[!_]*.py"):
        module = f"{package}.{file.stem}"
        for node in _tree(module).body:
            for decorator in node.decorator_list if isinstance(node, ast.ClassDef) else ():
                match decorator:
                    case ast.Call(func=ast.Attribute(attr="register"), args=[ast.Constant(value=str(name))]):
                        found[name] = (module, node)  # type: ignore[assignment]
    return dict(sorted(found.items()))


def summaries(package: str) -> dict[str, str]:
    """First docstring line of each class that is registered in ``package``, by name."""
    return {name: (ast.get_docstring(node) or "").partition("\n")[0] for name, (_, node) in registered(package).items()}


def settings_fields(package: str, name: str) -> dict[str, SourceField]:
    """Fields of the configuration of a registered class, by name; errors as :func:`source_fields`."""
    module, node = registered(package)[name]
    for item in node.body:
        match item:
            case ast.Assign(targets=[ast.Name(id="config_class")], value=ast.Name(id=config)):
                return source_fields(module, config)
    raise LookupError(f"{module}: no config_class in {node.name}")


def source_fields(module: str, name: str) -> dict[str, SourceField]:
    """Fields of a dataclass and those it inherits, by name.

    Raises:
        LookupError: the class, or one that it extends, is not found.
        OSError: no source file.
        SyntaxError: a source file is not Python.
    """
    module, node = definition(module, name)
    if not isinstance(node, ast.ClassDef):
        raise LookupError(f"{module}: {name} is not a class")
    found = dict[str, SourceField]()
    for base in reversed(node.bases):
        found |= source_fields(module, ast.unparse(base))
    for item in node.body:
        match item:
            case ast.AnnAssign(target=ast.Name(id=own), annotation=annotation, value=value):
                if one := _field(module, annotation, value):
                    found[own] = one
    return found


def definition(module: str, name: str) -> tuple[str, ast.ClassDef | ast.expr]:
    """Class or value of a name of a module, and the module that defines it.

    Raises:
        LookupError: no such name.
    """
    node = _names(module).get(name)
    if isinstance(node, ast.ImportFrom):
        origin = {alias.asname or alias.name: alias.name for alias in node.names}[name]
        package = module if _place(module).is_dir() else module.rpartition(".")[0]
        return definition(f"{package}.{node.module}" if node.level else str(node.module), origin)
    if node is None:
        raise LookupError(f"no {name} in {module}")
    return module, node


@cache
def _names(module: str) -> dict[str, ast.ClassDef | ast.expr | ast.ImportFrom]:
    """Names of a module, those too that are defined or imported under a condition."""
    found = dict[str, ast.ClassDef | ast.expr | ast.ImportFrom]()
    nodes = list(_tree(module).body)
    for node in nodes:
        match node:
            case ast.If() | ast.Try():
                nodes += node.body
            case ast.ClassDef(name=name):
                found[name] = node
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                found[name] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                found[name] = value
            case ast.ImportFrom(names=aliases):
                found |= {alias.asname or alias.name: node for alias in aliases}
    return found


def _field(module: str, annotation: ast.expr, value: ast.expr | None) -> SourceField | None:
    """Field with an annotation and a value; None for one that is not given to the constructor."""
    options = dict[str | None, ast.expr]()
    default = value
    match value:
        case ast.Call(func=ast.Name(id="setting" | "field"), args=args, keywords=keywords):
            options = {keyword.arg: keyword.value for keyword in keywords}
            default = options.pop("default_factory", options.pop("default", args[0] if args else None))
            match options.pop("metadata", None):
                case ast.Dict(keys=keys, values=values):
                    options |= {str(_literal(module, key)): one for key, one in zip(keys, values, strict=True) if key}
    metadata = {str(key): found for key, one in options.items() if (found := _literal(module, one)) is not None}
    if metadata.pop("init", True) is False:
        return None
    types = set[str]()
    for node in ast.walk(annotation):
        match node:
            case ast.Name(id=name):
                types.add(name)
            case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Tuple() as words):
                metadata["choices"] = ast.literal_eval(words)
    choices = [one for name in types for one in _members(module, name)]
    if choices and "list" not in types:  # a text may hold several of a list, as for --debug
        metadata["choices"] = choices
    literal = None if default is None else _literal(module, default)
    return SourceField(frozenset(types), default is None, literal, metadata)


def _literal(module: str, node: ast.expr) -> Any:
    """Value of a literal, or of the name of one; for a dictionary only the keys. None for all else."""
    try:
        if isinstance(node, ast.Name):
            module, found = definition(module, node.id)
            return None if isinstance(found, ast.ClassDef) else _literal(module, found)
        return ast.literal_eval(ast.Tuple(node.keys) if isinstance(node, ast.Dict) else node)  # type: ignore[arg-type]
    except (LookupError, OSError, ValueError):
        return None


def _members(module: str, name: str) -> Iterator[str]:
    """Values of an enumeration of words; nothing for another name."""
    try:
        _, node = definition(module, name)
    except (LookupError, OSError):
        return
    if isinstance(node, ast.ClassDef) and any("Enum" in ast.unparse(base) for base in node.bases):
        for item in node.body:
            match item:
                case ast.Assign(value=ast.Constant(value=str(value))):
                    yield value


def _place(module: str) -> Path:
    """Folder of a package, or path of a module without its ending; the module is not imported."""
    top, *below = module.split(".")
    spec = find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        raise LookupError(f"no package {top}")
    return Path(spec.submodule_search_locations[0], *below)


@cache
def _tree(module: str) -> ast.Module:
    place = _place(module)
    file = place / "__init__.py" if place.is_dir() else place.with_name(f"{place.name}.py")
    return ast.parse(file.read_text(encoding="utf-8"))
