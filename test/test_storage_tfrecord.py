"""TFRecord framing and Example messages: published check values and Google's own protobuf."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_files import example, write_records

from recon4d_ros.errors import SourceError
from recon4d_ros.storage.training_data.tfrecord import (
    crc32c,
    masked_crc32c,
    parse_example,
    read_record,
    record_offsets,
)


def slow_crc32c(content: bytes) -> int:
    """Bit by bit, RFC 3720 appendix B.4."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # this and the following: RFC 3720, appendix B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_checksums_of_the_standard(content, expected):
    assert crc32c(content) == expected


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=400))
def test_checksums_equal_those_of_single_bits(content):
    assert crc32c(content) == slow_crc32c(content)


def test_the_stored_checksum_is_turned_and_shifted():
    # The first eight bytes and checksum of a file that TensorFlow wrote, a record of 7 bytes.
    crc = slow_crc32c(b"\x07" + bytes(7))
    assert masked_crc32c(b"\x07" + bytes(7)) == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def google_example():
    """tf.train.Example as Google's protobuf makes it from its published description."""
    pytest.importorskip("google.protobuf", reason="protobuf is not installed")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="e.proto", package="t", syntax="proto3")
    kind = descriptor_pb2.FieldDescriptorProto

    def message(name, *fields):
        entry = file.message_type.add(name=name)
        for number, (label, type_, field, ref) in enumerate(fields, start=1):
            entry.field.add(name=field, number=number, label=label, type=type_, type_name=ref)
        return entry

    many, one = kind.LABEL_REPEATED, kind.LABEL_OPTIONAL
    message("BytesList", (many, kind.TYPE_BYTES, "value", None))
    message("FloatList", (many, kind.TYPE_FLOAT, "value", None))
    message("Int64List", (many, kind.TYPE_INT64, "value", None))
    lists = [
        (one, kind.TYPE_MESSAGE, n.lower(), f".t.{n}")
        for n in ("BytesList", "FloatList", "Int64List")
    ]
    feature = message("Feature", *lists)
    feature.oneof_decl.add(name="kind")
    for item in feature.field:
        item.oneof_index = 0
    features = message(
        "Features", (many, kind.TYPE_MESSAGE, "feature", ".t.Features.FeatureEntry")
    )
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=one, type=kind.TYPE_STRING)
    entry.field.add(
        name="value", number=2, label=one, type=kind.TYPE_MESSAGE, type_name=".t.Feature"
    )
    message("Example", (one, kind.TYPE_MESSAGE, "features", ".t.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.binary(max_size=200), max_size=4),
    st.lists(st.floats(width=32, allow_nan=False), max_size=20),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20),
)
def test_examples_of_google_are_read(strings, floats, integers):
    message = google_example()
    message.features.feature["camera/é"].byteslist.value.extend(strings)
    message.features.feature["floats"].floatlist.value.extend(floats)
    message.features.feature["integers"].int64list.value.extend(integers)
    message.features.feature["other"].int64list.value.append(3)
    found = parse_example(message.SerializeToString(), {"camera/é", "floats", "integers"})
    assert list(found) and set(found) == {"camera/é", "floats", "integers"}
    assert list(found["camera/é"]) == strings
    np.testing.assert_array_equal(
        np.array(found["floats"], np.float32), np.array(floats, np.float32)
    )
    assert [int(value) for value in found["integers"]] == integers


def test_our_examples_are_read_by_google():
    features = {"a": [b"x", b""], "b": np.array([1.5, -2.0]), "c": np.array([-1, 300], np.int64)}
    message = google_example()
    message.ParseFromString(example(features))
    read = message.features.feature
    assert list(read["a"].byteslist.value) == [b"x", b""]
    assert list(read["b"].floatlist.value) == [1.5, -2.0]
    assert list(read["c"].int64list.value) == [-1, 300]


def test_records_come_back(tmp_path):
    records = [b"first", b"", bytes(range(256)) * 40]
    write_records(tmp_path / "r", records)
    offsets = record_offsets(tmp_path / "r")
    assert [read_record(tmp_path / "r", *place) for place in offsets] == records


@pytest.mark.parametrize("cut", [1, 4, 5, 15, 16, 23])
def test_a_half_written_file_is_told(tmp_path, cut):
    path = tmp_path / "r"
    write_records(path, [b"0123456789", b"abcdefgh"])
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(SourceError, match=r"/r at \d+: .*; fetch the file again"):
        record_offsets(path)


@pytest.mark.parametrize("at", range(26))
def test_every_changed_byte_of_a_record_is_noticed(tmp_path, at):
    path = tmp_path / "r"
    write_records(path, [b"0123456789"])
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(SourceError):
        read_record(path, *record_offsets(path)[0])


@pytest.mark.parametrize("content", [b"\x0a\x05abc", b"\x0b", b"\xff" * 3, b"\x0a\x03\x0a\x09a"])
def test_other_bytes_are_no_example(content):
    with pytest.raises(SourceError, match="bytes are no tf"):
        parse_example(content, {"video"})
