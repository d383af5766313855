import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn import Segments, attention, attention_choices
from genjax.nn.attention.chunked import chunked_attention
from genjax.nn.attention.dispatch import choose_attention, plain_attention
from genjax.nn.attention.kernels import splash_attention
from genjax.nn.packing import Packing, gather_slots
from tests import virtual_devices

GRIDS = [(2, 1, 3), (4, 2, 3), (1, 2, 2), (5, 2, 2), (1, 2, 5)]  # 6, 24, 4, 20 and 10 patches
PACKING = Packing.of(GRIDS, 30)


def test_clips_go_where_the_first_row_has_room():
    """By hand: 24, 20, 10, 6, 4 in rows of 30; 10 fills the second row and 6 the first."""
    assert PACKING.places == ((0, 1, 24), (0, 0, 0), (2, 0, 0), (1, 0, 0), (1, 1, 20))
    assert (PACKING.rows, PACKING.slots) == (3, 2)
    with pytest.raises(ValueError, match="a clip of 24 patches does not fit in a row of 23"):
        Packing.of(GRIDS, 23)
    with pytest.raises(ValueError, match="5 clips need 3 rows of 30 tokens, and there are 2"):
        Packing.of(GRIDS, 30, rows=2)
    with pytest.raises(ValueError, match="slots is 0; a row has place for 1 clip or more"):
        Packing.of(GRIDS, 30, slots=0)


def test_rows_and_slots_can_be_more_than_needed_and_slots_fewer():
    packing = Packing.of(GRIDS[:2], 30, rows=4, slots=3)
    assert packing.segments.shape == (4, 30)
    assert packing.pack_conditions(np.ones((2, 5))).shape == (4, 3, 5)
    assert packing.pack_conditions(np.ones(2)).sum() == 2
    alone = Packing.of(GRIDS[:2], 30, slots=1)
    assert alone.places == ((1, 0, 0), (0, 0, 0)) and np.all(alone.segments <= 0)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_what_is_packed_is_unpacked(array):
    random = np.random.default_rng(0)
    clips = [random.standard_normal((np.prod(grid), 5), np.float32) for grid in GRIDS]
    rows = PACKING.pack([array(clip) for clip in clips])
    assert type(rows) is type(array(clips[0])) and rows.shape == (3, 30, 5)
    for clip, again in zip(clips, PACKING.unpack(rows), strict=True):
        np.testing.assert_array_equal(clip, again)
    padding = PACKING.segments < 0
    assert padding.sum() == 90 - 64 and np.all(np.asarray(rows)[padding] == 0)


def test_tokens_know_their_clip_and_their_place_in_it():
    segments, positions = PACKING.segments, PACKING.positions
    np.testing.assert_array_equal(segments[0], [0] * 24 + [1] * 6)
    np.testing.assert_array_equal(segments[1], [0] * 20 + [1] * 10)
    np.testing.assert_array_equal(segments[2], [0] * 4 + [-1] * 26)
    np.testing.assert_array_equal(positions[0, 24:], [[f, 0, c] for f in (0, 1) for c in range(3)])
    np.testing.assert_array_equal(positions[2, :4, 1:], [[0, 0], [0, 1], [1, 0], [1, 1]])


def test_each_token_has_the_values_of_its_clip():
    values = np.arange(5.0)[:, None] + np.array([0.0, 10.0])
    packed = PACKING.pack_conditions(values)
    np.testing.assert_array_equal(packed[..., 0], [[1, 0], [3, 4], [2, 0]])
    tokens = gather_slots(jnp.asarray(packed), PACKING.segments)
    for clip, of_clip in enumerate(PACKING.unpack(tokens)):
        np.testing.assert_array_equal(of_clip - values[clip], 0)


def test_attention_of_a_packed_clip_is_its_own():
    """Also its gradients, and other clips have none."""
    random = np.random.default_rng(1)
    clips = [
        jnp.asarray(random.standard_normal((3, np.prod(g), 2, 4), np.float32)) for g in GRIDS[:3]
    ]
    packing = Packing.of(GRIDS[:3], 40)
    mask = Segments.of(packing.segments, packing.segments)
    weights = jnp.asarray(random.standard_normal((24, 2, 4), np.float32))

    def loss(clips, packed):
        if not packed:
            return jnp.sum(weights * attention(*(a[None] for a in clips[1]))[0])
        query, key, value = (packing.pack([clip[i] for clip in clips]) for i in range(3))
        return jnp.sum(weights * packing.unpack(attention(query, key, value, mask))[1])

    (alone, expected), (together, found) = (
        jax.jit(jax.value_and_grad(lambda clips, packed=packed: loss(clips, packed)))(clips)
        for packed in (False, True)
    )
    # Sums of 24 numbers, in another order.
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-5)
    assert all(np.all(np.asarray(a) == 0) for a in (found[0], found[2]))
    assert np.abs(expected[1]).max() > 0.1


