# SPDX-License-Identifier: Apache-2.0
"""Arrow's encodings as the values that they stand for."""

import random

import pytest

from patchrec_fast.data.values import cast, is_number, is_text, lists, plain

pa = pytest.importorskip("pyarrow")
compute = pytest.importorskip("pyarrow.compute")

TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()]


class Kept(pa.ExtensionType):
    def __init__(self):
        super().__init__(pa.string(), "patchrec_fast.test")

    def __arrow_ext_serialize__(self):
        return b""


@pytest.mark.parametrize("seed", range(5))
def test_text_of_every_type_and_encoding(seed):
    rng = random.Random(seed)
    values = [rng.choice(["a", "Heat", "é", "", None]) for _ in range(50)]
    plainly = pa.array(values)
    columns = [plainly.cast(pa.binary() if "binary" in str(kind) else kind).cast(kind) for kind in TEXTS]
    columns += [plainly.dictionary_encode(), compute.run_end_encode(plainly), Kept().wrap_array(plainly)]
    known = plainly.dictionary_encode()
    columns.append(pa.DictionaryArray.from_arrays(known.indices, known.dictionary.cast(pa.string_view())))
    for column in columns:
        begin = rng.randrange(10)
        for part in (column, column.slice(begin, 30), pa.chunked_array([column.slice(begin, 5), column.slice(begin)])):
            got = plain(part)
            assert is_text(got.type)
            assert got.to_pylist() == [text.decode() if isinstance(text, bytes) else text for text in _values(part)]


def _values(column):
    return [value.as_py() for value in column]


@pytest.mark.parametrize("kind", [pa.decimal128(9, 3), pa.decimal256(50, 0), pa.decimal32(5, 0), pa.decimal64(9, 2)])
def test_decimals(kind):
    column = plain(pa.array([1, -2, None, 300]).cast(pa.decimal128(20, 0)).cast(kind))
    assert is_number(column.type)
    assert cast(column, pa.int64(), AssertionError).to_pylist() == [1, -2, None, 300]


@pytest.mark.parametrize("bad", range(0, 40, 7))
def test_the_first_that_cannot_be_cast(bad):
    values = [str(number) for number in range(40)]
    for place in (bad, 39):
        values[place] = "x"
    with pytest.raises(ValueError, match=f"place {bad}$"):
        cast(pa.array(values), pa.int64(), lambda place: ValueError(f"place {place}"))


@pytest.mark.parametrize(
    "kind", [pa.list_, pa.large_list, pa.list_view, pa.large_list_view, lambda of: pa.list_(of, 2)]
)
def test_lists_of_every_type(kind):
    values = [[1, 2], [3, 4], [5, 6]]
    column = pa.array(values, kind(pa.int16()))
    assert lists(column).to_pylist() == values
    assert lists(column.slice(1)).to_pylist() == values[1:]
    assert lists(pa.array([1, 2])) is None
