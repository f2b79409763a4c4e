import base64
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from models.errors import MalformedOutputError
from models.signature import check_outputs
from models.spec import ModelSpec, TensorSpec
from models.tensor import Array
from shadow.findings import FINDINGS, Finder, Finding, find, named
from shadow.findings.numeric import SINGLE
from shadow.findings.repeats import ANSWERS, Repeats
from shadow.pair import Answer, Status
from tests.models.making import document, tensor

NOTHING: tuple[Finding, ...] = ()
NAN, INF = float("nan"), float("inf")


def answer(**outputs: Array) -> Answer:
    return Answer(status=Status.OK, outputs=outputs)


def found(before: Array, after: Array, rows: int | None = None) -> tuple[Finding, ...]:
    return named(find(answer(y=before), answer(y=after), len(before) if rows is None else rows))


def logits(seed: int, rows: int = 1, classes: int = 10) -> NDArray[np.float32]:
    return (3 * np.random.default_rng(seed).standard_normal((rows, classes))).astype(np.float32)


def probabilities(seed: int, rows: int = 1, classes: int = 10) -> NDArray[np.float32]:
    powers = np.exp(logits(seed, rows, classes) / 2)
    shares: NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def noisy(values: Array, seed: int = 0) -> Array:
    """The same answer, computed in another order."""
    noise = 1 + 3e-7 * np.random.default_rng(seed).standard_normal(values.shape)
    return (values * noise).astype(values.dtype)


def words(*texts: str | bytes) -> Array:
    elements = [text.encode() if isinstance(text, str) else text for text in texts]
    array = np.empty((len(elements), 1), dtype=object)
    array[:, 0] = elements
    return array


def to_half(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values.astype(np.float16).astype(np.float32)


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)


