"""Messages of updates: exact round trips, readable by any safetensors reader, with damage detected."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from forged import FIELDS, forged, update, values
from shepherd.types import ClientUpdate
from shepherd.updates.layout import WireError
from shepherd.updates.wire import Envelope, pack, unpack

ENVELOPE = Envelope("demo", "n-1", "b" * 64, "t" * 64, 2, 2.0)

floats = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(-(2**63), 2**70)
names = st.text(max_size=12).filter(lambda name: name != "__metadata__")
arrays = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
updates = st.builds(
    ClientUpdate,
    client=names,
    round=counts,
    delta=st.dictionaries(names, arrays, max_size=4),
    num_examples=counts,
    num_tokens=counts,
    steps=counts,
    metrics=st.dictionaries(st.text(max_size=8), floats, max_size=4),
    cluster=counts,
)
envelopes = st.builds(Envelope, names, names, names, names, counts, floats)


@given(updates, envelopes)
def test_a_message_round_trips_to_the_last_bit(sent, envelope):
    got, told = unpack(pack(sent, envelope))
    assert told == envelope
    assert got.delta.keys() == sent.delta.keys()
    for name, array in sent.delta.items():
        assert got.delta[name].dtype == np.float32 and got.delta[name].shape == array.shape
        assert got.delta[name].tobytes() == array.tobytes()
    for name in ("client", "round", "num_examples", "num_tokens", "steps", "metrics", "cluster"):
        assert getattr(got, name) == getattr(sent, name)


def test_private_state_is_never_sent():
    secret = np.full(4, 7.25, np.float32)
    data = pack(update(private={"secret-name": secret}), ENVELOPE)
    assert b"secret-name" not in data and secret.tobytes() not in data
    assert unpack(data)[0].private == {}


def test_any_safetensors_reader_opens_a_message():
    tensors = safetensors.numpy.load(pack(update(), ENVELOPE))
    assert tensors.keys() == values().keys()
    for name, array in values().items():
        np.testing.assert_array_equal(tensors[name], array)


def test_equal_updates_are_equal_bytes_for_any_order_of_tensors():
    backwards = update(delta=dict(reversed(values().items())))
    assert pack(backwards, ENVELOPE) == pack(update(), ENVELOPE)


def test_the_bytes_of_a_message_are_those_of_the_first_release():
    sent = update(slots={"q": np.array([True, False])}, metrics={"loss": 2.5, "last_loss": 0.1})
    digests = {dtype: hashlib.sha256(pack(sent, ENVELOPE, dtype)).hexdigest()[:16] for dtype in ("F32", "F16", "BF16")}
    assert digests == {"F32": "71257b44fd17e91e", "F16": "5d052bb4487d46c2", "BF16": "be0edece3ca8bdd9"}


@pytest.mark.parametrize(("dtype", "digits"), [("F16", 11), ("BF16", 8)])
def test_half_precision_is_rounded_to_nearest_and_widened(dtype, digits):
    given_ = np.array([0.0, -0.0, 1.0, 1 / 3, -2 / 3, 1000.5, 6.2e-5], np.float32)
    got = unpack(pack(update(delta={"x": given_}), ENVELOPE, dtype))[0].delta["x"]
    assert got.dtype == np.float32
    mantissa, exponent = np.frexp(given_.astype(np.float64))
    np.testing.assert_array_equal(got, np.ldexp(np.round(mantissa * 2.0**digits) / 2.0**digits, exponent))
    assert np.signbit(got[1])


def test_bfloat16_rounds_ties_to_even_and_keeps_nan():
    # bfloat16 has 7 bits behind the point: 1 + 2⁻⁸ lies between 1 and 1 + 2⁻⁷, 1 + 3·2⁻⁸ between 1 + 2⁻⁷ and 1 + 2⁻⁶.
    given_ = np.array([1 + 2**-8, 1 + 3 * 2**-8, np.inf, -np.inf, 0.0], np.float32)
    given_[4:].view(np.uint32)[:] = 0x7F800001  # a NaN whose only set bit would be rounded away
    got = unpack(pack(update(delta={"x": given_}), ENVELOPE, "BF16"))[0].delta["x"]
    np.testing.assert_array_equal(got[:4], np.array([1.0, 1 + 2**-6, np.inf, -np.inf], np.float32))
    assert np.isnan(got[4])


def test_a_message_written_by_hand_to_the_documented_layout_is_read():
    got, told = unpack(forged())
    assert told == ENVELOPE
    assert got.metrics == FIELDS["metrics"] and got.delta.keys() == values().keys()


def test_a_value_without_a_json_form_is_not_sent():
    with pytest.raises(ValueError, match="not JSON compliant"):
        pack(update(metrics={"loss": float("nan")}), ENVELOPE)


def test_every_single_flipped_bit_of_a_message_is_detected():
    small = update(delta={"q.A": np.ones((1, 2), np.float32)})
    data = pack(small, ENVELOPE)
    for position in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        try:
            got, _ = unpack(bytes(flipped))
        except WireError:
            continue
        # A name, a dtype or a shape of the header is not part of the checksum: the gate compares those.
        assert got.delta.keys() != {"q.A"} or got.delta["q.A"].shape != (1, 2), f"bit {position} changed nothing"


def test_every_truncation_of_a_message_is_detected():
    data = pack(update(), ENVELOPE)
    for length in range(len(data)):
        with pytest.raises(WireError):
            unpack(data[:length])
    with pytest.raises(WireError):
        unpack(data + b"\0")


@given(st.binary(max_size=400))
def test_arbitrary_bytes_raise_a_wire_error_and_nothing_else(data):
    with pytest.raises(WireError):
        unpack(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_arbitrary_json_in_the_header_raises_a_wire_error_and_nothing_else(value):
    raw = json.dumps(value).encode()
    with pytest.raises(WireError):
        unpack(len(raw).to_bytes(8, "little") + raw)


def test_a_shape_that_no_array_can_have_is_refused_although_it_takes_no_bytes():
    for shape in ([2**39, 2**39, 0], [0, 2**20, 2**20]):
        with pytest.raises(WireError, match="larger than any array"):
            unpack(forged({"x": np.zeros(0, np.float32)}, entries={"x": {"shape": shape}}))
    assert unpack(forged({"x": np.zeros((0, 2**39), np.float32)}))[0].delta["x"].shape == (0, 2**39)


def test_a_bool_is_not_a_size():
    one = {"x": np.ones((1, 5), np.float32)}
    assert unpack(forged(one))[0].delta["x"].shape == (1, 5)
    for change in ({"shape": [True, 5]}, {"data_offsets": [False, 20]}):
        with pytest.raises(WireError):
            unpack(forged(one, entries={"x": change}))


def test_a_header_longer_than_its_message_is_an_error():
    with pytest.raises(WireError, match="the header claims 50 bytes, the whole message has 10"):
        unpack((50).to_bytes(8, "little") + b"{}")


def test_a_header_is_not_read_when_it_claims_more_than_its_limit():
    data = forged()
    with pytest.raises(WireError, match="too-large"):
        unpack(data, header_limit=int.from_bytes(data[:8], "little") - 1)
    with pytest.raises(WireError, match="too-large"):
        unpack((2**63).to_bytes(8, "little") + b"{}")
