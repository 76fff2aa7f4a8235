"""The Internet checksum (RFC 1071), which IPv4, ICMP, TCP and UDP share."""

from __future__ import annotations


def internet_checksum(data: bytes | memoryview) -> int:
    """The 16-bit ones' complement of the ones' complement sum of all words.

    Args:
        data: Any number of bytes. An odd last byte is padded with a zero byte.

    Returns:
        0 to 65535. Summed with the words of `data` in ones' complement, it gives zero.
    """
    number = int.from_bytes(data, "big") << 8 * (len(data) % 2)
    # The sum is the number modulo 65535 (section 2). A remainder of 0 stands for 65535 unless every word is 0.
    total = number % 0xFFFF or (0xFFFF if number else 0)
    return ~total & 0xFFFF


def changed_checksum(checksum: bytes | memoryview, old: bytes, new: bytes) -> int:
    """The checksum after words that it covers have changed (RFC 1624, equation 3).

    Args:
        checksum: The checksum before, 2 bytes.
        old: The words before, an even number of bytes.
        new: The words after, as many bytes.

    Returns:
        0 to 65535.
    """
    return internet_checksum(bytes(0xFF ^ byte for byte in (*checksum, *old)) + new)
