"""What the sources do not say to a reader of their text: functions that hide a module, kernels, fields of a recipe."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import griffe

import longspan.recipe  # noqa: F401  (registers every method)
from longspan import kernels
from longspan.registry import Config, Method

# pybind11's signatures as Python reads them: arrays are objects of any library.
TYPES = (
    (r"typing\.SupportsInt \| typing\.SupportsIndex", "int"),
    (r"typing\.SupportsFloat \| typing\.SupportsIndex", "float"),
    (r"collections\.abc\.Sequence", "Sequence"),
    (r"longspan\._host\.", ""),
    (r"<(\w+) object at \w+>", r"\1()"),
)

# Keywords of JSON schema, and its types as a writer of YAML calls them; a key of no type is explained by its class.
LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
    "multipleOf": "a multiple of",
}
TYPES_OF_YAML = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "`true`, `false`",
    "null": "`null`",
    None: "see above",
}


class Reference(griffe.Extension):
    """Completes the tree that griffe reads from the sources of longspan."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Once, when all of its modules are read."""
        loader.resolve_aliases(implicit=True)
        _add_kernels(pkg["kernels"])
        configs = {f"{each.__module__}.{each.__qualname__}": each for each in _configs(Config)}
        for each in list(_objects(pkg)):
            if each.docstring is not None:
                each.docstring.value = _literal(each.docstring.value)
                if each.path in configs:
                    each.docstring.value = _with_fields(each.docstring.value, configs[each.path])
        for module in list(_objects(pkg)):
            if module.is_module:
                _uncover(module, loader)


def _objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    yield parent
    for member in parent.members.values():
        if not member.is_alias:
            yield from _objects(member)


def _literal(text: str) -> str:
    """<q, k> is a product and not a tag, a*b no emphasis; listings and code are shown as they are."""
    escaped = {"<": "&lt;", "*": "\\*"}
    return re.sub(r"(?m:^    .*$)|`+[^`]*`+|<|\*", lambda match: escaped.get(match[0], match[0]), text)


def _uncover(module: griffe.Module, loader: griffe.GriffeLoader) -> None:
    """An exported function of a module's name is what the package has under it; the module stays below it."""
    for export in module.exports or ():
        name = str(export)
        hidden, path = module.members.get(name), module.imports.get(name)
        if path is not None and isinstance(hidden, griffe.Module):
            function = loader.modules_collection[path]
            function = function.final_target if isinstance(function, griffe.Alias) else function
            for below, member in hidden.members.items():
                with contextlib.suppress(griffe.AliasResolutionError):  # what other packages define
                    function.members[below] = member.final_target if isinstance(member, griffe.Alias) else member
            module.set_member(name, griffe.Alias(name, target=function, parent=module))


def _add_kernels(module: griffe.Module) -> None:
    """The entry points that `longspan.kernels` takes from the native library, by their own docstrings."""
    lines = []
    for name in dir(kernels):
        value = getattr(kernels, name)
        if inspect.isclass(value):
            signature, _, _ = value.__init__.__doc__.partition("\n")
            signature = re.sub(r"self: [\w.]+", "self", signature)
            lines += [f"class {name}:", f"    {value.__doc__!r}", f"    def {signature}: ..."]
        elif callable(value):
            signature, _, text = value.__doc__.partition("\n")
            lines += [f"def {signature}:", f"    {inspect.cleandoc(text)!r}"]
        else:
            lines += [f"{name}: {type(value).__name__}"]
    code = "\n".join(lines)
    for pattern, replacement in TYPES:
        code = re.sub(pattern, replacement, code)
    stub = griffe.visit(module.name, filepath=module.filepath, code=code, parent=module.parent)
    for name, member in stub.members.items():
        module.set_member(name, member)


def _configs(parent: type[Config]) -> Iterator[type[Config]]:
    for cls in parent.__subclasses__():
        yield cls
        yield from _configs(cls)


def _with_fields(text: str, config: type[Config]) -> str:
    """A docstring, and a table of the keys that a part of a recipe has."""
    if issubclass(config, Method) and not config.axis:  # a base of methods, which have the keys
        return text
    phases = getattr(config, "phases", ())
    text += f"\n\nServes {', '.join(phases)}." if phases else ""
    required = {"method", *(name for name, field in config.model_fields.items() if field.is_required())}
    rows = [
        f"| `{name}` | {_values(schema)} | {'required' if name in required else _default(schema['default'])} |"
        for name, schema in config.model_json_schema()["properties"].items()
    ]
    return "\n".join([text, "", "| key | values | default |", "|---|---|---|", *rows])


def _values(schema: dict[str, Any]) -> str:
    """What a JSON schema allows, in words; a part of the recipe with links to what it may be."""
    if "anyOf" in schema:
        return ", or ".join(_values(each) for each in schema["anyOf"])
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        part = next(each for each in _configs(Config) if each.__name__ == name)
        methods = [each for each in _configs(part) if issubclass(each, Method) and each.axis]
        return ", ".join(_link(each) for each in methods or [part])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        items = [*schema.get("prefixItems", []), *([schema["items"]] if "items" in schema else [])]
        return "list of " + " and ".join(_values(each) for each in items)
    limits = [f"{words} {schema[key]}" for key, words in LIMITS.items() if key in schema]
    return ", ".join([TYPES_OF_YAML[schema.get("type")], *limits])


def _link(config: type[Config]) -> str:
    name = config.model_fields["method"].default if issubclass(config, Method) and config.axis else config.__name__
    return f"[`{name}`][{config.__module__}.{config.__qualname__}]"


def _default(value: Any) -> str:
    if isinstance(value, dict):
        return f"`{{method: {value['method']}}}`" if "method" in value else "its own"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"
