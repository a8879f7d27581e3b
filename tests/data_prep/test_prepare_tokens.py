"""Arrow text to tokens, against the plain loop: every array type, slices, chunks, nulls, NULs."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import tokens
from data_prep.tokens import InvalidText, check_text, encode, is_text, text_chunks

TYPES = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "binary_view": pa.binary_view(),
}
TEXT = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.just("\0")), max_size=20)
ROWS = st.lists(st.one_of(st.none(), TEXT), max_size=30)


def make_array(rows: list[str | None], kind: pa.DataType) -> pa.Array:
    text = pa.array(rows, pa.large_string())
    return text.cast(pa.large_binary()).cast(kind) if "binary" in str(kind) else text.cast(kind)


def encode_all(array: pa.Array) -> tuple[np.ndarray, list[int]]:
    """Tokens, and [documents, documents with NUL, nulls]."""
    encoded = []
    for chunk in text_chunks(array):
        check_text(chunk)
        encoded.append(encode(chunk))
    counts = [(e.documents, e.documents_with_nul, e.null_documents) for e in encoded]
    arrays = [np.empty(0, np.uint8), *(e.tokens for e in encoded)]
    return np.concatenate(arrays), np.sum([(0, 0, 0), *counts], axis=0).tolist()


@pytest.mark.parametrize("name", TYPES)
@given(rows=ROWS, cut=st.tuples(st.integers(0, 8), st.integers(0, 8)), dictionary=st.booleans())
def test_tokens_equal_the_plain_loop(naive_tokens, name, rows, cut, dictionary):
    array = make_array(rows, TYPES[name])
    if dictionary and "view" not in name:
        array = array.dictionary_encode()
    stop = max(len(rows) - cut[1], 0)
    array, rows = array.slice(cut[0], max(stop - cut[0], 0)), rows[cut[0] : stop]
    documents = [row for row in rows if row is not None]

    result, counts = encode_all(array)

    assert result.dtype == np.uint8
    assert np.array_equal(result, naive_tokens(documents))
    assert counts == [
        len(documents),
        sum("\0" in text for text in documents),
        len(rows) - len(documents),
    ]


@given(rows=ROWS, chunk=st.integers(1, 40), name=st.sampled_from(sorted(TYPES)))
def test_chunks_are_bounded_and_lose_nothing(naive_tokens, rows, chunk, name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "CHUNK_BYTES", max(chunk, 8))
        patch.setattr(tokens, "CHUNK_ROWS", 3)
        array = make_array(rows, TYPES[name])
        chunks = list(text_chunks(array))
        result, _ = encode_all(array)
    assert [value for part in chunks for value in part.to_pylist()] == rows
    for part in chunks:
        size = sum(len((value or "").encode()) for value in part.to_pylist())
        assert len(part) == 1 or size <= max(chunk, 8)
    assert np.array_equal(result, naive_tokens([row for row in rows if row is not None]))


def test_a_nul_alone_an_empty_document_and_an_all_null_column():
    assert encode(pa.array(["\0"])).tokens.tolist() == [0, 0]
    assert encode(pa.array(["\0"])).documents_with_nul == 1
    assert encode(pa.array(["", ""])).tokens.tolist() == [0, 0]
    assert encode(pa.array(["", ""])).documents_with_nul == 0
    nulls = encode(pa.array([None, None], pa.string()))
    assert (nulls.tokens.tolist(), nulls.documents, nulls.null_documents) == ([], 0, 2)


@pytest.mark.parametrize("name", ["string", "large_string"])
@pytest.mark.parametrize(
    ("document", "byte"),
    [(b"ab\xff", 2), (b"\xe2\x82", 0), (b"a\xed\xa0\x80", 1), (b"\xc0\x80", 0)],
)
def test_invalid_text_is_found_where_it_is(name, document, byte):
    view = {"string": pa.binary(), "large_string": pa.large_binary()}[name]
    array = pa.array([b"left out", b"fine", None, document, b"\xff"], view).view(TYPES[name])
    with pytest.raises(InvalidText) as caught:
        check_text(array.slice(1))
    assert (caught.value.row, caught.value.byte) == (2, byte)


def test_a_character_cut_in_two_by_a_document_boundary_is_invalid():
    with pytest.raises(InvalidText):
        check_text(pa.array([b"\xe2\x82", b"\xac"]).view(pa.string()))


def test_offsets_outside_the_data_are_refused():
    offsets = pa.py_buffer(np.array([0, 900, 4], np.int32))
    array = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"abcd")])
    with pytest.raises(pa.ArrowInvalid):
        check_text(array)


def test_which_types_are_text():
    texts = [*TYPES.values(), pa.dictionary(pa.int8(), pa.string())]
    others = [pa.int64(), pa.list_(pa.string()), pa.null(), pa.dictionary(pa.int8(), pa.int8())]
    assert [is_text(kind) for kind in texts + others] == [True] * 7 + [False] * 4
