import io
import json
import pickle
import warnings
import zipfile
from typing import Any

import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")

import torch

from models.backends.torch_archive import UnsafeArchiveError, audit
from tests.models.torch_programs import Block, archive, rewrite, rewrite_json, save


@pytest.fixture(scope="module")
def plain() -> bytes:
    return archive(Block(), (torch.zeros(2, 3, 8, 8),))


def test_a_plain_model_passes(plain: bytes) -> None:
    audit(plain)
    audit(rewrite(plain, lambda records: None))


def test_models_with_control_flow_symbols_and_attention_pass() -> None:
    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
            self.norm = torch.nn.LayerNorm(8)

        def forward(self, x: Any) -> dict[str, Any]:
            with torch.no_grad():
                scaled = torch.einsum("bij,bkj->bik", x, x).softmax(-1) @ x
            y = self.norm(self.attention(x, x, x, need_weights=False)[0] + scaled)
            z = torch.nn.functional.interpolate(y.unsqueeze(1), scale_factor=2, mode="bilinear")
            return {"y": y, "flat": z.reshape(x.shape[0], -1), "size": torch.full((x.shape[0],), x.shape[1] // 2)}

    audit(archive(Attention().eval(), (torch.zeros(2, 6, 8),), shapes=({0: "batch", 1: "length"},)))


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        ("torch.os.system", ["echo"]),
        ("torch.hub.load", ["x"]),
        ("torch.load", ["x"]),
        ("torch.ops.load_library", ["x.so"]),
        ("torch.ops.aten.from_file.default", ["/etc/passwd"]),
        ("_operator.methodcaller", ["x"]),
        ("_operator.attrgetter", ["x"]),
        ("math.__loader__.load_module", ["os"]),
        ("#custom:op", []),
        ("torch.ops.aten.relu.default.__class__", []),
    ],
)
def test_an_operator_that_is_no_tensor_operator_is_refused(plain: bytes, target: str, arguments: list[str]) -> None:
    def change(document: Any) -> None:
        document["graph_module"]["graph"]["nodes"][0]["target"] = target
        document["graph_module"]["graph"]["nodes"][0]["inputs"] = [
            {"name": "x", "arg": {"as_string": argument}, "kind": 1} for argument in arguments
        ]

    with pytest.raises(UnsafeArchiveError, match="operator"):
        audit(rewrite_json(plain, "models/model.json", change))


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('x')",
        "s0.__class__",
        "exec(s0)",
        "open(s0)",
        "s0; s1",
        "[s0 for s0 in s1]",
        "s0 @ s1",
        "Symbol('x')",
        "'s0'.y",
    ],
)
def test_an_expression_that_is_no_arithmetic_is_refused(plain: bytes, expression: str) -> None:
    def change(document: Any) -> None:
        document["graph_module"]["graph"]["sym_int_values"]["x"] = {"as_expr": {"expr_str": expression, "hint": None}}

    with pytest.raises(UnsafeArchiveError, match="expression"):
        audit(rewrite_json(plain, "models/model.json", change))


@pytest.mark.parametrize(
    "expression",
    [
        "s0",
        "s77 + 2*u1",
        "Max(1, FloorDiv(s0, 2))",
        "(s0 <= 4) & Ne(s1, 0)",
        "2.5*s0",
        "Symbol('s40', integer=True)",
    ],
)
def test_arithmetic_passes(plain: bytes, expression: str) -> None:
    def change(document: Any) -> None:
        document["graph_module"]["graph"]["sym_int_values"]["x"] = {"as_expr": {"expr_str": expression, "hint": None}}

    audit(rewrite_json(plain, "models/model.json", change))


@pytest.mark.parametrize("name", ["x):\n    import os", 'a", __import__("os").system("x"), "', "a b", "a;b"])
def test_a_name_that_could_become_code_is_refused(plain: bytes, name: str) -> None:
    def rename(document: Any) -> None:
        document["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"] = name

    def key(document: Any) -> None:
        document["graph_module"]["graph"]["tensor_values"][name] = {}

    for change in (rename, key):
        with pytest.raises(UnsafeArchiveError, match="name"):
            audit(rewrite_json(plain, "models/model.json", change))


@pytest.mark.parametrize(
    "guard",
    ["__import__('os')", "L['x'].size()[0].__class__", "L[open('x')].size()[0] == 1", "open(L['x'].size()[0])", "'a'"],
)
def test_a_guard_that_is_no_comparison_of_sizes_is_refused(plain: bytes, guard: str) -> None:
    with pytest.raises(UnsafeArchiveError, match="expression"):
        audit(rewrite_json(plain, "models/model.json", lambda document: document["guards_code"].append(guard)))


