import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow.cells import BUCKETS, Cell, bucket_name, bucket_of, items_by_cell

KIB, MIB = 1 << 10, 1 << 20


@pytest.mark.parametrize(
    ("nbytes", "bucket", "name"),
    [
        (0, 0, "under 1 KiB"),
        (KIB - 1, 0, "under 1 KiB"),
        (KIB, 1, "1 KiB … 4 KiB"),
        (4 * KIB - 1, 1, "1 KiB … 4 KiB"),
        (4 * KIB, 2, "4 KiB … 16 KiB"),
        (256 * KIB, 5, "256 KiB … 1 MiB"),
        (602 * 1000, 5, "256 KiB … 1 MiB"),
        (MIB, 6, "1 MiB … 4 MiB"),
        (5_000_000, 7, "4 MiB … 16 MiB"),
        (64 * MIB - 1, 8, "16 MiB … 64 MiB"),
        (64 * MIB, 9, "64 MiB and more"),
        (1 << 40, 9, "64 MiB and more"),
    ],
)
def test_sizes_fall_into_buckets_of_powers_of_four(nbytes: int, bucket: int, name: str) -> None:
    assert (bucket_of(nbytes), bucket_name(bucket)) == (bucket, name)


@given(small=st.integers(0, 1 << 40), large=st.integers(0, 1 << 40))
def test_what_is_larger_is_in_no_lower_bucket(small: int, large: int) -> None:
    small, large = sorted((small, large))
    assert 0 <= bucket_of(small) <= bucket_of(large) < BUCKETS


def test_the_items_of_a_batch_are_added_up_by_size_and_slice() -> None:
    sizes, rows = [100, 2000, 200, 3000], [1, 2, 3, 4]
    assert items_by_cell(sizes, ["gate", "gate", "gate", ""], rows) == {
        Cell(0, "gate"): 4,
        Cell(1, "gate"): 2,
        Cell(1, ""): 4,
    }
    assert items_by_cell(sizes, (), rows) == {Cell(0, ""): 4, Cell(1, ""): 6}