def bare(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """BF16 as numpy shows it."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


# What honest candidates show: nothing


def test_the_bits_are_in_this_order_for_ever() -> None:
    assert [finding.value for finding in FINDINGS] == [
        "missing output",
        "extra output",
        "datatype",
        "shape",
        "encoding",
        "not a number",
        "precision",
        "constant",
    ]
    assert set(FINDINGS) == set(Finding)


@given(chosen=st.sets(st.sampled_from(FINDINGS)), later=st.integers(0, 7))
def test_a_mask_names_its_findings_and_passes_over_bits_of_later_releases(chosen: set[Finding], later: int) -> None:
    mask = sum(1 << FINDINGS.index(finding) for finding in chosen) | later << len(FINDINGS)
    assert set(named(mask)) == chosen


@pytest.mark.parametrize("make", [logits, probabilities])
def test_float_noise_is_no_finding(make: Callable[..., NDArray[np.float32]]) -> None:
    finder = Finder()
    for seed in range(500):
        before = make(seed, rows=1 + seed % 4)
        assert finder.find(answer(y=before), answer(y=noisy(before, seed)), len(before)) == 0


@pytest.mark.parametrize("make", [logits, probabilities])
def test_other_scores_are_no_finding(make: Callable[..., NDArray[np.float32]]) -> None:
    finder = Finder()
    for seed in range(500):
        before, after = make(seed, rows=1 + seed % 4), make(seed + 10_000, rows=1 + seed % 4)
        assert finder.find(answer(y=before), answer(y=after), len(before)) == 0


def test_saturated_scores_are_no_finding() -> None:
    """A sharper candidate answers 0 and 1 exactly, for many pictures alike."""
    finder = Finder()
    for seed in range(300):
        before = probabilities(seed, rows=2)
        after = np.eye(10, dtype=np.float32)[before.argmax(axis=1)]
        assert finder.find(answer(y=before), answer(y=after), 2) == 0


ARRAYS = hnp.arrays(
    dtype=st.sampled_from([np.dtype(name) for name in ("<f2", "<f4", "<f8", "<i8", "<u2", "u1", "?")]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
)
TEXTS = st.lists(st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode)), max_size=8).map(
    lambda elements: words(*elements)
)


@settings(deadline=None, max_examples=300)
@given(before=ARRAYS | TEXTS, after=ARRAYS | TEXTS, rows=st.integers(0, 6))
def test_arrays_of_any_content_are_taken_and_nothing_is_found_against_itself(
    before: Array, after: Array, rows: int
) -> None:
    declared = [TensorSpec(name="y", datatype="BF16", shape=(-1,))]
    for finder in (Finder(), Finder(declared)):
        for _ in range(3):
            assert 0 <= finder.find(answer(y=before), answer(y=after), rows) < 1 << len(FINDINGS)
            assert finder.find(answer(y=before), answer(y=before.copy()), rows) == 0


@settings(deadline=None)
@given(before=ARRAYS, data=st.data())
def test_arrays_of_one_form_and_any_content_are_taken(before: Array, data: st.DataObject) -> None:
    after = data.draw(hnp.arrays(before.dtype, before.shape))
    kept = before.tobytes(), after.tobytes()
    for rows in {len(before) if before.ndim else 1, 1}:
        mask = find(answer(y=before), answer(y=after), rows)
        assert not set(named(mask)) & {Finding.MISSING_OUTPUT, Finding.EXTRA_OUTPUT, Finding.DATATYPE, Finding.SHAPE}
    assert (before.tobytes(), after.tobytes()) == kept


# Schema


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ({"y": logits(1)}, [Finding.MISSING_OUTPUT]),
        ({"y": logits(1), "z": logits(2), "more": logits(3)}, [Finding.EXTRA_OUTPUT]),
        ({"y": logits(1), "Z": logits(2)}, [Finding.MISSING_OUTPUT, Finding.EXTRA_OUTPUT]),
        ({"y": logits(1).astype(np.float64), "z": logits(2)}, [Finding.DATATYPE]),
        ({"y": logits(1).astype(np.int32), "z": logits(2)}, [Finding.DATATYPE]),
        ({"y": words("cat"), "z": logits(2)}, [Finding.DATATYPE]),
        ({"y": logits(1, classes=9), "z": logits(2)}, [Finding.SHAPE]),
        ({"y": logits(1)[0], "z": logits(2)}, [Finding.SHAPE]),
        ({"y": logits(1).astype(np.float64), "z": logits(2, classes=11)}, [Finding.DATATYPE, Finding.SHAPE]),
        ({}, [Finding.MISSING_OUTPUT]),
    ],
)
def test_an_answer_of_another_schema_is_named_by_what_differs(
    outputs: Mapping[str, Array], expected: list[Finding]
) -> None:
    baseline = answer(y=logits(1), z=logits(2))
    assert list(named(find(baseline, Answer(status=Status.OK, outputs=outputs), 1))) == expected


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ({}, Finding.MISSING_OUTPUT),
        ({"y": np.zeros((1, 3), "<f4"), "z": np.zeros(1)}, Finding.EXTRA_OUTPUT),
        ({"y": np.zeros((1, 3), "<f8")}, Finding.DATATYPE),
        ({"y": np.zeros((1, 4), "<f4")}, Finding.SHAPE),
    ],
)
def test_what_the_replica_refused_is_named_by_its_kind(outputs: dict[str, Array], expected: Finding) -> None:
    facts = {**document(outputs=[tensor("y", "FP32", [-1, 3])]), "name": "model", "version": 1}
    with pytest.raises(MalformedOutputError) as caught:
        check_outputs(ModelSpec.from_json(facts), outputs, 1)
    refused = Answer(status=Status.MALFORMED, error=str(caught.value)[:40])
    assert named(find(answer(y=logits(1, classes=3)), refused, 1)) == (expected,)


def test_a_candidate_without_an_answer_shows_no_finding() -> None:
    text = "wrong shape: output 'y'"
    for status in set(Status) - {Status.OK, Status.MALFORMED}:
        assert find(answer(y=logits(1)), Answer(status=status, error=text), 1) == 0
    unknown = Answer(status=Status.MALFORMED, error="AttributeError: 'NoneType' object has no attribute 'encode'")
    assert find(answer(y=logits(1)), unknown, 1) == 0


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.OK])
def test_nothing_is_found_beside_a_baseline_without_an_answer(status: Status) -> None:
    baseline = Answer(status=status, error="wrong shape: output 'y'")
    assert find(baseline, answer(y=logits(1)), 1) == 0
    assert find(baseline, Answer(status=Status.MALFORMED, error="wrong shape: output 'y'"), 1) == 0


def test_sizes_of_variable_axes_may_differ_and_ranks_and_fixed_axes_may_not() -> None:
    finder = Finder([TensorSpec(name="y", datatype="FP32", shape=(-1, -1, 4))])
    boxes = np.zeros((1, 5, 4), np.float32)
    for shape, expected in (((1, 7, 4), 0), ((1, 0, 4), 0), ((1, 5, 3), 1), ((1, 20), 1)):
        mask = finder.find(answer(y=boxes), answer(y=np.zeros(shape, np.float32)), 1)
        assert named(mask) == (Finding.SHAPE,) * expected
    assert found(boxes, np.zeros((1, 7, 4), np.float32)) == (Finding.SHAPE,)


def test_a_nan_is_found_among_boxes_of_another_number() -> None:
    finder = Finder([TensorSpec(name="y", datatype="FP32", shape=(-1, -1))])
    mask = finder.find(answer(y=logits(1)), answer(y=np.full((1, 3), NAN, np.float32)), 1)
    assert named(mask) == (Finding.NOT_A_NUMBER,)


# Encoding

ACCENTS = "une phrase élégante et assez longue"
ENCODED: list[tuple[str, str | bytes, str | bytes]] = [
    ("Latin-1", "zéro", "zéro".encode("latin-1")),
    ("Windows-1252", "œuf", "œuf".encode("cp1252")),
    ("UTF-16", "cat", "cat".encode("utf-16-le")),
    ("UTF-16 with its mark", "cat", "cat".encode("utf-16")),
    ("trailing NULs", "cat", b"cat\0\0"),
    ("a byte order mark", "cat", "\ufeffcat"),
    ("no byte order mark any more", "\ufeffcat", "cat"),
    ("mojibake by Latin-1", "零", "零".encode().decode("latin-1")),
    ("mojibake by Windows-1252", "zéro", "zéro".encode().decode("cp1252")),
    ("into base64", "cat", base64.b64encode(b"cat")),
    ("out of base64", base64.b64encode(b"\xff\xd8\xff\xe0"), b"\xff\xd8\xff\xe0"),
    (
        "the other base64",
        base64.b64encode(bytes(range(200, 256))),
        base64.urlsafe_b64encode(bytes(range(200, 256))).rstrip(b"="),
    ),
    ("other JSON", b'{"a": 1, "b": [2]}', b'{"b":[2],"a":1}'),
    ("JSON with escapes", '"零"', b'"\\u96f6"'),
    ("into JSON", "cat", b'"cat"'),
    ("out of JSON", b'"cat"', "cat"),
    ("another text in Latin-1", ACCENTS, "tout à fait autre chose".encode("latin-1")),
    ("another text as mojibake", ACCENTS, "tout à fait autre chose".encode().decode("latin-1")),
    ("another text with NULs", ACCENTS, b"tout autre\0\0"),
    ("another text with a mark", ACCENTS, "\ufefftout autre"),
]


@pytest.mark.parametrize(
    ("before", "after"), [case[1:] for case in ENCODED], ids=[case[0].replace(" ", "-") for case in ENCODED]
)
def test_text_in_other_bytes_is_a_finding(before: str | bytes, after: str | bytes) -> None:
    assert found(words("same", before), words("same", after)) == (Finding.ENCODING,)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("cat", "dog"),
        ("cat", "Cat"),
        ("zéro", "été"),
        ("", "cat"),
        ("cat", ""),
        (ACCENTS, "tout à fait autre chose"),
        ("Ã©tonnant, mais voulu ainsi", "Ã©tonnant, et voulu"),
        (b"\xff\xd8\xff\xe0", b"\xff\xd8\0"),
        (b"ab", b"\xe9\x01"),
        ("0.1250", "0.1251"),
        ("12", "21"),
        ("grade_C-", "grade_C+"),
        (b'{"a": 1}', b'{"a": 2}'),
        (b"[" * 5000 + b"]" * 5000, b"[" * 5001 + b"]" * 5001),
        (b"[" * 1000 + b"]" * 1000, b"[ " * 1000 + b"]" * 1000),
    ],
)
def test_another_answer_is_no_matter_of_encoding(before: str | bytes, after: str | bytes) -> None:
    assert found(words("same", before), words("same", after)) == NOTHING


def test_text_is_bytes_or_str_alike() -> None:
    assert found(np.array([["cat"]]), words("cat"), 1) == NOTHING
    assert found(np.array([["zéro"]]), words("zéro".encode("latin-1"))) == (Finding.ENCODING,)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", "<i4", "<i8", "<u2"])
def test_numbers_that_agree_only_with_their_bytes_swapped_are_a_finding(dtype: str) -> None:
    before = (100 * np.abs(logits(3, classes=20))).astype(dtype)
    after = noisy(before) if dtype == "<f4" else before
    assert found(before, after.byteswap()) == (Finding.ENCODING,)


def test_swapped_bytes_are_found_though_they_make_nan_and_infinity() -> None:
    before = logits(1)
    before[0, 3] = np.frombuffer(b"\x7f\xc0\x02\x3f", "<f4")[0]  # 0.5098…; swapped, a NaN
    assert np.isnan(before.byteswap()).any()
    assert found(before, before.byteswap()) == (Finding.ENCODING,)


def test_swapped_bytes_of_bare_words_are_found_where_bf16_is_declared() -> None:
    finder = Finder([TensorSpec(name="y", datatype="BF16", shape=(-1, 10))])
    before, other = bare(logits(1)), bare(1.004 * logits(1))
    assert named(finder.find(answer(y=before), answer(y=other.byteswap()), 1)) == (Finding.ENCODING,)
    assert finder.find(answer(y=before), answer(y=other), 1) == 0


def test_numbers_that_read_the_same_both_ways_say_nothing_of_a_swap() -> None:
    before = np.array([0x0101, 0x0202, 0x0303, 0x0404, 5, 6, 7, 0x0505], "<u2")
    assert found(before, before.byteswap(), 1) == (Finding.ENCODING,)


def test_numbers_that_agree_before_their_bytes_are_swapped_are_no_finding() -> None:
    """Their first bytes are as their last, so that they agree afterwards, too."""
    before, after = (
        np.array([(0x3F, low + more, 2 * low, 0x3F) for low in range(1, 13)], "u1").view("<f4").T for more in (0, 1)
    )
    assert found(before, after) == NOTHING


def test_one_small_number_proves_no_swap() -> None:
    assert found(np.array([0x0101, 5], "<u2"), np.array([0x0101, 7], "<u2"), 1) == NOTHING
    assert found(np.array([[1.5]], "<f4"), np.array([[1.5]], "<f4").byteswap()) == NOTHING  # 8 bits


# Not a number


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([1.1, 2.2, 3.3], [1.1, NAN, 3.3], (Finding.NOT_A_NUMBER,)),
        ([1.1, 2.2, 3.3], [1.1, INF, 3.3], (Finding.NOT_A_NUMBER,)),
        ([1.1, -INF, 3.3], [1.1, NAN, 3.3], (Finding.NOT_A_NUMBER,)),
        ([1.1, NAN, 3.3], [1.1, NAN, INF], (Finding.NOT_A_NUMBER,)),
        ([1.1, -INF, 3.3], [-INF, 1.1, 3.4], NOTHING),
        ([1.1, NAN, 3.3], [1.2, NAN, NAN], NOTHING),
        ([NAN, INF, 3.3], [1.2, 2.3, 3.4], NOTHING),
    ],
)
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_not_a_number_is_a_finding_where_the_baseline_has_none(
    before: list[float], after: list[float], expected: tuple[Finding, ...], dtype: str
) -> None:
    assert found(np.array([before], dtype), np.array([after], dtype)) == expected


def test_not_a_number_is_found_in_bf16_where_that_is_declared() -> None:
    finder = Finder([TensorSpec(name="y", datatype="BF16", shape=(-1, 10))])
    broken = bare(logits(1))
    broken[0, 4] = 0x7FC0
    assert named(finder.find(answer(y=bare(logits(1))), answer(y=broken), 1)) == (Finding.NOT_A_NUMBER,)


# Precision

COARSE: list[tuple[str, Callable[[NDArray[np.float32]], Array]]] = [
    ("float16", to_half),
    ("bfloat16", to_bfloat16),
    ("4 decimals", lambda values: np.round(values, 4)),
    ("3 decimals", lambda values: np.round(values, 3)),
    ("2 decimals", lambda values: np.round(values, 2)),
    ("4 decimals by a factor", lambda values: np.rint(values * np.float32(1e4)) * np.float32(1e-4)),
    ("2^-12", lambda values: np.rint(values * 4096) / 4096),
    ("2^-8", lambda values: np.rint(values * 256) / 256),
]


@pytest.mark.parametrize(("how", "round_off"), COARSE, ids=[name for name, _ in COARSE])
@pytest.mark.parametrize("make", [logits, probabilities])
def test_values_on_a_coarser_grid_are_a_finding(
    how: str, round_off: Callable[[NDArray[np.float32]], Array], make: Callable[..., NDArray[np.float32]]
) -> None:
    masks = [found(before := make(seed, rows=2), round_off(noisy(before))) for seed in range(20)]
    assert masks == [(Finding.PRECISION,)] * 20


@pytest.mark.parametrize("scale", [2, 8, 16])
def test_logits_on_few_levels_are_a_finding(scale: int) -> None:
    before = logits(1)
    assert found(before, np.rint(before * scale) / np.float32(scale)) == (Finding.PRECISION,)
    assert found(before, np.round(before, 1)) == (Finding.PRECISION,)


def test_doubles_that_were_singles_are_a_finding() -> None:
    before = np.random.default_rng(1).random((1, 10))
    assert found(before, before.astype(np.float32).astype(np.float64)) == (Finding.PRECISION,)
    assert found(before, before + 1e-12) == NOTHING


def test_halves_that_were_bfloat16_are_a_finding_where_there_are_many() -> None:
    before = probabilities(1, rows=4).astype(np.float16)
    after = to_bfloat16(before.astype(np.float32)).astype(np.float16)
    assert found(before, after) == (Finding.PRECISION,)
    assert found(before[:1], after[:1]) == NOTHING  # 9 values of 3 bits


@pytest.mark.parametrize(("how", "round_off"), COARSE, ids=[name for name, _ in COARSE])
def test_a_grid_that_the_baseline_is_on_too_is_no_loss(
    how: str, round_off: Callable[[NDArray[np.float32]], Array]
) -> None:
    for seed in range(100):
        assert found(round_off(probabilities(seed)), round_off(probabilities(seed + 1000))) == NOTHING


@pytest.mark.parametrize("voters", [7, 30, 50, 255, 900])
def test_shares_of_votes_show_nothing_where_the_baseline_counts_the_same_votes(voters: int) -> None:
    """Of 30 voters, every ninth pair of counts makes whole tenths, some make thirds, and many answers come again."""
    rng, finder = np.random.default_rng(voters), Finder()
    for _ in range(600):
        before, after = (rng.multinomial(voters, [0.3, 0.3, 0.4], size=1) / voters for _ in range(2))
        assert finder.find(answer(y=before.astype(np.float32)), answer(y=after.astype(np.float32)), 1) == 0


def test_halves_in_singles_are_no_loss_where_the_baselines_are_halves_of_another_size() -> None:
    """All halves of 2 and more are multiples of 2^-9."""
    before, after = 0.01 * logits(1), 2 + np.abs(logits(2))
    assert found(to_half(before), to_half(after)) == NOTHING
    assert found(before, to_half(after)) == (Finding.PRECISION,)


def test_float_noise_around_round_values_is_no_loss() -> None:
    """Means of whole pixels are round in one order of summing, and nearly round in another."""
    after = (np.arange(1, 41, dtype=np.float32).reshape(4, 10) * 7 % 41) / 16
    assert found(noisy(after), after) == NOTHING


@pytest.mark.parametrize(
    "after",
    [
        [0, 1, 0, 0, 0.5, 0, 0, 0, 0, 0],
        [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0, 0, 0, 0],
        [0.7, 0.3] + [0] * 8,
        [0.31, 0.42, 0.27] + [0] * 7,
        [5.5, 0.7, 0.3] + [0] * 7,
    ],
    ids=["0-1-and-a-half", "powers-of-two", "two-share-all", "the-last-follows-from-two", "two-near-decimals"],
)
def test_values_that_are_round_by_right_prove_no_loss(after: list[float]) -> None:
    assert found(probabilities(1), np.array([after], np.float32)) == NOTHING


def test_two_classes_prove_no_loss() -> None:
    before = probabilities(1, classes=2)
    assert found(before, np.round(before, 4)) == NOTHING
    many = probabilities(1, rows=8, classes=2)
    assert found(many, np.round(many, 4)) == (Finding.PRECISION,)


def test_precision_is_judged_in_bf16_by_its_own_few_bits() -> None:
    finder = Finder([TensorSpec(name="y", datatype="BF16", shape=(-1, 10))])
    for seed in range(200):
        mask = finder.find(answer(y=bare(probabilities(seed))), answer(y=bare(probabilities(seed + 1000))), 1)
        assert mask == 0


@given(
    before=hnp.arrays(np.float32, (2, 8), elements=st.floats(-8, 8, width=32)),
    after=hnp.arrays(np.float32, (2, 8), elements=st.integers(-64, 64).map(lambda k: k / 8)),
)
@settings(deadline=None)
def test_a_step_of_a_few_bits_over_the_baselines_is_no_loss(
    before: NDArray[np.float32], after: NDArray[np.float32]
) -> None:
    assert Finding.PRECISION not in found(np.rint(before * 4) / np.float32(4), after)


# Constant


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_one_value_all_over_is_a_finding(value: float) -> None:
    assert found(probabilities(1), np.full((1, 10), value, np.float32)) == (Finding.CONSTANT,)


def test_one_share_of_the_votes_for_every_class_is_no_finding() -> None:
    thirds, votes = np.full((1, 3), 1 / 3, np.float32), np.array([[7, 11, 12]], np.float32) / np.float32(30)
    assert found(votes, thirds) == NOTHING
    assert found(probabilities(1, classes=3), thirds) == (Finding.CONSTANT,)


def test_one_row_for_all_is_a_finding() -> None:
    before = probabilities(1, rows=3)
    assert found(before, np.repeat(probabilities(9), 3, axis=0)) == (Finding.CONSTANT,)


def test_equal_parts_of_one_item_are_no_rows() -> None:
    parts = np.repeat(probabilities(9), 3, axis=0)
    parts[:, -1] = parts[:, 0]
    assert found(probabilities(1, rows=3), parts, rows=1) == NOTHING
    assert found(probabilities(1, rows=3), parts, rows=3) == (Finding.CONSTANT,)


def test_the_same_row_for_the_same_picture_is_no_finding() -> None:
    before = np.repeat(probabilities(1), 3, axis=0)
    assert found(noisy(before), np.repeat(probabilities(9), 3, axis=0)) == NOTHING


def test_one_value_beside_a_baseline_that_hardly_varies_is_no_finding() -> None:
    after = np.full((1, 10), 0.1, np.float32)
    assert found(noisy(after), after) == NOTHING
    underflow = np.arange(1, 8, dtype=np.float32)[None] * np.float32(1e-40)
    assert found(underflow, np.zeros_like(underflow)) == NOTHING


def test_the_same_few_scores_are_no_finding() -> None:
    assert found(np.array([[0.3, 0.7]], np.float32), np.array([[0.5, 0.5]], np.float32)) == NOTHING
    assert found(np.array([[0.3], [0.7]], np.float32), np.array([[0.0], [0.0]], np.float32)) == NOTHING
    sure = 1 - np.float32(0.0234567) * np.arange(1, 7, dtype=np.float32)[:, None]
    assert found(sure, np.ones_like(sure)) == found(sure[:3], np.ones((3, 1), np.float32)) == NOTHING


@pytest.mark.parametrize(
    ("before", "expected"),
    [([0, 1, 2, 3, 4, 5, 6, 7], (Finding.CONSTANT,)), ([3, 3, 5, 3, 3, 3, 8, 3], NOTHING)],
    ids=["many-classes", "mostly-one"],
)
def test_one_class_for_all_is_a_finding_where_the_baseline_has_many(
    before: list[int], expected: tuple[Finding, ...]
) -> None:
    assert found(np.array(before, "<i8").reshape(8, 1), np.full((8, 1), 3, "<i8")) == expected
    assert found(words(*map(str, before)), words(*["3"] * 8)) == expected
    pairs = np.array([[1, each] for each in before], "<i8")
    assert found(pairs, np.array([[1, 3]] * 8, "<i8")) == expected


# The same answer to different questions


def marked(finder: Finder, questions: list[int], after: Array) -> list[bool]:
    """For each question, whether answering it so is a finding."""
    constant = 1 << FINDINGS.index(Finding.CONSTANT)
    masks = [
        finder.find(answer(y=noisy(probabilities(seed), at)), answer(y=after), 1) for at, seed in enumerate(questions)
    ]
    assert set(masks) <= {0, constant}
    return [mask == constant for mask in masks]


def test_the_same_answer_is_a_finding_from_the_third_different_question() -> None:
    assert marked(Finder(), [1, 2, 3, 4, 1], probabilities(99)) == [False, False, True, True, True]


def test_the_same_answer_of_two_classes_is_a_finding_and_a_saturated_one_is_none() -> None:
    for share, expected in ((0.314159, True), (6e-8, False), (1 / 3, False)):
        finder, scores = Finder(), np.array([[share, 1 - share]], np.float32)
        masks = [finder.find(answer(y=probabilities(at, classes=2)), answer(y=scores), 1) for at in range(9)]
        assert any(masks) is expected


def test_the_same_answer_to_the_same_questions_is_no_finding() -> None:
    assert not any(marked(Finder(), [1, 2] * 50, probabilities(99)))


def test_requests_of_any_size_are_told_by_their_first_row() -> None:
    finder, after = Finder(), probabilities(99)
    assert marked(finder, [1, 2], after) == [False, False]
    both = np.concatenate([after, probabilities(98)])
    assert named(finder.find(answer(y=probabilities(3, rows=2)), answer(y=both), 2)) == (Finding.CONSTANT,)


def test_an_answer_is_forgotten_when_256_others_have_been_given_since() -> None:
    for others, expected in ((ANSWERS - 1, True), (ANSWERS, False)):
        finder = Finder()
        assert marked(finder, [1, 2], probabilities(99)) == [False, False]
        for seed in range(1000, 1000 + others):
            finder.find(answer(y=probabilities(seed)), answer(y=probabilities(seed + 5000)), 1)
        assert marked(finder, [3], probabilities(99)) == [expected]


def test_an_answer_that_is_given_again_is_remembered_from_then_on() -> None:
    finder, marks = Finder(), []
    for question in (1, 2, 3):
        marks += marked(finder, [question], probabilities(99))
        for seed in range(1000 * question, 1000 * question + 200):
            finder.find(answer(y=probabilities(seed)), answer(y=probabilities(seed + 5000)), 1)
    assert marks == [False, False, True]


def test_the_memory_of_answers_is_bounded() -> None:
    repeats = Repeats(SINGLE)
    for seed in range(3 * ANSWERS):
        repeats.add(probabilities(seed), probabilities(seed + 5000), 1)
        assert len(repeats) <= ANSWERS


def test_outputs_are_remembered_apart() -> None:
    finder, after = Finder(), probabilities(99)
    for seed in (1, 2, 3):
        outputs = {"y": probabilities(seed), "z": probabilities(seed + 10)}
        candidate = answer(y=after, z=probabilities(seed + 20)) if seed != 2 else answer(y=noisy(after), z=after)
        mask = finder.find(answer(**outputs), candidate, 1)
    assert mask == 0


def test_a_function_of_two_answers_remembers_nothing() -> None:
    masks = [find(answer(y=probabilities(seed)), answer(y=probabilities(99)), 1) for seed in range(9)]
    assert masks == [0] * 9


@given(draws=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=40))
@settings(deadline=None)
def test_the_same_requests_in_the_same_order_give_the_same_findings(draws: list[tuple[int, int]]) -> None:
    def masks() -> list[Any]:
        finder = Finder()
        return [finder.find(answer(y=probabilities(q)), answer(y=probabilities(50 + a)), 1) for q, a in draws]

    assert masks() == masks()
