"""What schemathesis cannot know of docs/openapi.yaml: how bodies of lines are made, and that a body is compressed as its
`content-encoding` says.

Named by SCHEMATHESIS_HOOKS; tests/it/documents/openapi.rs runs it.
"""

import gzip
import json
import os
import struct

import schemathesis
from hypothesis import strategies as st

# Numbers that JSON does not have are left out.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def lines(draw):
    """JSON values, one a line, with either line end, empty lines in between, and perhaps none after the last one."""
    text = ""
    for value in draw(st.lists(VALUES, max_size=6)):
        text += json.dumps(value) + draw(st.sampled_from(["\n", "\r\n", "\n\n"]))
    return (text if draw(st.booleans()) else text.removesuffix("\n").removesuffix("\r")).encode()


def zstd(body):
    """A frame of raw blocks (RFC 8878, section 3.1.1), with the size of the content in four bytes."""
    blocks = [body[at : at + (1 << 17)] for at in range(0, len(body), 1 << 17)] or [b""]
    frame = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", len(body))
    for number, block in enumerate(blocks, 1):
        frame += struct.pack("<I", len(block) << 3 | (number == len(blocks)))[:3] + block
    return frame


CODINGS = {"gzip": gzip.compress, "zstd": zstd}


def compressed(context, body):
    """What is sent: compressed if the header says so. With any other value of the header the body is as it is."""
    headers = context.case.headers or {}
    coding = next((headers[name] for name in headers if name.lower() == "content-encoding"), None)
    return CODINGS.get(coding, bytes)(body)


def lines_serializer(context, value):
    return compressed(context, value if isinstance(value, bytes) else str(value).encode())


def json_serializer(context, value):
    return compressed(context, value if isinstance(value, bytes) else json.dumps(value).encode())


LINES = ["application/x-ndjson", "application/ndjson", "application/jsonl", "application/jsonlines"]


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """Examples of a media type with a strategy of its own would have to be bytes, which YAML does not have here."""
    for path in raw_schema["paths"].values():
        for operation in path.values():
            if isinstance(operation, dict) and "requestBody" in operation:
                for media_type in LINES:
                    operation["requestBody"]["content"].get(media_type, {}).pop("examples", None)


for media_type in LINES:
    schemathesis.openapi.media_type(media_type, lines())
    schemathesis.serializer(media_type)(lines_serializer)
for media_type in ["application/json", "application/cloudevents+json", "application/cloudevents-batch+json"]:
    schemathesis.serializer(media_type)(json_serializer)


# On a server with TOKENS_FILE, to which nothing generated here is known.
if os.environ.get("TOKENLESS"):

    @schemathesis.check
    def nothing_without_a_token(context, response, case):
        if response.status_code < 400:
            raise AssertionError(f"{response.status_code} without a token")
