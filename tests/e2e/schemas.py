"""Schemas of many kinds, whose documents mostly end by themselves: nested, recursive, enums, patterns, unicode."""


def small(properties, **more):
    """An object that can't be long, so that it ends by itself."""
    return {"type": "object", "properties": properties, "required": list(properties), **more}


SCHEMAS = [
    small({"a": {"type": "integer", "minimum": -5, "maximum": 5}, "b": {"type": "boolean"}}),
    small({"word": {"type": "string", "pattern": "^[a-z]{2,9}$"}, "é\"日": {"const": "ü\n"}}),
    small({"list": {"type": "array", "items": {"enum": [1, "two", None, 3.5]}, "minItems": 1, "maxItems": 4}}),
    small({"deep": small({"er": small({"x": {"type": ["null", "boolean"]}})})}),
    small({"text": {"type": "string", "maxLength": 12}}, additionalProperties=False),
    {"anyOf": [small({"kind": {"const": "a"}}), small({"kind": {"const": "b"}, "n": {"enum": [1, 2]}})]},
    {"$defs": {"t": small({"v": {"enum": [0, 1]}}) | {"properties": {"v": {"enum": [0, 1]}, "t": {"$ref": "#/$defs/t"}}}},
     "$ref": "#/$defs/t"},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"enum": ["x", "y"]}], "items": False, "minItems": 2},
]
