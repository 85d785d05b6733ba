import io

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyheed.broker.packets.avro_numbers import signed, sized, zigzag


@given(st.integers(0, 2**63 - 1))
def test_numbers_are_written_as_fastavro_writes_them(number: int) -> None:
    assert zigzag(number) == _as_fastavro("long", number)


@given(st.binary(max_size=300))
def test_bytes_are_written_as_fastavro_writes_them(data: bytes) -> None:
    assert sized(data) == _as_fastavro("bytes", data)


@pytest.mark.parametrize(
    ("form", "number"), [(0, 0), (1, -1), (2, 1), (3, -2), (2**64 - 2, 2**63 - 1), (2**64 - 1, -(2**63))]
)
def test_zig_zag_takes_turns_between_signs(form: int, number: int) -> None:
    assert signed(form) == number


def _as_fastavro(kind: str, value: object) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, {"type": kind}, value)  # type: ignore[arg-type]
    return out.getvalue()