RANDOM = np.random.default_rng(2)
ROWS = Packing.of([(1, 4, 5), (3, 2, 3), (2, 3, 4), (1, 3, 7)], 48)  # rows of 44 and of 39 tokens
FORMS = {
    "plain": plain_attention,
    "chunked": functools.partial(chunked_attention, chunk=7),
    "forward_mode": functools.partial(chunked_attention, chunk=7, forward_mode=True),
    "splash": functools.partial(splash_attention, interpret=True),
}


def of_numbers(segments, times):
    """Return the mask of segments and times written down by hand, as loops say it."""
    rows, length = segments.shape
    mask = np.zeros((rows, 1, length, length), bool)
    for row, query, key in np.ndindex(rows, length, length):
        mask[row, 0, query, key] = segments[row, query] == segments[row, key] and (
            times is None or times[row, query] >= times[row, key]
        )
    return mask


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ordered", [False, True], ids=["any_time", "not_later"])
def test_segments_are_the_mask_that_they_say(form, ordered):
    """Of outputs and gradients, against plain attention under the mask written down."""
    if form == "splash" and ordered:
        return  # which `attention` does not choose for times
    segments, times = ROWS.segments, ROWS.positions[..., 0] if ordered else None
    numbers = Segments.of(segments, segments, times, times)
    mask = of_numbers(segments, times)
    np.testing.assert_array_equal(numbers.whole, mask)
    assert numbers.shape == mask.shape
    inputs = [jnp.asarray(RANDOM.standard_normal((2, 48, 2, 8), np.float32)) for _ in range(4)]
    weights = inputs.pop() * (segments >= 0)[..., None, None]

    def derivative(form, mask):
        loss = lambda *parts: jnp.sum(weights * form(*parts, mask))
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*inputs)

    found = derivative(FORMS[form], numbers)
    # Sums of at most 48 numbers, in another order.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
        found,
        derivative(plain_attention, jnp.asarray(mask)),
    )


RING = """
import functools
import jax
import numpy as np
from genjax.devices import make_mesh
from genjax.nn import Segments, all_to_all_attention, attention, attention_over_mesh
from genjax.nn import ring_attention
from genjax.nn.attention.dispatch import plain_attention
from tests.nn.test_packing import ROWS, of_numbers

random = np.random.default_rng(0)
inputs = [random.standard_normal((2, 47, 2, 8), np.float32) for _ in range(3)]
segments, frames = ROWS.segments[:, :47], ROWS.positions[:, :47, 0]
real = (segments >= 0)[..., None, None]  # the device adds queries to 47
mesh = make_mesh({"data": 2, "context": 2}, 2)

def derivative(form, mask):
    loss = lambda *parts: (real * form(*parts, mask) ** 2).sum()
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*inputs)

exchange = functools.partial(all_to_all_attention, attention=attention)
for times in (None, frames):
    expected = derivative(plain_attention, of_numbers(segments, times))
    numbers = Segments.of(segments, segments, times, times)
    for form in (ring_attention, functools.partial(ring_attention, forward_mode=True), exchange):
        found = derivative(functools.partial(attention_over_mesh, form, mesh=mesh), numbers)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)
        jax.tree.map(close, found, expected)
print("equal")
"""


@pytest.mark.slow
def test_segments_go_over_devices():
    """By ring and by exchange of heads, on 4 devices, of a length that they do not divide."""
    assert virtual_devices.run(["-c", RING], 4) == "equal\n"


def test_memory_of_a_packed_row_is_linear_in_its_length():
    """By the compiler: twice the tokens take at most twice the bytes, and no mask is among them.

    A dense mask of 32,768 tokens has 1 GiB, and a backward pass has about two such arrays.
    """

    def workspace(length):
        loss = lambda query, key, segments: jnp.sum(
            attention(query, key, key, Segments.of(segments, segments)) ** 2
        )
        tokens = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
        numbers = jax.ShapeDtypeStruct((1, length), jnp.int32)
        with attention_choices() as choices:
            lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(tokens, tokens, numbers)
        assert [choice.form for choice in choices] == ["chunked"]
        return lowered.compile().memory_analysis().temp_size_in_bytes

    short, long = workspace(16_384 + 1024), workspace(2 * (16_384 + 1024))
    assert long < 2.1 * short and long < (2 * (16_384 + 1024)) ** 2


def test_a_tpu_takes_segments_in_its_kernel():
    """But no times, which make chunks; and no GPU's kernel takes either."""
    shape = (1, 4096, 64, 128)
    choose = functools.partial(
        choose_attention, key_shape=shape, dtype=jnp.bfloat16, mask_shape=(1, 1, 4096, 4096)
    )
    assert choose("tpu", shape, segments=True) == "splash"
    assert choose("tpu", shape) == "chunked" == choose("cuda", shape, segments=True)
