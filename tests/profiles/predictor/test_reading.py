"""Tables of measured networks: all that is wrong is said at once, and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from profiles.errors import ConfigError, UsageError
from profiles.predictor.reading import read_choices, read_networks

ROWS = "g0,g1,ms,host\n3,wide,1.5,a\n5,,2.5,b\n3,wide,1.6,a\n"


def written(folder: Path, text: str, name: str = "nets.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_csv_is_read(tmp_path):
    networks = read_networks(written(tmp_path, ROWS), ["g0", "g1"], "ms", "host")
    assert networks.choices.names == ("g0", "g1")
    assert networks.choices.levels == (("3", "5"), ("", "wide"))
    assert networks.target.tolist() == [1.5, 2.5, 1.6]
    assert networks.groups.tolist() == [0, 1, 0]


def test_parquet_is_read_as_the_same_csv_is(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    columns = {"g0": [3, 5, 3], "g1": ["wide", None, "wide"], "ms": [1.5, 2.5, 1.6]}
    parquet.write_table(pa.table(columns), tmp_path / "nets.parquet")
    first = read_networks(tmp_path / "nets.parquet", ["g*"], "ms")
    second = read_networks(written(tmp_path, ROWS), ["g*"], "ms")
    assert first.choices == second.choices
    assert first.codes.tolist() == second.codes.tolist()
    assert first.target.tolist() == second.target.tolist()


def test_candidates_need_no_target(tmp_path):
    path = written(tmp_path, "g1,g0\nwide,3\n")
    assert read_choices(path, ["g0", "g1"]) == [("3", "wide")]


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    path = written(tmp_path, "g0,g1,ms\n1,1,x\n1,2,0\n2,1,-3\n2,2,nan\n3,3,\n4,4,inf\n")
    with pytest.raises(ConfigError) as caught:
        read_networks(path, ["g0", "gl", "g0"], "ms", "hots")
    problems = "\n".join(caught.value.problems)
    for said in (
        "gl: there is no such column; did you mean g",
        "hots: there is no such column; there are g0, g1, ms",
        "g0: is named 2 times",
        "ms: row 1 has 'x'",
        "ms: row 2 has '0'",
        "ms: row 3 has '-3'",
        "ms: row 4 has 'nan'",
        "ms: row 5 has nothing",
        "ms: and so have 1 more rows",
    ):
        assert said in problems


def test_the_target_is_no_choice(tmp_path):
    with pytest.raises(ConfigError, match="ms: is among the choices"):
        read_networks(written(tmp_path, ROWS), ["g0", "m*"], "ms")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("nets.csv", "", "no rows"),
        ("nets.csv", "g0,ms\n", "no rows"),
        ("nets.csv", "g0,g0,ms\n1,2,3\n", "g0: 2 columns have this name"),
        ("nets.csv", "g0,ms\n1,2\n1\n", "row 2: 1 values for 2 columns"),
        ("nets.txt", "g0,ms\n1,2\n", "suffix '.txt'"),
        ("nets.parquet", "no parquet", "cannot read"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, name, text, said):
    with pytest.raises(UsageError, match=said):
        read_networks(written(tmp_path, text, name), ["g0"], "ms")


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_networks(tmp_path / "none.csv", ["g0"], "ms")
    (tmp_path / "nets.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot read"):
        read_networks(tmp_path / "nets.csv", ["g0"], "ms")
