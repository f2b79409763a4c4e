"""What is kept, what is displaced and forgotten, and that whatever is read back is what was written.

``python -m tests.shadow.test_exemplars FOLDER`` is the part that is killed: it makes FOLDER/<n> for every n tried.
"""

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tensor import DATATYPES, NUMPY_DTYPES, Array, Tensor, from_numpy
from shadow.comparators import DELTA_CAP
from shadow.errors import EvidenceError, ShadowError
from shadow.exemplars import (
    FOLDER,
    Exemplar,
    ExemplarKind,
    Exemplars,
    ExemplarSettings,
    Inventory,
    forget,
    inventory,
    read,
)
from shadow.pair import Answer, Status
from tests.shadow.builders import DEPLOYMENT, bad, ok
from tests.shadow.crash import tour

ROOT = Path(__file__).parents[2]
NOW_S = 1_800_000_000.0
SALT = "salt"


class Clock:
    def __init__(self, at_s: float = NOW_S) -> None:
        self.at_s = at_s

    def __call__(self) -> float:
        return self.at_s


def exemplar(request_id: str = "a", delta: float = 0.5, *, nbytes: int = 64, **changes: Any) -> Exemplar:
    """A request whose inputs are its own, and of this size."""
    pixels = blake2b(request_id.encode(errors="surrogatepass")).digest() * (nbytes // 64 + 1)
    facts: dict[str, Any] = {
        "request_id": request_id,
        "deployment_id": DEPLOYMENT,
        "chain": "router",
        "model": "digits",
        "baseline_version": 1,
        "candidate_version": 2,
        "stage": 0,
        "at_unix_us": round(NOW_S * 1e6),
        "rows": 1,
        "max_delta": delta,
        "inputs": (Tensor("image", "UINT8", (1, nbytes), pixels[:nbytes]),),
        "baseline": ok([0.75, 0.25]),
        "candidate": ok([0.25, 0.75]),
    }
    return Exemplar(**{**facts, **changes})


def keeper(folder: Path, clock: Clock | None = None, salt: str = SALT, **limits: Any) -> Exemplars:
    return Exemplars(folder, ExemplarSettings(**limits), salt, clock or Clock())


def deltas(folder: Path) -> list[float]:
    return [each.max_delta for each in read(folder) if each.kind is ExemplarKind.WORST]


def sampled(folder: Path) -> set[str]:
    return {each.request_id for each in read(folder) if each.kind is ExemplarKind.SAMPLE}


def sizes(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.iterdir()]


def only(folder: Path) -> Path:
    (path,) = (each for each in folder.iterdir() if not each.name.startswith("."))
    return path


def same(left: Exemplar, right: Exemplar) -> bool:
    """Whether two are equal, arrays and all."""
    plain = {each.name for each in fields(Exemplar)} - {"inputs", "baseline", "candidate"}
    return (
        all(getattr(left, name) == getattr(right, name) for name in plain)
        and [replace(each, data=bytes(each.data)) for each in left.inputs]
        == [replace(each, data=bytes(each.data)) for each in right.inputs]
        and _same_answer(left.baseline, right.baseline)
        and _same_answer(left.candidate, right.candidate)
    )


def _same_answer(left: Answer, right: Answer) -> bool:
    if (left.status, left.error) != (right.status, right.error) or (left.outputs is None) != (right.outputs is None):
        return False
    mine, theirs = left.outputs or {}, right.outputs or {}
    return mine.keys() == theirs.keys() and all(_same_array(mine[name], theirs[name]) for name in mine)


def _same_array(left: Array, right: Array) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tolist() == right.tolist()


# Whether anything is kept


def test_nothing_is_kept_unless_it_is_asked_for(tmp_path: Path) -> None:
    exemplars = keeper(tmp_path / FOLDER)
    assert not exemplars.wants(DELTA_CAP, "a")
    exemplars.keep(exemplar())
    exemplars.forget()
    assert list(tmp_path.iterdir()) == []
    assert (exemplars.errors, exemplars.fault) == (0, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("worst", -1),
        ("worst", 2049),
        ("sample", -0.1),
        ("sample", 1.1),
        ("sample", float("nan")),
        ("max_bytes", 0),
        ("max_age_s", 0.0),
        ("max_age_s", float("inf")),
    ],
)
def test_a_wrong_setting_is_named_as_in_the_configuration(field: str, value: float) -> None:
    with pytest.raises(ShadowError, match=rf"mirror\.exemplars\.{field}: expected"):
        ExemplarSettings(**{field: value})  # type: ignore[arg-type]


