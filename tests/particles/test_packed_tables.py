"""Tables of metadata: packed so that equal ones pickle alike, and guarded."""

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest

from sklearn_cryoem.particles.tables import guarded, pack_table, unpack_table


@pytest.fixture
def mixed():
    return pd.DataFrame(
        {
            "number": [1.5, np.nan, -3.0, 0.0],
            "count": np.array([1, 2, 3, 2**62]),
            "small": np.array([1, 2, 3, 4], dtype=np.uint32),
            "flag": [True, False, True, True],
            "text": ["a", "bé", "", "a"],
            "gap": ["x", None, "y", None],
        }
    )


def test_packing_is_undone_exactly(mixed):
    unpacked = unpack_table(pack_table(mixed))
    pd.testing.assert_frame_equal(unpacked.drop(columns="gap"), mixed.drop(columns="gap"))
    assert unpacked["gap"].isna().tolist() == [False, True, False, True]
    assert unpacked["gap"].dropna().tolist() == ["x", "y"]
    odd = pd.DataFrame({"things": [(1, 2), "text", None]}, dtype=object)
    pd.testing.assert_frame_equal(unpack_table(pack_table(odd)), odd)


def test_tables_without_columns_or_rows_pack_too(mixed):
    assert unpack_table(pack_table(None)) is None
    assert unpack_table(pack_table(pd.DataFrame(index=range(3)))).shape == (3, 0)
    pd.testing.assert_frame_equal(unpack_table(pack_table(mixed[:0])), mixed[:0])


def test_equal_tables_pack_to_equal_bytes(mixed):
    taken = pd.concat([mixed, mixed]).iloc[[4, 1, 6, 3]].reset_index(drop=True)
    assert pickle.dumps(pack_table(taken)) == pickle.dumps(pack_table(mixed.copy()))


def test_the_layout_of_a_table_does_not_show_in_its_hash():
    numbers = np.arange(12.0).reshape(4, 3)
    by_rows = pd.DataFrame(numbers, columns=list("abc"), copy=False)
    by_columns = pd.DataFrame({name: numbers[:, place].copy() for place, name in enumerate("abc")})
    assert joblib.hash(pack_table(by_rows)) == joblib.hash(pack_table(by_columns))


def test_a_guarded_table_shields_its_original(mixed):
    shield = guarded(mixed)
    shield.loc[0, "number"] = 99.0
    shield["new"] = 1
    assert mixed["number"][0] == 1.5
    assert "new" not in mixed
