from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow.accounting import Account
from shadow.comparators import open_comparator
from shadow.errors import EvidenceError
from shadow.evidence import Evidence
from shadow.pair import Pair
from shadow.rows import SCHEMA, compact, to_table
from shadow.store import (
    GENESIS,
    Head,
    Kind,
    SegmentWriter,
    chains,
    pairs_header,
    read_segments,
    segment_name,
    successor,
    walk_chain,
)
from shadow.sums import sums
from tests.shadow.builders import COMPARATOR, LIMITS, MEASURES, PARAMETERS, header, pairs, simple_pair, write_chain


def test_a_chain_is_numbered_files_each_after_the_one_before(tmp_path: Path) -> None:
    heads = write_chain(tmp_path, [[simple_pair("a")], [simple_pair("b"), simple_pair("c")]])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["router-000001.parquet", "router-000002.parquet"]
    first, second = read_segments(tmp_path)
    assert (first.header().previous, second.header().previous) == (GENESIS, heads[0].sha256)
    assert heads[1] == Head(
        chain="router", segments=2, rows=3, sha256=successor(successor(GENESIS, first.digest), second.digest)
    )
    assert [head for _, head in walk_chain(tmp_path, "router")] == heads


@given(segments=st.lists(st.lists(pairs(), min_size=1, max_size=3), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_what_is_read_back_sums_up_to_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, segments: list[list[Pair]]
) -> None:
    folder = tmp_path_factory.mktemp("evidence")
    write_chain(folder, segments)
    written = to_table([compact(each, COMPARATOR) for some in segments for each in some], COMPARATOR, 0)
    read = [segment.table(SCHEMA) for segment in read_segments(folder)]
    assert [row for table in read for row in map(repr, table.to_pylist())] == list(map(repr, written.to_pylist()))
    assert sum((sums(table, LIMITS, MEASURES) for table in read), Evidence()) == sums(written, LIMITS, MEASURES)


def test_a_segment_carries_limits_and_account(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, header())
    account = Account(sampled=3, mirrored=1, pending=2)
    writer.write(to_table([compact(simple_pair(), COMPARATOR)], COMPARATOR, 0), account)
    (segment,) = read_segments(tmp_path)
    assert (segment.header().limits, segment.header().account) == (LIMITS, account)


def test_a_writer_goes_on_where_the_chain_ends(tmp_path: Path) -> None:
    (before,) = write_chain(tmp_path, [[simple_pair("a")]])
    writer = SegmentWriter(tmp_path, header())
    assert writer.head == before
    after = writer.write(to_table([compact(simple_pair("b"), COMPARATOR)], COMPARATOR, 1))
    assert (after.segments, after.rows) == (2, 2)
    assert [head for _, head in walk_chain(tmp_path, "router")] == [before, after]


def test_a_write_that_fails_leaves_the_chain_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    (before,) = write_chain(folder, [[simple_pair("a")]])
    writer = SegmentWriter(folder, header())
    table = to_table([compact(simple_pair("b"), COMPARATOR)], COMPARATOR, 1)
    blocker = folder / f".{segment_name('router', 2)}.tmp"
    blocker.mkdir()
    with pytest.raises(OSError, match="directory"):
        writer.write(table)
    assert writer.head == before
    blocker.rmdir()
    assert writer.write(table).segments == 2
    assert chains(folder) == {"router": 2}


def test_a_missing_segment_is_named(tmp_path: Path) -> None:
    write_chain(tmp_path, [[simple_pair("a")], [simple_pair("b")], [simple_pair("c")]])
    (tmp_path / segment_name("router", 2)).unlink()
    with pytest.raises(EvidenceError, match=r"router-000002\.parquet: cannot be read: No such file"):
        list(walk_chain(tmp_path, "router"))


def test_a_renamed_segment_is_not_taken_for_another(tmp_path: Path) -> None:
    write_chain(tmp_path, [[simple_pair("a")]])
    (tmp_path / segment_name("router", 1)).rename(tmp_path / segment_name("other", 1))
    with pytest.raises(EvidenceError, match="it is segment 1 of chain router"):
        list(walk_chain(tmp_path, "other"))


def test_chains_with_dashes_and_numbers_in_their_names_are_told_apart(tmp_path: Path) -> None:
    for chain in ("router", "router-000001", "router-2"):
        write_chain(tmp_path, [[simple_pair("a")]], chain)
    assert chains(tmp_path) == {"router": 1, "router-000001": 1, "router-2": 1}


@pytest.mark.parametrize("chain", ["", "../up", "a/b", ".hidden", "a b"])
def test_a_chain_needs_a_name_fit_for_a_file(tmp_path: Path, chain: str) -> None:
    with pytest.raises(EvidenceError, match="chain: expected letters"):
        SegmentWriter(tmp_path, header(chain))


def test_no_folder_is_no_evidence(tmp_path: Path) -> None:
    assert chains(tmp_path / "nothing") == {}
    assert list(read_segments(tmp_path / "nothing")) == []


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / segment_name("router", 1)).write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(EvidenceError, match=r"router-000001\.parquet: not a segment of evidence"):
        list(walk_chain(tmp_path, "router"))


def test_a_segment_says_what_its_rows_were_compared_with(tmp_path: Path) -> None:
    write_chain(tmp_path, [[simple_pair("a")]])
    (segment,) = read_segments(tmp_path)
    found = segment.header()
    again = open_comparator(found.comparator, found.output, found.parameters)
    assert (found.parameters, found.measures) == (PARAMETERS, again.measures)


def test_evidence_of_another_format_is_refused_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr("shadow.store.FORMAT", 1)
        write_chain(tmp_path, [[simple_pair("a")]])
    with pytest.raises(EvidenceError, match=r"000001\.parquet: .* written in format 1; this release reads format 2"):
        list(walk_chain(tmp_path, "router"))


def test_a_measure_without_room_between_its_ends_is_a_damaged_header(tmp_path: Path) -> None:
    write_chain(tmp_path, [[simple_pair("a")]])
    path = tmp_path / segment_name("router", 1)
    table = pq.read_table(path)
    forged = (table.schema.metadata or {})[b"understudy"].replace(b'"high":10.0', b'"high":-1.0')
    pq.write_table(table.replace_schema_metadata({b"understudy": forged}), path)
    with pytest.raises(EvidenceError, match="not a segment of evidence: comparator: measure 'kl_divergence'"):
        list(walk_chain(tmp_path, "router"))


def test_how_pairs_were_compared_is_told_by_any_segment_of_pairs(tmp_path: Path) -> None:
    assert pairs_header(tmp_path) is None
    SegmentWriter(tmp_path, header("a", kind=Kind.LABELS)).write(SCHEMA.empty_table())
    assert pairs_header(tmp_path) is None
    write_chain(tmp_path, [[simple_pair("a")]], "b")
    found = pairs_header(tmp_path)
    assert found is not None
    assert (found.chain, found.comparator, found.measures) == ("b", "classification", MEASURES)
