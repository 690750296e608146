import pytest

from tether.errors import DataError
from tether.feedback.groups import by_labeler


def test_rows_go_to_their_labelers_in_order():
    rows = [{"labeler": name, "number": i} for i, name in enumerate(["ann", "loves length", "ann"])]
    assert by_labeler(rows) == {"ann": [rows[0], rows[2]], "loves-length": [rows[1]]}


@pytest.mark.parametrize("row", [{}, {"labeler": None}, {"labeler": " "}])
def test_a_row_of_nobody_is_refused(row):
    with pytest.raises(DataError, match=r"row 2: labeler=.* names nobody"):
        by_labeler([{"labeler": "ann"}, row])


def test_two_labelers_of_one_file_are_refused():
    with pytest.raises(DataError, match="'a/b' and 'a b' become one file"):
        by_labeler([{"labeler": "a/b"}, {"labeler": "a b"}])
