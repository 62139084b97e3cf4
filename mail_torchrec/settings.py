"""Base class of every typed configuration section, and the wording of faults in one."""

from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails


class Settings(BaseModel):
    """Frozen configuration section with typed fields and defaults; refuses unknown keys.

    Each section is declared beside the code that it configures (the schema in
    ``data/schema/schema.py``, the zero-shot switches in ``towers/zero_shot/settings.py``, ...);
    ``config.py`` combines them.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def first_fault(error: ValidationError) -> str:
    """Formats the first fault of a file that does not validate, on one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    message = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return "".join(char if char.isprintable() else "?" for char in message)


def readable_faults(error: ValidationError, kind: type[Settings]) -> str:
    """Formats the faults of a tree that is no such section, each on a line of its own."""
    lines = []
    for fault in error.errors():
        parts, sections = _resolve_place(fault["loc"], kind)
        if parts[-1:] == ["[key]"]:  # pydantic's place of a key that is no text, below the key
            parts = parts[:-2]
        lines.append(f"  {'.'.join(parts) or '(root)'}: {_fault_message(fault, sections)}")
    return "\n".join(lines)


def _fault_message(fault: ErrorDetails, sections: list[list[type[Settings]]]) -> str:
    """Words one fault; ``sections`` are those of :func:`_resolve_place`."""
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        return "unknown key" + "".join(
            f"; known here: {', '.join(_fields(section))}" for section in sections[-2]
        )
    if fault["type"].startswith("union_tag"):  # a section of which there are kinds
        names = ", ".join(_name(section) for section in sections[-1])
        return f"'name' should be one of {names}, received {fault['input']!r}"
    if fault["loc"][-1:] == ("[key]",):
        name = fault["input"]
        reason = " (YAML reads on, off, yes and no so)" if isinstance(name, bool) else ""
        return f"a name should be text, received {name!r}{reason}; put it in quotes"
    if fault["type"] not in ("value_error", "missing"):
        message += f", received {fault['input']!r}"
    return message


def _resolve_place(
    place: tuple[int | str, ...], kind: type[Settings]
) -> tuple[list[str], list[list[type[Settings]]]]:
    """Translates pydantic's place of a fault to the configuration's.

    Pydantic puts the name of a section's kind into its places, where the configuration has no such
    level.

    Returns:
        The keys of the place, and the sections that may stand at the root and at each key.
    """
    parts: list[str] = []
    annotations: list[Any] = [kind]
    for part in map(str, place):
        sections = _sections(annotations[-1])
        if len(sections) > 1 and part in map(_name, sections):
            annotations[-1] = next(section for section in sections if _name(section) == part)
            continue
        if part.startswith("("):  # the tag of a union's kind
            continue
        parts.append(part)
        annotations.append(annotation_below(annotations[-1], part))
    return parts, [_sections(annotation) for annotation in annotations]


def annotation_below(annotation: Any, key: str) -> Any:
    """Returns the annotation of a key: of a section's field, or of all entries of a mapping."""
    sections = _sections(annotation)
    if len(sections) == 1:
        return _fields(sections[0]).get(key)
    return (get_args(annotation) or (None,))[-1]


def _sections(annotation: Any) -> list[type[Settings]]:
    """Lists the sections that an annotation allows: one, those of a union, or none."""
    if get_origin(annotation) in (UnionType, Union, Annotated):
        return [section for part in get_args(annotation) for section in _sections(part)]
    return [annotation] if _is_settings(annotation) else []


def _name(section: type[Settings]) -> str:
    """Returns the name of a kind of section."""
    return str(get_args(section.model_fields["name"].annotation)[0])


def _is_settings(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Settings)


def _fields(section: type[Settings]) -> dict[str, Any]:
    return {field.alias or name: field.annotation for name, field in section.model_fields.items()}
