import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn import attention
from genjax.nn.packing import Packing, gather_slots, segment_mask

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
    mask = segment_mask(packing.segments)
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
