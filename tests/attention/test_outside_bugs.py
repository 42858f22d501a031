# SPDX-License-Identifier: Apache-2.0
"""What went wrong elsewhere, each with the public thread that tells of it: none of it may happen here."""

import itertools

import numpy as np
import pytest
from support.accuracy import assert_same_bits, check_attention
from support.arrays import LAYOUTS, qkv
from support.forms import padded
from support.guard import guarded

import selfattn
from selfattn import functional

pytestmark = pytest.mark.usefixtures("isa")
LOWEST = np.finfo(np.float32).min

# ---- masks and the softmax ----


def test_nan_and_infinity_at_a_masked_key_stay_there(rng):
    """pytorch#101967: NaN or Inf at a key that the mask hides made every output NaN."""
    query, key, value = qkv(rng, q_len=3, kv_len=4)
    mask = np.array([True, True, False, True])
    expected = selfattn.attention(query, key[:, :, mask], value[:, :, mask])
    for poison in (np.nan, np.inf):
        key[:, :, 2] = value[:, :, 2] = poison
        np.testing.assert_allclose(
            selfattn.attention(query, key, value, mask=mask), expected, rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("q_len", [1, 2, 17, 70])
def test_a_mask_of_nothing_but_false_gives_zeros(rng, q_len):
    """pytorch#103963, pytorch#103749, openvino#35959: rows of which every key is masked were NaN."""
    out = selfattn.attention(*qkv(rng, q_len=q_len, kv_len=33), mask=np.zeros((q_len, 33), bool))
    assert not out.any()


def test_a_window_of_minus_infinities_past_the_first_block(rng):
    """pytorch#127055: an additive sliding window that hid the whole first block of a late row gave NaN."""
    hidden = np.tri(600, k=-10, dtype=bool)
    arrays = qkv(rng, batch=1, heads=1, q_len=600, dim=8)
    check_attention(*arrays, bias=np.where(hidden, -np.inf, 0).astype(np.float32))
    by_mask, by_window = (
        selfattn.attention(*arrays, **o) for o in ({"mask": ~hidden}, {"window": (9, None)})
    )
    assert_same_bits(by_mask, by_window)


@pytest.mark.parametrize("length", [513, 1025, 4097])
def test_a_block_of_keys_wholly_in_the_future(rng, length):
    """sglang#22434: at 4097 tokens a block of keys after all queries of a tile wrote before its row."""
    query, key, value = qkv(rng, batch=1, heads=1, q_len=length, dim=4)
    out = selfattn.attention(query, key, value, causal=True)
    for row in (0, 1, length // 2, length - 1):
        alone = selfattn.attention(query[:, :, [row]], key[:, :, : row + 1], value[:, :, : row + 1])
        assert_same_bits(out[:, :, [row]], alone)


@pytest.mark.parametrize("start", [1, 31, 32, 33, 200])
def test_a_prompt_in_chunks(rng, start):
    """executorch#9105: the last, partial block of a chunk that does not begin at 0 was masked wrongly."""
    query, key, value = qkv(rng, batch=1, q_len=235, dim=8)
    whole = selfattn.attention(query, key, value, causal=True)
    for end in (start + 1, start + 17, 235):
        chunk = query[:, :, start:end], key[:, :, :end], value[:, :, :end]
        assert_same_bits(selfattn.attention(*chunk, causal="bottom_right"), whole[:, :, start:end])


def test_two_lowest_biases_together(rng):
    """pytorch#109517, pytorch#110213: padding and causal masks of the lowest float, added, made rows NaN."""
    query, key, value = qkv(rng, q_len=4)
    bias = np.full((4, 4), LOWEST)
    with np.errstate(over="ignore"):
        out = selfattn.attention(query, key, value, bias=bias + bias)  # -inf: all masked
    assert not out.any()
    bias[:, 0] = 0
    out = selfattn.attention(query, key, value, bias=bias)
    np.testing.assert_allclose(out, np.broadcast_to(value[:, :, :1], out.shape), rtol=1e-6)


FULL = (2, 3, 5, 37)
BROADCAST = [shape for shape in itertools.product(*((size, 1) for size in FULL)) if shape != FULL]


@pytest.mark.parametrize("shape", BROADCAST, ids=str)
def test_masks_of_size_1_with_any_stride(rng, shape):
    """pytorch#128816: a mask whose last dimension is 1, expanded with stride 0, was read beyond its end."""
    arrays = qkv(rng, batch=2, heads=3, q_len=5, kv_len=37, dim=8)
    small = rng.random(shape) < 0.7
    expected = selfattn.attention(*arrays, mask=np.ascontiguousarray(np.broadcast_to(small, FULL)))
    strides = [stride if size > 1 else 1 << 40 for size, stride in zip(shape, small.strides, strict=True)]
    far = np.lib.stride_tricks.as_strided(small, shape, strides)
    for mask in (small, np.broadcast_to(small, FULL), far):
        assert_same_bits(selfattn.attention(*arrays, mask=mask), expected)


@pytest.mark.parametrize("kv_len", [1, 33, 65, 97])
def test_expanded_keys_and_values_with_a_mask(rng, kv_len):
    """pytorch#191937: keys expanded with stride 0, of a length 32 n + 1, with a bool mask: off by 19.5."""
    query, key, value = qkv(rng, batch=3, q_len=7, kv_len=kv_len)
    mask = rng.random((3, 1, 7, kv_len)) < 0.7
    one_key, one_value = (np.broadcast_to(array[:1], array.shape) for array in (key, value))
    expected = selfattn.attention(query, one_key.copy(), one_value.copy(), mask=mask)
    assert_same_bits(selfattn.attention(query, one_key, one_value, mask=mask), expected)


def test_holes_in_the_padding_with_causal(rng):
    """onnxruntime#14363, #18945: 13 heads, 7 words, holes in the padding, causal: off by half."""
    query, key, value = qkv(rng, batch=8, heads=13, q_len=7, dim=37)
    check_attention(query, key, value, mask=np.array([0, 1, 1, 0, 0, 1, 0], bool), causal=True)


def test_a_masked_key_does_not_leak_at_any_score():
    """onnxruntime's MultiHeadAttention adds -10000 to masked scores: a masked key of score 1e5 took all."""
    query, key = np.full((1, 1, 1), 1e5, np.float32), np.array([[[1.0], [0.0]]], np.float32)
    value = np.array([[[777.0], [5.0]]], np.float32)
    out = selfattn.attention(query, key, value, mask=np.array([False, True]), scale=1.0)
    np.testing.assert_array_equal(out, [[[5.0]]])


def test_two_items_of_lengths_2_and_5(rng):
    """onnxruntime-genai#1639: of the lengths [2, 5] the second item's mask was read at the first's stride."""
    query, key, value = qkv(rng, q_len=5)
    out = selfattn.attention(query, key, value, kv_lengths=[2, 5])
    for item, length in enumerate((2, 5)):
        alone = selfattn.attention(query[item], key[item, :, :length], value[item, :, :length])
        assert_same_bits(out[item], alone)


def test_true_selects_and_is_not_1_added(rng):
    """openvino#31630: a bool mask was added to the scores as 0 and 1."""
    query, key, value = qkv(rng, q_len=3, kv_len=2)
    out = selfattn.attention(query, key, value, mask=np.array([True, False]))
    np.testing.assert_array_equal(out, np.broadcast_to(value[:, :, :1], out.shape))


def test_softmax_of_plus_infinity():
    """openvino#35897: beside a score of +inf others were 0 or NaN, by the path taken. Here the row is NaN."""
    query, key = np.zeros((1, 2, 1), np.float32), np.zeros((1, 3, 1), np.float32)
    bias = np.array([[0, np.inf, 1], [0, 1, 2]], np.float32)
    weights = selfattn.attention_weights(query, key, bias=bias)
    np.testing.assert_array_equal(np.isnan(weights), [[[True] * 3, [False] * 3]])


def test_padding_of_nothing_of_all_and_of_trailing_columns(rng):
    """pytorch#27968, #178677, #97111, #86120, #128209: an item of length 0 failed, columns of padding in
    every item shortened the output, and two paths disagreed."""
    query, key, value = qkv(rng, batch=3, q_len=6)
    lengths = np.array([4, 0, 2])
    by_lengths = selfattn.attention(query, key, value, kv_lengths=lengths)
    assert by_lengths.shape == query.shape
    assert not by_lengths[1].any()
    mask = (np.arange(6) < lengths[:, None])[:, None, None]
    assert_same_bits(selfattn.attention(query, key, value, mask=mask), by_lengths)


def test_a_query_of_nan_is_not_silently_zero(rng):
    """pytorch#141128: NaN queries came out as zeros."""
    query, key, value = qkv(rng, q_len=3, kv_len=40)
    assert np.isnan(selfattn.attention(np.full_like(query, np.nan), key, value)).all()


def test_packed_lengths_of_zero(rng):
    """flash-attention#1537: packed lengths [0, 1, 0, 1] raised an error of shapes."""
    query, key, value = (array.swapaxes(0, 1) for array in (a[0] for a in qkv(rng, batch=1, q_len=2)))
    out = selfattn.varlen_attention(query, key, value, [0, 0, 1, 1, 2])
    assert_same_bits(out, value)


# ---- shapes and strides ----


@pytest.mark.parametrize("shape", [(0, 0, 2, 0), (0, 0, 2, 4), (2, 0, 3, 4), (1, 0, 0, 4)])
def test_no_heads_is_an_error_and_not_the_end_of_the_process(shape):
    """pytorch#174939, #141219, #106700, #186237: zero heads divided by zero (SIGFPE) or were let through."""
    with pytest.raises(ValueError, match=r"num_heads=0|head_dim=0"):
        selfattn.attention(*[np.zeros(shape, np.float32)] * 3)


def test_keys_without_heads_for_grouped_queries():
    """pytorch#191325, #128690, #141218: grouped queries over keys of 0 heads divided by zero (SIGFPE)."""
    none = np.zeros((1, 0, 3, 4), np.float32)
    with pytest.raises(ValueError, match="num_kv_heads=0"):
        selfattn.attention(np.zeros((1, 8, 3, 4), np.float32), none, none)


@pytest.mark.parametrize("name", ["batch", "q_len", "kv_len", "value_dim"])
def test_a_dimension_of_zero(rng, name):
    """pytorch#133780, onnxruntime#29719, openvino#37966: a batch or a length of 0 was refused, or crashed."""
    arrays = qkv(rng, **({"batch": 2, "q_len": 3, "kv_len": 4, "value_dim": 5} | {name: 0}))
    out = selfattn.attention(*arrays)
    assert out.shape == (*arrays[0].shape[:3], arrays[2].shape[3])
    assert not out.any() or name == "value_dim"


@pytest.mark.parametrize("argument", [0, 1, 2])
@pytest.mark.parametrize("layout", ["transposed", "every_other"])
def test_an_inner_dimension_that_is_not_contiguous(rng, argument, layout):
    """pytorch#187506, pytorch#112577, ROCm/pytorch#3230: a transposed value or key was read as contiguous."""
    arrays = list(qkv(rng, q_len=5, kv_len=9))
    expected = selfattn.attention(*arrays)
    arrays[argument] = LAYOUTS[layout](arrays[argument])
    assert_same_bits(selfattn.attention(*arrays), expected)


DIMS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 40, 63, 65, 72, 80, 96, 100, 127, 128, 129, 160, 256, 257, 512]


@pytest.mark.parametrize("dim", DIMS)
def test_integers_in_every_head_dim(rng, dim):
    """triton#621, 66RING/tiny-flash-attention#12, llama.cpp#20031: only the first 64 channels counted, or
    those up to a multiple of 16. Scale 0 over 8 keys is a mean of integers, which has no rounding."""
    query, key, value = qkv(rng, batch=1, q_len=3, kv_len=8, dim=dim, value_dim=dim + 1)
    value = np.rint(8 * value)
    out = selfattn.attention(query, key, value, scale=0.0)
    np.testing.assert_array_equal(out, np.broadcast_to(value.mean(axis=2, keepdims=True), out.shape))
    key[:] = 0
    key[:, :, 5, dim - 1] = query[:, :, 0, dim - 1] = 1e3  # the last channel decides
    out = selfattn.attention(query, key, value, scale=1.0)
    np.testing.assert_array_equal(out[:, :, 0], value[:, :, 5])


@pytest.mark.parametrize(
    ("batch", "heads", "q_len", "kv_len", "dim"),
    [(12, 3, 1030, 17, 8), (12, 3, 1030, 1030, 16), (2, 1, 2, 2, 14)],
)
def test_sizes_that_wrote_out_of_bounds(rng, batch, heads, q_len, kv_len, dim):
    """pytorch#156022, pytorch#115253, pytorch#181691: these very sizes wrote beyond a buffer."""
    arrays = qkv(rng, batch=1, heads=heads, q_len=q_len, kv_len=kv_len, dim=dim)
    query, key, value = (np.broadcast_to(array, (batch, *array.shape[1:])) for array in arrays)
    out = guarded(np.full(query.shape, np.nan, np.float32), at_end=True)
    selfattn.attention(query, key, value, out=out)
    assert_same_bits(out, np.broadcast_to(selfattn.attention(*arrays), out.shape))


# ---- arrays ----


@pytest.mark.parametrize("offset", [1, 2, 3, 5])
def test_a_misaligned_memory_map(rng, tmp_path, offset):
    """scikit-learn#21654, #21677, cython#4467, numpy#21116: aligned loads of misaligned memory: SIGSEGV."""
    query, key, value = qkv(rng, q_len=5, kv_len=70)
    file = tmp_path / "array"
    file.write_bytes(b"x" * offset + key.tobytes())
    mapped = np.memmap(file, np.float32, "r", offset, key.shape)
    assert mapped.ctypes.data % 4
    assert_same_bits(selfattn.attention(query, mapped, value), selfattn.attention(query, key, value))


def test_read_only_and_big_endian_arrays(rng):
    """scikit-learn#25172, joblib#1545: read-only memory was refused, other byte orders read as if native."""
    arrays = qkv(rng, q_len=5, kv_len=9)
    expected = selfattn.attention(*arrays)
    swapped = [array.astype(">f4") for array in arrays]
    for array in swapped:
        array.flags.writeable = False
    assert_same_bits(selfattn.attention(*swapped), expected)
    assert_same_bits(functional.rms_norm(swapped[0]), functional.rms_norm(arrays[0]))


def test_an_output_over_an_input(rng):
    """numpy#8440, numpy#31144: an output that overlapped an input read what it had just written."""
    room = rng.standard_normal((1, 2, 60, 8)).astype(np.float32)
    query, out = room[:, :, 10:50], room[:, :, 12:52]
    expected = selfattn.attention(query, query.copy(), query.copy())
    assert_same_bits(selfattn.attention(query, query, query, out=out), expected)


def test_an_output_of_negative_strides_and_fortran_order(rng):
    """numpy#29164: negative strides and order="F" returned memory that nobody had written."""
    arrays = qkv(rng, q_len=5, kv_len=9)
    expected = selfattn.attention(*arrays)
    for order in (LAYOUTS["fortran"], LAYOUTS["negative"]):
        out = order(np.full(expected.shape, np.nan, np.float32))
        assert_same_bits(selfattn.attention(*map(order, arrays), out=out).copy(), expected)


# ---- batches and padding ----


def test_a_sentence_does_not_change_with_its_batch(rng):
    """transformers#2401, #24257, pytorch#109676, CTranslate2#693, #1050, fairseq2#1481: the padding and the
    neighbours in a batch changed numbers, and with them translations."""
    lengths = np.array([3, 16, 1, 40])
    query, key, value = qkv(rng, batch=4, heads=3, q_len=40)
    out, _ = padded(query, key, value, lengths)
    for item, length in enumerate(lengths):
        real = slice(item, item + 1), slice(None), slice(length)
        assert_same_bits(out[real], selfattn.attention(query[real], key[real], value[real]))