@pytest.mark.parametrize(
    "guard", ["L['a'].size()[0] == L['b'].size()[0]", "2 <= L['a'][0].size()[1] and L['a'][0].size()[1] % 2 == 0"]
)
def test_a_comparison_of_sizes_passes(plain: bytes, guard: str) -> None:
    audit(rewrite_json(plain, "models/model.json", lambda document: document["guards_code"].append(guard)))


def test_an_argument_that_could_leave_its_quotes_is_refused(plain: bytes) -> None:
    def change(document: Any) -> None:
        argument = {"name": "x", "arg": {"as_string": "' + open('x') + '"}, "kind": 1}
        document["graph_module"]["graph"]["nodes"][0]["inputs"].append(argument)

    with pytest.raises(UnsafeArchiveError, match="argument"):
        audit(rewrite_json(plain, "models/model.json", change))


def test_a_tree_with_a_key_that_could_become_code_is_refused(plain: bytes) -> None:
    def change(document: Any) -> None:
        spec = [1, {"type": "builtins.dict", "context": json.dumps(["x=open('y')"]), "children_spec": []}]
        document["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps(spec)

    with pytest.raises(UnsafeArchiveError, match="name"):
        audit(rewrite_json(plain, "models/model.json", change))


def test_a_tree_that_imports_a_module_is_refused(plain: bytes) -> None:
    def change(document: Any) -> None:
        spec = [1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]
        document["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps(spec)

    with pytest.raises(UnsafeArchiveError, match=r"tree of type 'collections\.defaultdict'"):
        audit(rewrite_json(plain, "models/model.json", change))


def test_a_pickled_payload_is_refused(plain: bytes) -> None:
    def change(document: Any) -> None:
        next(iter(document["config"].values()))["use_pickle"] = True

    with pytest.raises(UnsafeArchiveError, match="pickled payload"):
        audit(rewrite_json(plain, "model_weights_config.json", change))


@pytest.mark.parametrize("path", ["custom_obj_0", "opaque_obj_0", "../x"])
def test_a_custom_object_is_refused(plain: bytes, path: str) -> None:
    def change(document: Any) -> None:
        document["config"]["x"] = {"path_name": path, "is_param": False, "use_pickle": False, "tensor_meta": None}

    with pytest.raises(UnsafeArchiveError, match="payload"):
        audit(rewrite_json(plain, "model_constants_config.json", change))


def test_example_inputs_that_only_a_real_unpickler_would_load_are_refused(plain: bytes) -> None:
    buffer = io.BytesIO()
    torch.save(print, buffer)

    def change(records: dict[str, bytes]) -> None:
        records[next(name for name in records if name.endswith("sample_inputs/model.pt"))] = buffer.getvalue()

    with pytest.raises(UnsafeArchiveError, match="example inputs"):
        audit(rewrite(plain, change))


@pytest.mark.parametrize("record", ["data/aotinductor/model/x.so", "data/weights/model.pt", "models/other.json", "x"])
def test_a_record_that_plain_models_do_not_have_is_refused(plain: bytes, record: str) -> None:
    def change(records: dict[str, bytes]) -> None:
        folder = next(iter(records)).split("/")[0]
        records[f"{folder}/{record}"] = b""

    with pytest.raises(UnsafeArchiveError, match="record"):
        audit(rewrite(plain, change))


def test_what_is_no_archive_is_refused(plain: bytes) -> None:
    module = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(torch.nn.Linear(2, 2), module)
    for content in (b"", b"PK", plain[:-100], module.getvalue()):
        with pytest.raises(UnsafeArchiveError):
            audit(content)


def test_an_object_among_the_example_inputs_is_refused_before_anything_is_unpickled() -> None:
    content = save(torch.export.export(torch.nn.ReLU(), (torch.zeros(2),)))
    trap = io.BytesIO()
    with zipfile.ZipFile(trap, "w") as target:
        target.writestr("archive/data.pkl", pickle.dumps(Exploit()))
        target.writestr("archive/version", "3\n")

    def change(records: dict[str, bytes]) -> None:
        records[next(name for name in records if name.endswith("sample_inputs/model.pt"))] = trap.getvalue()

    with pytest.raises(UnsafeArchiveError, match="example inputs"):
        audit(rewrite(content, change))
    assert not Exploit.sprung


class Exploit:
    sprung = False

    def __reduce__(self) -> Any:
        return (_spring, ())


def _spring() -> Any:
    Exploit.sprung = True
    return {}
