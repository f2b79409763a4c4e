"""Is a ``torch.export`` archive free of anything that could run code when it is loaded?

``torch.export.load`` of torch 2.13 is not safe on its own, as its documentation says. Read in its source: tensor
subclasses and custom objects are unpickled (``weights_only=False``, ``pickle.loads``); example inputs that
``weights_only=True`` refuses are unpickled without it; compiled libraries in the archive are loaded; symbolic
expressions go through ``sympy.sympify``, which evaluates them; an operator's name is resolved by ``getattr`` from the
``torch``, ``math`` and ``operator`` modules, whatever it names, and called; names and guards become part of Python
source that is then executed; a ``defaultdict`` in a tree's description imports a module of its choice; a file that
is not a present-day archive is tried again as a legacy one. Plain exported models use none of that.

``audit`` admits what plain models consist of and refuses all else, on the very bytes that are loaded afterwards. It
stands behind the sha256, which says that the bytes are those that were approved; the audit is for the bytes
that should not have been.
"""

import io
import json
import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch.export.pt2_archive import PT2ArchiveReader

_MODEL: Final = "models/model.json"
_CONFIGS: Final = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_SAMPLE_INPUTS: Final = "data/sample_inputs/model.pt"
_RECORD: Final = re.compile(
    r"models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt"
    r"|archive_format|archive_version|byteorder|version|\.data/\w+|extra/[\w./-]+"
)
_OPERATOR: Final = re.compile(
    r"torch\.ops\.(aten|prims|torchvision|quantized_decomposed)\.(?!from_file\b)\w+\.\w+"
    r"|torch\.ops\.higher_order\.(cond|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\.sym_(float|int|ite|max|min|not|sqrt|sum)|math\.(ceil|floor|pow|sqrt|trunc)"
    r"|_operator\.(add|and_|eq|floordiv|ge|getitem|gt|le|lt|lshift|mod|mul|ne|neg|not_|or_|pos|pow|rshift|sub|truediv)"
)
_IDENTIFIER: Final = re.compile(r"[^\W\d]\w*")
_SYMBOL: Final = re.compile(r"z?[suf]\d+")
_FUNCTION: Final = re.compile(
    r"CeilDiv|CeilToInt|CleanDiv|FloatPow|FloatTrueDiv|FloorDiv|FloorToInt|Identity|IntTrueDiv|LShift|Mod"
    r"|ModularIndexing|PowByNatural|PythonMod|RShift|RoundDecimal|RoundToInt|ToFloat|TruncToFloat|TruncToInt|Where"
    r"|Add|Float|Integer|Max|Min|Mul|Pow|Rational|Symbol|integer|nonnegative|positive|precision|real"
    r"|And|Eq|Equality|False|Ge|GreaterThan|Gt|Le|LessThan|Lt|Ne|Not|Or|StrictGreaterThan|StrictLessThan|True|Unequality"
    r"|false|true"
)
_QUOTED: Final = re.compile(r"'(z?[suf]\d+|\d+(?:\.\d*)?)'")  # as in Symbol('s0', integer=True)
_EXPRESSION: Final = re.compile(r"(?:\d+\.\d*|[\w\s+*/%(),<>=!&|~-])*")
_NAME: Final = re.compile(r"[\w.]*")
_TEXT: Final = re.compile(r"[^'\"\\\r\n]*")  # an argument of an operator; may end up between quotes in source
_SIZE_OF_INPUT: Final = re.compile(r"L(?:\['\w+'\]|\[\d+\])+\.size\(\)\[\d+\]")  # as guards name a dimension
_GUARD_WORDS: Final = frozenset({"and", "or", "not", "max", "min"})
_TREES: Final = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})
# Kept as data: never looked up, never part of generated source.
_FREE_TEXT: Final = frozenset({"metadata", "torch_version"})


class UnsafeArchiveError(ValueError):
    """Something in the archive that plain exported models do not have."""


def audit(content: bytes) -> None:
    """Refuse an archive that is not made of tensors, plain operators and plain names alone.

    Raises:
        UnsafeArchiveError: naming what was found.
    """
    try:
        reader = PT2ArchiveReader(io.BytesIO(content))
        names = reader.get_file_names()
        for name in names:
            _require(_RECORD.fullmatch(name), "record", name)
        for name in _CONFIGS:
            _audit_payloads(json.loads(reader.read_bytes(name)))
        _audit_node(json.loads(reader.read_bytes(_MODEL)), "")
        _audit_sample_inputs(reader.read_bytes(_SAMPLE_INPUTS) if _SAMPLE_INPUTS in names else b"")
    except (AssertionError, RuntimeError, ValueError, RecursionError) as error:
        if isinstance(error, UnsafeArchiveError):
            raise
        raise UnsafeArchiveError(f"no torch.export archive of torch {torch.__version__}: {error}") from error


def _audit_sample_inputs(content: bytes) -> None:
    """What this load refuses, torch.export.load would unpickle."""
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # the unpickler raises whatever the stream provokes; all of it refuses
        raise UnsafeArchiveError("example inputs that are not plain tensors") from error


def _audit_payloads(config: Mapping[str, Any]) -> None:
    for name, payload in config["config"].items():
        _require(not payload["use_pickle"], "pickled payload", name)
        _require(re.fullmatch(r"(weight|tensor)_\d+", payload["path_name"]), "payload", payload["path_name"])
        _require(_NAME.fullmatch(name), "name", name)


def _audit_node(node: object, key: str) -> None:
    if isinstance(node, dict):
        for name, value in node.items():
            _require(_NAME.fullmatch(name), "name", name)
            if name not in _FREE_TEXT:
                _audit_node(value, name)
    elif isinstance(node, list):
        for value in node:
            _audit_node(value, key)
    elif isinstance(node, str):
        _audit_text(node, key)


def _audit_text(text: str, key: str) -> None:
    if key in ("target", "as_operator"):
        _require(_OPERATOR.fullmatch(text), "operator", text)
    elif key == "expr_str":
        _audit_expression(_QUOTED.sub(r"\1", text), text)
    elif key == "guards_code":
        _audit_expression(_SIZE_OF_INPUT.sub("1", text), text)
    elif key in ("as_string", "as_strings"):
        _require(_TEXT.fullmatch(text), "argument", text)
    elif key in ("in_spec", "out_spec") and text:
        _audit_tree(json.loads(text))
    else:
        _require(_NAME.fullmatch(text), "name", text)


def _audit_expression(reduced: str, text: str) -> None:
    _require(_EXPRESSION.fullmatch(reduced), "expression", text)
    for name in _IDENTIFIER.findall(reduced):
        _require(
            _FUNCTION.fullmatch(name) or _SYMBOL.fullmatch(name) or name in _GUARD_WORDS,
            "expression",
            text,
        )


def _audit_tree(node: object) -> None:
    if isinstance(node, dict):
        _require(node.get("type") in _TREES, "tree of type", str(node.get("type")))
        context = node.get("context")
        _audit_node(json.loads(context) if isinstance(context, str) and context else context, "")
        _audit_tree(node.get("children_spec", []))
    elif isinstance(node, list):
        for value in node:
            _audit_tree(value)


def _require(admitted: object, what: str, found: str) -> None:
    if not admitted:
        raise UnsafeArchiveError(f"{what} {found[:80]!r}: plain exported models have none; refusing to load")