# Access


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
def test_folder_and_files_are_their_owners_alone_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    folder = tmp_path / DEPLOYMENT / FOLDER
    with umask(mask):
        exemplars = keeper(folder, worst=1, sample=1.0, max_bytes=12_000)
        for number in range(8):
            exemplars.keep(exemplar(str(number), 0.1 + number))
    assert exemplars.fault is None
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert any(path.name.startswith(".below-") for path in folder.iterdir())
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_temporary_is_its_owners_alone_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    sync = os.fsync

    def look(descriptor: int) -> None:
        status = os.fstat(descriptor)
        modes.append((stat.S_ISDIR(status.st_mode), stat.S_IMODE(status.st_mode)))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    with umask(0):
        keeper(tmp_path / FOLDER, worst=1).keep(exemplar())
    assert modes == [(False, 0o600), (True, 0o700)]


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir(mode=0o750)
    before = folder.stat().st_mode
    keeper(folder, worst=1).keep(exemplar())
    assert folder.stat().st_mode == before


# The worst


@given(found=st.lists(st.sampled_from([0.0, 1e-12, 0.1, 0.25, 0.5, 3.0, DELTA_CAP]) | st.floats(0, 100), max_size=10))
@settings(max_examples=25, deadline=None)
def test_the_largest_disagreements_remain_of_equal_ones_the_earlier(
    tmp_path_factory: pytest.TempPathFactory, found: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("rollout") / FOLDER
    exemplars = keeper(folder, worst=3)
    for number, delta in enumerate(found):
        exemplars.keep(exemplar(str(number), delta, at_unix_us=number))
    assert exemplars.fault is None
    disagreements = [number for number, delta in enumerate(found) if delta > 0]
    expected = sorted(disagreements, key=lambda number: (-found[number], number))[:3]
    kept = [int(each.request_id) for each in read(folder)] if disagreements else []
    assert sorted(kept) == sorted(expected)


def test_only_what_would_displace_another_is_wanted(tmp_path: Path) -> None:
    exemplars = keeper(tmp_path / FOLDER, worst=2)
    assert exemplars.wants(1e-9, "a")
    assert not exemplars.wants(0.0, "a")
    assert not exemplars.wants(float("nan"), "a")
    for request_id, delta in (("a", 0.5), ("b", 0.25)):
        exemplars.keep(exemplar(request_id, delta))
    assert not exemplars.wants(0.25, "c")
    assert exemplars.wants(0.26, "c")
    exemplars.keep(exemplar("c", 0.26))
    assert deltas(tmp_path / FOLDER) == [0.26, 0.5]
    assert not exemplars.wants(0.26, "d")


def test_equal_disagreements_of_one_batch_do_not_displace_each_other(tmp_path: Path) -> None:
    exemplars = keeper(tmp_path / FOLDER, worst=2)
    for request_id in "abcd":
        exemplars.keep(exemplar(request_id, DELTA_CAP))
    assert [each.request_id for each in read(tmp_path / FOLDER)] in (["a", "b"], ["b", "a"])


def test_the_same_inputs_are_kept_once_where_they_disagreed_most(tmp_path: Path) -> None:
    exemplars, picture = keeper(tmp_path / FOLDER, worst=3), exemplar("a").inputs
    for request_id, delta in (("a", 0.5), ("b", 0.5), ("c", 0.75), ("d", 0.25)):
        exemplars.keep(exemplar(request_id, delta, inputs=picture))
    exemplars.keep(exemplar("e", 0.1))
    assert [(each.request_id, each.max_delta) for each in read(tmp_path / FOLDER)] == [("e", 0.1), ("c", 0.75)]


@given(st.lists(st.tuples(st.floats(0.01, 100), st.sampled_from([64, 4_000, 9_000, 20_000])), min_size=1, max_size=10))
@settings(max_examples=25, deadline=None)
def test_bytes_are_bounded_and_the_very_worst_that_fits_is_there(
    tmp_path_factory: pytest.TempPathFactory, requests: list[tuple[float, int]]
) -> None:
    folder, most = tmp_path_factory.mktemp("rollout") / FOLDER, 30_000
    exemplars = keeper(folder, worst=100, max_bytes=most)
    for number, (delta, nbytes) in enumerate(requests):
        exemplars.keep(exemplar(str(number), delta, nbytes=nbytes, at_unix_us=number))
        assert sum(sizes(folder)) <= most
    assert max(deltas(folder)) == max(delta for delta, _ in requests)


def test_where_bytes_are_the_bound_what_is_milder_is_not_wanted(tmp_path: Path) -> None:
    exemplars = keeper(tmp_path / FOLDER, worst=100, max_bytes=20_000)
    for number in range(5):
        exemplars.keep(exemplar(str(number), 1 + number, nbytes=6_000))
    assert len(deltas(tmp_path / FOLDER)) == 2
    assert not exemplars.wants(4.0, "x")
    assert exemplars.wants(4.1, "x")


# The sample


@st.composite
def crowds(draw: st.DrawFn) -> tuple[list[tuple[str, int]], list[int], list[bool]]:
    """Requests with their sizes, the order in which they come, and after which of them a router begins anew."""
    ids = draw(st.lists(st.text(max_size=3), min_size=1, max_size=7, unique=True))
    requests = [(each, draw(st.sampled_from([64, 3_000, 7_000]))) for each in ids]
    n = len(ids)
    order = draw(st.permutations(range(n)))
    return requests, order, draw(st.lists(st.booleans(), min_size=n, max_size=n))


@given(crowd=crowds())
@settings(max_examples=20, deadline=None)
def test_the_sample_is_the_lowest_draws_that_fit_in_any_order_and_through_restarts(
    tmp_path_factory: pytest.TempPathFactory, crowd: tuple[list[tuple[str, int]], list[int], list[bool]]
) -> None:
    requests, order, restarts = crowd
    root, most = tmp_path_factory.mktemp("rollout"), 20_000
    every = keeper(root / "all", sample=1.0)
    limited = keeper(root / FOLDER, sample=1.0, max_bytes=most)
    for at, anew in zip(order, restarts, strict=True):
        request_id, nbytes = requests[at]
        every.keep(exemplar(request_id, nbytes=nbytes))
        if limited.wants(0.0, request_id):
            limited.keep(exemplar(request_id, nbytes=nbytes))
        if anew:
            limited = keeper(root / FOLDER, sample=1.0, max_bytes=most)
    expected, size = set(), 0
    for path, each in zip(sorted((root / "all").iterdir()), read(root / "all"), strict=True):  # by their draws
        size += path.stat().st_size
        if size > most:
            break
        expected.add(each.request_id)
    assert sampled(root / FOLDER) == expected
    assert limited.fault is None


def test_the_draw_depends_on_id_and_salt_alone(tmp_path: Path) -> None:
    ids = [f"request-{number}" for number in range(20_000)]
    one, again, other = (keeper(tmp_path, salt=salt, sample=0.1) for salt in ("salt", "salt", "another"))
    drawn = {each for each in ids if one.wants(0.0, each)}
    assert drawn == {each for each in ids if again.wants(DELTA_CAP, each)}
    assert drawn != {each for each in ids if other.wants(0.0, each)}
    assert 0.09 < len(drawn) / len(ids) < 0.11  # five standard deviations
    assert drawn <= {each for each in ids if keeper(tmp_path, sample=0.2).wants(0.0, each)}


def test_a_client_that_repeats_its_id_is_sampled_once(tmp_path: Path) -> None:
    exemplars = keeper(tmp_path / FOLDER, sample=1.0)
    for number in range(3):
        exemplars.keep(exemplar("same", inputs=exemplar(str(number)).inputs, at_unix_us=number))
    (kept,) = read(tmp_path / FOLDER)
    assert kept.at_unix_us == 0


def test_worst_and_sample_have_a_half_each(tmp_path: Path) -> None:
    folder, most = tmp_path / FOLDER, 40_000
    exemplars = keeper(folder, worst=100, sample=1.0, max_bytes=most)
    for number in range(20):
        exemplars.keep(exemplar(str(number), 1.0 + number, nbytes=2_000))
    assert len(deltas(folder)) == len(sampled(folder)) > 1
    assert sum(sizes(folder)) <= most
    assert max(deltas(folder)) == 20.0


# Restarts, other routers, age


def test_what_lies_there_counts_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    for number in range(3):
        keeper(folder, worst=2).keep(exemplar(str(number), 1.0 + number))
    again = keeper(folder, worst=2)
    assert not again.wants(2.0, "x")
    again.keep(exemplar("x", 9.0))
    assert deltas(folder) == [3.0, 9.0]


def test_routers_share_the_bounds(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    routers = [keeper(folder, worst=2) for _ in range(3)]
    for number in range(9):
        routers[number % 3].keep(exemplar(str(number), 1.0 + number, chain=f"router-{number % 3}"))
    assert deltas(folder) == [8.0, 9.0]


def test_what_is_too_old_goes_though_nobody_adds_to_it(tmp_path: Path) -> None:
    folder, clock = tmp_path / FOLDER, Clock()
    exemplars = keeper(folder, clock, worst=5, max_age_s=60.0)
    exemplars.keep(exemplar("old", 5.0))
    clock.at_s += 40
    exemplars.keep(exemplar("young", 0.1, at_unix_us=round(clock.at_s * 1e6)))
    clock.at_s += 30
    exemplars.forget()
    assert [each.request_id for each in read(folder)] == ["young"]
    clock.at_s += 31
    assert keeper(folder, clock, worst=5, max_age_s=60.0).wants(0.01, "x")
    assert list(folder.iterdir()) == []


def test_what_made_room_for_the_mildest_makes_it_wanted_again(tmp_path: Path) -> None:
    exemplars = keeper(tmp_path / FOLDER, worst=1)
    exemplars.keep(exemplar("a", 5.0, at_unix_us=1_000))
    assert not exemplars.wants(1.0, "b")
    exemplars.forget(before_unix_us=1_001)
    assert exemplars.wants(1.0, "b")


def test_forgetting_takes_damaged_files_and_temporaries_along(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    exemplars = keeper(folder, worst=9)
    for number in range(4):
        exemplars.keep(exemplar(str(number), 1.0 + number, at_unix_us=1_000 * number))
    first, second, *_ = sorted(folder.iterdir(), key=lambda path: int(path.name.split("-")[2]))
    first.write_bytes(b"damaged")
    second.rename(folder / f".{second.name}.tmp")
    assert forget(folder, 3_000) == 3
    assert [each.at_unix_us for each in read(folder)] == [3_000]
    assert forget(folder, 3_000) == 0
    assert forget(tmp_path / "nothing", 3_000) == 0


# What is read back


def test_every_datatype_comes_back_as_it_was(tmp_path: Path) -> None:
    samples = {name: np.array([[0, 1], [1, 0]], dtype=dtype) for name, dtype in NUMPY_DTYPES.items()}
    samples |= {"BF16": np.array([[1, 2], [3, 4]], "<u2"), "BYTES": np.array([[b"", b"\0\xff"], [b"x", b"yy"]], object)}
    assert samples.keys() == DATATYPES
    given = exemplar(
        inputs=tuple(from_numpy(name, name, array) for name, array in samples.items()),
        baseline=Answer(status=Status.OK, outputs=samples),
        candidate=Answer(
            status=Status.OK,
            outputs={
                "number": np.array(2.5, np.float32),
                "nothing": np.empty((0, 4), np.int64),
                "every other": np.arange(12, dtype=np.float64).reshape(3, 4)[:, ::2],
                "strange": np.array([1e-45, 3.4e38], np.float32),
            },
        ),
    )
    keeper(tmp_path / FOLDER, worst=1).keep(given)
    (found,) = read(tmp_path / FOLDER)
    assert same(found, given)


def test_infinite_scores_come_back(tmp_path: Path) -> None:
    given = exemplar(candidate=ok([float("nan"), float("inf"), float("-inf")]))
    keeper(tmp_path / FOLDER, worst=1).keep(given)
    (found,) = read(tmp_path / FOLDER)
    assert given.candidate.outputs is not None
    assert found.candidate.outputs is not None
    np.testing.assert_array_equal(found.candidate.outputs["scores"], given.candidate.outputs["scores"])


@given(
    text=st.text(st.characters(exclude_categories=()), max_size=20),
    status=st.sampled_from(Status),
    delta=st.floats(1e-9, DELTA_CAP),
    findings=st.integers(0, 255),
)
@settings(max_examples=25, deadline=None)
def test_whatever_clients_and_models_say_can_be_kept(
    tmp_path_factory: pytest.TempPathFactory, text: str, status: Status, delta: float, findings: int
) -> None:
    folder = tmp_path_factory.mktemp("rollout") / FOLDER
    answer = ok([1.0]) if status is Status.OK else bad(status, text * 50)
    exemplars = keeper(folder, worst=1)
    exemplars.keep(exemplar(text, np.float64(delta), slice=text, candidate=answer, findings=findings, rows=0))
    assert exemplars.fault is None
    (found,) = read(folder)
    assert (found.max_delta, found.findings, found.candidate.status) == (delta, findings, status)
    assert found.request_id == found.slice == text.encode(errors="replace").decode()
    assert found.candidate.error == answer.error.encode(errors="replace").decode()[:200]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rollout") / FOLDER
    keeper(folder, worst=1).keep(exemplar())
    return only(folder)


def test_a_file_cut_anywhere_is_named(written: Path, tmp_path: Path) -> None:
    whole, path = written.read_bytes(), tmp_path / written.name
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(EvidenceError, match=rf"{path.name}: not an exemplar"):
            list(read(tmp_path))


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_changed_byte_is_found_or_changes_nothing(
    written: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(written.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("rollout") / written.name
    path.write_bytes(content)
    try:
        (found,) = read(path.parent)
    except EvidenceError as error:
        assert path.name in str(error)
    else:
        assert same(found, exemplar())


def test_a_change_that_parquet_does_not_notice_is_found_by_its_sha256(written: Path, tmp_path: Path) -> None:
    content, pixels = written.read_bytes(), bytes(exemplar().inputs[0].data)
    assert content.count(pixels) == 1
    (tmp_path / written.name).write_bytes(content.replace(pixels, pixels[:-1] + bytes([pixels[-1] ^ 1])))
    with pytest.raises(EvidenceError, match="its content does not have its sha256"):
        list(read(tmp_path))


@pytest.mark.parametrize(
    ("before", "after"), [("worst-", "sample-"), ("-1800000000000000-", "-1800000000000001-"), (".parquet", "")]
)
def test_a_renamed_file_is_named(written: Path, tmp_path: Path, before: str, after: str) -> None:
    assert before in written.name
    path = tmp_path / written.name.replace(before, after)
    path.write_bytes(written.read_bytes())
    with pytest.raises(EvidenceError, match=path.name):
        list(read(tmp_path))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="nothing: cannot be read: No such file"):
        list(read(tmp_path / "nothing"))


# Faults


def test_a_full_disk_reaches_nobody_and_displaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, clock = tmp_path / FOLDER, Clock()
    exemplars = keeper(folder, clock, worst=1, sample=0.0)
    exemplars.keep(exemplar("a", 1.0))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        exemplars.keep(exemplar("b", 2.0))
    assert exemplars.errors == 1
    assert "No space left on device" in (exemplars.fault or "")
    assert [path.name for path in folder.iterdir()] == [only(folder).name]
    assert deltas(folder) == [1.0]
    assert not exemplars.wants(2.0, "b")
    clock.at_s += 10
    assert exemplars.wants(2.0, "b")
    exemplars.keep(exemplar("b", 2.0))
    assert deltas(folder) == [2.0]
    assert (exemplars.errors, exemplars.fault) == (1, None)


def test_a_folder_that_cannot_be_made_reaches_nobody(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_bytes(b"a file in its place")
    exemplars = keeper(tmp_path / FOLDER, worst=1)
    exemplars.keep(exemplar())
    exemplars.forget(0)
    assert exemplars.errors == 3
    assert exemplars.fault is not None
    assert "Not a directory" in exemplars.fault


def test_one_that_is_larger_than_all_may_be_is_a_fault_that_names_the_setting(tmp_path: Path) -> None:
    exemplars = keeper(tmp_path / FOLDER, worst=1, max_bytes=5_000)
    exemplars.keep(exemplar(nbytes=5_000))
    assert exemplars.fault is not None
    assert "mirror.exemplars.max_bytes: 5000 bytes are left" in exemplars.fault
    assert not (tmp_path / FOLDER).exists()


def test_an_output_that_cannot_be_written_reaches_nobody(tmp_path: Path) -> None:
    exemplars = keeper(tmp_path / FOLDER, worst=1)
    exemplars.keep(exemplar(candidate=Answer(status=Status.OK, outputs={"scores": np.array([1j])})))
    assert exemplars.errors == 1
    assert exemplars.fault is not None


def test_a_temporary_that_was_left_behind_is_not_read_and_goes_in_the_end(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    keeper(folder, worst=9).keep(exemplar("a"))
    left, fresh = (folder / f".{only(folder).name.replace('worst-3', f'worst-{digit}')}.tmp" for digit in "12")
    for path, at_s in ((left, NOW_S - 61), (fresh, NOW_S - 59)):
        path.write_bytes(b"half of it")
        os.utime(path, (at_s, at_s))
    assert [each.request_id for each in read(folder)] == ["a"]
    keeper(folder, worst=9)
    assert not left.exists()
    assert fresh.exists()


# What lies there, and what is missing


def test_an_inventory_counts_what_is_kept_and_what_every_keeper_lost(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    assert inventory(folder) is None
    first, second = keeper(folder, worst=2), keeper(folder, worst=2)
    first.keep(exemplar("a", 0.5))
    assert inventory(folder) == Inventory(worst=1, nbytes=sum(sizes(folder)))
    first.note_lost("router-a", 3, 1)
    second.note_lost("router-b", 4, 0)
    first.note_lost("router-a", 5, 1)
    found = inventory(folder)
    assert found is not None
    assert (found.worst, found.sample, found.dropped, found.errors) == (1, 0, 9, 1)
    assert [each.request_id for each in read(folder)] == ["a"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_nothing_lost_makes_no_file_and_what_is_known_is_not_written_again(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    exemplars = keeper(folder, worst=2)
    exemplars.note_lost("router", 0, 0)
    assert not folder.exists()
    exemplars.note_lost("router", 1, 0)
    path = folder / ".lost-router.json"
    path.unlink()
    exemplars.note_lost("router", 1, 0)
    assert not path.exists()


def test_losses_that_cannot_be_written_are_written_the_next_time(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.touch()  # no folder can be made here
    exemplars = keeper(folder, worst=2)
    exemplars.note_lost("router", 2, 0)
    assert exemplars.fault is not None
    folder.unlink()
    exemplars.note_lost("router", 2, exemplars.errors)
    found = inventory(folder)
    assert found is not None
    assert (found.dropped, found.errors) == (2, exemplars.errors)


def test_damaged_counts_of_what_was_lost_are_named(tmp_path: Path) -> None:
    (tmp_path / ".lost-router.json").write_text('{"dropped": "many"}')
    with pytest.raises(EvidenceError, match=r"\.lost-router\.json: expected counts of what was lost"):
        inventory(tmp_path)


def keep_some(folder: Path) -> None:
    """Keep more than there is room for, one after the other."""
    exemplars = keeper(folder / FOLDER, worst=2, sample=1.0, max_bytes=20_000)
    for number in range(5):
        exemplars.keep(exemplar(str(number), 1.0 + number))
    assert exemplars.fault is None


def test_killed_anywhere_leaves_whole_exemplars_within_bounds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.shadow.test_exemplars", str(tmp_path)]
    tries = int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100).stdout)
    assert tries > 20
    kept = set()
    for number in range(tries):
        folder = tmp_path / str(number) / FOLDER
        names = [each.request_id for each in read(folder)] if folder.exists() else []
        again = keeper(folder, Clock(time.time() + 120), worst=2, sample=1.0, max_bytes=20_000)
        again.keep(exemplar("last", 50.0))
        assert again.fault is None
        assert [path for path in folder.iterdir() if path.name.endswith(".tmp")] == []
        assert len(deltas(folder)) <= 2
        assert sum(sizes(folder)) <= 20_000
        assert max(deltas(folder)) == 50.0
        kept.add(len(names))
    assert {0, 1} < kept


def main(arguments: Sequence[str]) -> None:
    print(tour(Path(arguments[0]), ("shadow/exemplars.py",), 53, keep_some, lambda _: None))


if __name__ == "__main__":
    main(sys.argv[1:])
