"""The pages of runs: what they show, and what nobody gets to see."""

from tests.web.runs import client


def test_an_empty_folder_has_a_page(tmp_path):
    assert client(tmp_path).get("/").status_code == 200
