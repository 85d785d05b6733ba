"""How Avro writes whole numbers: zig-zag (0, -1, 1, -2 … as 0, 1, 2, 3 …), then seven bits a byte, the lowest first."""


def signed(number: int) -> int:
    """The number of which this is the zig-zag form."""
    return (number >> 1) ^ -(number & 1)


def zigzag(number: int) -> bytes:
    """A non-negative number as Avro writes it."""
    number, out = 2 * number, bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def sized(data: bytes) -> bytes:
    """Bytes (or text in UTF-8) as Avro writes them: their length, then themselves."""
    return zigzag(len(data)) + data
