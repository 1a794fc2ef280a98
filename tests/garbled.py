"""Saved states whose digest is right and whose fields are not."""

import hashlib
import json
import struct

from hypothesis import strategies as st

from levsketch.streaming import serialize

GARBAGE = st.one_of(
    st.sampled_from([None, True, False, 0.0, -0.0, 0.5, 1.0, -1.0, 1e-320, 1e308, 2.0**63]),
    st.sampled_from([float("nan"), float("inf"), float("-inf"), 2**31, 2**63, -(2**63), 10**400]),
    # no st.integers: it mixes in constants of whatever modules are imported by then
    st.sampled_from([*range(-3, 20), 99, 100, 511, 512, 1023, 1024, 1025, 1699, 1700]),
    st.sampled_from(["", "a", "auto", "exact", "softmax", "f8", "float32", "é\0", "closure"]),
    st.sampled_from([[], [0], [4, 1], [1, 0], [0, 1], [2, 2], [3, -1], [[0, 5]], [0.0, 1.0]]),
    st.sampled_from([{}, {"p": 1}, {"": 2**70}, [{}], [["ams", {}]], ["exact", {}]]),
)


def pack_nan(kind, whole, arrays):
    """Pack like ``serialize.pack``, which refuses NaN in metadata, but with it."""
    data = serialize.pack(kind, {}, arrays)
    size = struct.unpack_from("<8sIQ", data)[2]
    header = json.loads(data[20 : 20 + size]) | {"meta": whole}
    raw = json.dumps(header).encode()
    body = data[:12] + struct.pack("<Q", len(raw)) + raw + data[20 + size : -32]
    return body + hashlib.sha256(body).digest()


def holders(whole):
    """Return every dictionary of metadata, however deep."""
    found, queue = [], [whole]
    while queue:
        holder = queue.pop(0)
        inner = holder
        if isinstance(holder, dict):
            inner = holder.values()
            found += [holder] if holder else []
        queue += [part for part in inner if isinstance(part, (dict, list))]
    return found
