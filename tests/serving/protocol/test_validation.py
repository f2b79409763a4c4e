import pytest

from models.spec import ModelSpec, TensorSpec
from models.tensor import Tensor
from serving.errors import InvalidArgumentError
from serving.protocol.messages import InferRequest, RequestedOutput
from serving.protocol.validation import Signature


def signature(*inputs: TensorSpec, max_batch_size: int = 0) -> Signature:
    return Signature(
        ModelSpec(
            name="m",
            version=1,
            backend="onnxruntime",
            artifact="model.onnx",
            sha256="0" * 64,
            max_batch_size=max_batch_size,
            inputs=inputs,
            outputs=(TensorSpec(name="OUT", datatype="FP32", shape=(-1, 2)),),
        )
    )


def declared(name: str = "IN", datatype: str = "FP32", *, shape: tuple[int, ...] = (-1, 2)) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def request(*tensors: Tensor) -> InferRequest:
    return InferRequest(model="m", inputs={tensor.name: tensor for tensor in tensors})


def tensor(name: str = "IN", datatype: str = "FP32", *, shape: tuple[int, ...] = (1, 2)) -> Tensor:
    return Tensor(name, datatype, shape, b"")


def test_a_fitting_request_passes() -> None:
    one = signature(declared(), max_batch_size=4)
    for rows in (1, 4):
        one.check(request(tensor(shape=(rows, 2))), [RequestedOutput(name="OUT")])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"missing 'IN'"),
        ([tensor("other"), tensor("more")], r"unknown 'more', 'other'; missing 'IN'"),
        ([tensor(datatype="INT32")], r"'IN' of model 'm': expected FP32 .* got INT32"),
        ([tensor(shape=(1, 3))], r"expected FP32 of shape \[-1, 2\] .* got FP32 of shape \[1, 3\]"),
        ([tensor(shape=(2,))], r"got FP32 of shape \[2\]"),
        ([tensor(shape=(1, 2, 1))], r"got FP32 of shape \[1, 2, 1\]"),
        ([tensor(shape=(0, 2))], r"a batch of 1 to 4, got 0"),
        ([tensor(shape=(5, 2))], r"a batch of 1 to 4, got 5"),
    ],
)
def test_what_does_not_fit_is_named(given: list[Tensor], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        signature(declared(), max_batch_size=4).check(request(*given), [])


def test_inputs_share_one_batch_size() -> None:
    both = signature(declared("a"), declared("b"), max_batch_size=4)
    both.check(request(tensor("a", shape=(3, 2)), tensor("b", shape=(3, 2))), [])
    with pytest.raises(InvalidArgumentError, match=r"differ in batch size: \[1, 3\]"):
        both.check(request(tensor("a", shape=(3, 2)), tensor("b", shape=(1, 2))), [])


def test_without_a_batch_dimension_sizes_are_free() -> None:
    both = signature(declared("a"), declared("b", shape=()))
    both.check(request(tensor("a", shape=(99, 2)), tensor("b", shape=())), [])


def test_an_unknown_output_is_named_with_those_that_exist() -> None:
    with pytest.raises(InvalidArgumentError, match="'m' has no output 'x'; it has 'OUT'"):
        signature(declared()).check(request(tensor()), [RequestedOutput(name="OUT"), RequestedOutput(name="x")])


def test_a_raw_body_s_variable_dimension_follows_from_its_size() -> None:
    assert signature(declared(shape=(3, -1))).raw_input(memoryview(bytes(24))).shape == (3, 2)
    assert signature(declared(shape=(-1, 3, -1)), max_batch_size=8).raw_input(memoryview(bytes(24))).shape == (1, 3, 2)
    assert signature(declared(datatype="BF16", shape=(-1,))).raw_input(memoryview(bytes(6))).shape == (3,)


def test_a_raw_body_with_two_variable_dimensions_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="variable dimensions"):
        signature(declared(shape=(-1, -1))).raw_input(memoryview(bytes(8)))


@pytest.mark.parametrize("size", [1, 4, 7, 12])
def test_a_raw_body_of_a_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(InvalidArgumentError, match="'IN'"):
        signature(declared(shape=(2,))).raw_input(memoryview(bytes(size)))


def test_a_raw_body_of_bytes_must_be_a_single_element() -> None:
    wire = signature(declared(datatype="BYTES", shape=(-1, 1)), max_batch_size=2).raw_input(memoryview(b"abc"))
    assert (wire.shape, bytes(wire.data)) == ((1, 1), b"\x03\x00\x00\x00abc")
    with pytest.raises(InvalidArgumentError, match="BYTES"):
        signature(declared(datatype="BYTES", shape=(2,))).raw_input(memoryview(b"abc"))
