"""Requests that nobody sends by accident: endless, drawn from a seed, with the statuses that may answer them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import quote

import numpy as np

from tests.abuse import corpus

ANSWERED = frozenset({200})
REFUSED = frozenset({400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 417, 422, 426, 429, 431})
ANY = ANSWERED | REFUSED
# what is no HTTP may find the line dead
NO_ANSWER = 0

BOUNDARY = "b0undary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
PATHS = ("/predict", "/predict_base64", "/predict_batch")


@dataclass(frozen=True)
class Upload:
    """One request.

    Attributes:
        kind: what is wrong with it.
        body: as sent.
        content_type: as declared; `None` leaves it out.
        path: with its query.
        expected: statuses that may answer it.
        head: all before the body, where it is not what the other fields make.
        is_chunked: sent without its length.
    """

    kind: str
    body: bytes = b""
    content_type: str | None = "application/octet-stream"
    path: str = "/predict"
    expected: frozenset[int] = ANY
    head: bytes | None = None
    is_chunked: bool = False
    method: str = "POST"
    headers: tuple[str, ...] = field(default_factory=tuple)


def uploads(seed: int) -> Iterator[Upload]:
    """Requests without end, all kinds in turn; everything random comes from the seed."""
    rng = np.random.default_rng(seed)
    while True:
        for make in KINDS:
            yield make(rng)


def pick(rng: np.random.Generator, choices: dict[str, bytes]) -> tuple[str, bytes]:
    name = list(choices)[rng.integers(len(choices))]
    return name, choices[name]


def part(name: str, content: bytes, filename: str | None = "a.jpg", more: str = "") -> bytes:
    file = "" if filename is None else f'; filename="{filename}"'
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}{more}\r\n\r\n'.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def carried(rng: np.random.Generator, kind: str, data: bytes, expected: frozenset[int]) -> Upload:
    """A picture in one of the ways to send it."""
    text = base64.b64encode(data)
    ways: tuple[Callable[[], Upload], ...] = (
        lambda: Upload(kind, data, expected=expected),
        lambda: Upload(kind, data, "image/png", expected=expected, is_chunked=True),
        lambda: Upload(kind, form(part("image", data)), FORM, expected=expected),
        lambda: Upload(kind, form(part("file", data)), FORM, expected=expected, is_chunked=True),
        lambda: Upload(kind, form(part("image_base64", text, None)), FORM, expected=expected),
        lambda: Upload(kind, b"image_base64=" + quote(text).encode(), "application/x-www-form-urlencoded", expected=expected),
        lambda: Upload(kind, json.dumps({"image": text.decode()}).encode(), "application/json", expected=expected),
        lambda: Upload(
            kind, json.dumps({"image": f"data:image/png;base64,{text.decode()}"}).encode(), "application/json", "/predict_base64"
        ),
        lambda: Upload(kind, form(part("images", data), part("images[]", data)), FORM, "/predict_batch", ANSWERED),
    )
    return ways[rng.integers(len(ways))]()


def sound(rng: np.random.Generator) -> Upload:
    name, data = pick(rng, corpus.sound())
    return carried(rng, f"sound: {name}", data, ANSWERED)


def wrong_type(rng: np.random.Generator) -> Upload:
    name, data = pick(rng, corpus.NOT_PICTURES)
    return carried(rng, f"no picture: {name}", data, frozenset({422}))


def bomb(rng: np.random.Generator) -> Upload:
    name, data = pick(rng, corpus.too_large())
    return carried(rng, f"bomb: {name}", data, frozenset({413, 422}))


def slow_to_decode(_: np.random.Generator) -> Upload:
    return Upload("bomb: many scans", corpus.many_scans(), expected=frozenset({422}))


def truncated(rng: np.random.Generator) -> Upload:
    _, data = pick(rng, corpus.sound())
    return carried(rng, "truncated", data[: rng.integers(len(data))], ANY)


def flipped(rng: np.random.Generator) -> Upload:
    _, data = pick(rng, corpus.sound())
    damaged = bytearray(data)
    # headers are where decoders take wrong turns
    reach = len(damaged) if rng.random() < 0.5 else min(len(damaged), 100)
    for place in rng.integers(0, reach, rng.choice([1, 2, 8, 40])):
        damaged[place] ^= 1 << rng.integers(8)
    return carried(rng, "flipped", bytes(damaged), ANY)


def spliced(rng: np.random.Generator) -> Upload:
    (_, first), (_, second) = pick(rng, corpus.sound()), pick(rng, corpus.sound())
    return carried(rng, "spliced", first[: rng.integers(len(first))] + second[rng.integers(len(second)) :], ANY)


def noise(rng: np.random.Generator) -> Upload:
    starts = [
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\xff\xff\0\0WEBPVP8 ",
        b"BM",
        b"GIF89a",
        b"II*\0\x08\0\0\0",
        b"MM\0*\0\0\0\x08",
        b"",
    ]
    return carried(rng, "noise", starts[rng.integers(len(starts))] + rng.bytes(rng.integers(1, 3000)), ANY)


def broken_json(rng: np.random.Generator) -> Upload:
    text = base64.b64encode(corpus.sound()["plain JPEG"]).decode()
    valid = json.dumps({"image": text})
    bodies = {
        "deep list": b"[" * 100_000,
        "deep object": b'{"image":' * 50_000,
        "closed deep list": b"[" * 5_000 + b"]" * 5_000,
        "deep value": b'{"image": "eA==", "x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        "UTF-16": valid.encode("utf-16"),
        "UTF-32": valid.encode("utf-32"),
        "Latin-1": '{"image": "é"}'.encode("latin-1"),
        "byte order mark": b"\xef\xbb\xbf" + valid.encode(),
        "surrogate": b'{"image": "\\ud800"}',
        "null byte": b'{"image": "\\u0000"}',
        "cut": valid[: rng.integers(len(valid))].encode(),
        "number": b'{"image": 1' + b"0" * 10_000 + b"}",
        "NaN": b'{"image": NaN}',
        "null": b'{"image": null}',
        "list": b'{"image": ["a"]}',
        "keys": json.dumps({f"k{number}": number for number in range(5_000)}).encode(),
        "padding": json.dumps({"image": text.rstrip("=") + "===="}).encode(),
        "letters": json.dumps({"image": text.replace("A", "*")}).encode(),
        "URI": json.dumps({"image": "data:image/svg+xml,<svg/>"}).encode(),
        "empty": b"",
    }
    name, body = pick(rng, bodies)
    content_type = ("application/json", "application/json; charset=utf-16", "application/json; charset=nonsense")[rng.integers(3)]
    expected = ANY if name in ("cut", "number") else frozenset({400, 422})
    return Upload(f"JSON: {name}", body, content_type, PATHS[rng.integers(2)], expected)


def broken_form(rng: np.random.Generator) -> Upload:
    data = corpus.sound()["plain JPEG"]
    end = f"--{BOUNDARY}--\r\n".encode()
    nested = b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--\r\n"
    bodies = {
        "many parts": form(*[part(f"p{number}", b"") for number in range(2_000)]),
        "many pictures": form(*[part("images", b"x") for number in range(300)]),
        "no end": part("image", data),
        "cut": form(part("image", data))[: rng.integers(len(data))],
        "no boundary": data,
        "only its end": end,
        "endless header": f"--{BOUNDARY}\r\n".encode() + b"X: " + b"a" * 500_000,
        "many headers": f"--{BOUNDARY}\r\n".encode() + b"X: a\r\n" * 20_000 + b"\r\n" + data + b"\r\n" + end,
        "no name": f"--{BOUNDARY}\r\nContent-Type: image/png\r\n\r\n".encode() + data + b"\r\n" + end,
        "null in name": form(part("im\0age", data)),
        "path as file name": form(part("image", data, "../../../etc/passwd")),
        "long file name": form(part("image", data, "a" * 50_000)),
        "file name in another charset": form(part("image", data, more="; filename*=nonsense''%ff%fe")),
        "line ends": form(part("image", data)).replace(b"\r\n", b"\n"),
        "nested": form(part("image", nested, more='\r\nContent-Type: multipart/mixed; boundary="x"')),
        "two pictures": form(part("image", data), part("file", data)),
        "text": form(part("image", data, None)),
        "dashes": b"-" * 200_000,
        "boundaries": f"--{BOUNDARY}\r\n".encode() * 20_000,
        "quotes": f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="'.encode() + b'\\"' * 50_000 + b"\r\n\r\n\r\n" + end,
        "encoding": form(part("image", base64.b64encode(data), more="\r\nContent-Transfer-Encoding: base64")),
        "charset": form(part("_charset_", b"utf-7", None), part("image", data)),
    }
    name, body = pick(rng, bodies)
    headers = (FORM, FORM, FORM, "multipart/form-data", 'multipart/form-data; boundary=""', f"multipart/form-data; boundary={'x' * 5000}")
    return Upload(f"form: {name}", body, headers[rng.integers(len(headers))], PATHS[rng.integers(3)], is_chunked=bool(rng.integers(2)))


def urlencoded(rng: np.random.Generator) -> Upload:
    text = base64.b64encode(corpus.sound()["plain PNG"])
    bodies = {
        "unescaped": b"image_base64=" + text,
        "many fields": b"&".join(b"a%d=1" % number for number in range(5_000)) + b"&image_base64=" + text,
        "bad escapes": b"image_base64=%%%zz%" + text,
        "raw picture": corpus.sound()["plain JPEG"],
        "no value": b"image_base64",
        "separators": b"&=" * 50_000,
    }
    name, body = pick(rng, bodies)
    return Upload(f"urlencoded: {name}", body, "application/x-www-form-urlencoded")


def path_from_client(rng: np.random.Generator) -> Upload:
    name = ("image_path", "model_path")[rng.integers(2)]
    data = corpus.sound()["plain PNG"]
    ways = (
        Upload("path: query", data, path=f"/predict?{name}=/etc/passwd"),
        Upload("path: form", form(part(name, b"/etc/passwd", None), part("image", data)), FORM),
        Upload("path: JSON", json.dumps({name: "/etc/passwd", "image": "eA=="}).encode(), "application/json"),
        Upload("path: urlencoded", f"{name}=%2Fetc%2Fpasswd".encode(), "application/x-www-form-urlencoded"),
    )
    chosen = ways[rng.integers(len(ways))]
    return Upload(chosen.kind, chosen.body, chosen.content_type, chosen.path, frozenset({400}))


def query(rng: np.random.Generator) -> Upload:
    queries = {
        "model=../../etc/passwd": frozenset({404}),
        "model=%2e%2e%2f%00": frozenset({404}),
        "model=" + "a" * 3000: frozenset({404}),
        "model=pets@" + "9" * 50: frozenset({404}),
        "model[]=pets&model=": ANSWERED,
        "top_k=-1": frozenset({400}),
        "top_k=" + "9" * 1000: ANSWERED,
        "top_k=%00": frozenset({400}),
        "top_k=1e9": frozenset({400}),
        "%ff%fe=%c0%af": ANSWERED,
        "&" * 3000: ANSWERED,
    }
    text = list(queries)[rng.integers(len(queries))]
    return Upload("query", corpus.sound()["plain JPEG"], path=f"/predict?{text}", expected=queries[text])


def route(rng: np.random.Generator) -> Upload:
    paths = (
        "/../../etc/passwd",
        "/static/../../etc/passwd",
        "/static/%2e%2e/%2e%2e/etc/passwd",
        "//predict",
        "/predict/",
        "/%00",
        "/" + "a" * 5000,
    )
    methods = ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH")
    path = (*paths, *PATHS, "/health", "/models", "/docs")[rng.integers(len(paths) + 6)]
    return Upload("route", b"", None, path, ANY | {301, 302, 307, 501}, method=methods[rng.integers(len(methods))])


def header(rng: np.random.Generator) -> Upload:
    headers = (
        ("Accept: " + "a" * 4000,),
        tuple(f"X-{number}: {number}" for number in range(60)),
        ("Content-Encoding: gzip",),
        ("Expect: nonsense",),
        ("Origin: null", "Referer: javascript:alert(1)"),
        ("X-Request-Id: " + "a" * 4000,),
        ("X-Forwarded-For: " + "1.2.3.4, " * 300,),
        ("Authorization: Bearer " + "a" * 4000, "X-API-Key: \xff"),
        ("X-Request-Timeout-Seconds: nan",),
        ("X-Request-Timeout-Seconds: -1", "X-Request-Disconnect-Disabled: ?1"),
    )
    types = ("image/" + "a" * 3000, "text/plain", "application/json, image/png", ";;;", "multipart/form-data; boundary=\x01", None)
    return Upload("header", corpus.sound()["plain JPEG"], types[rng.integers(len(types))], headers=headers[rng.integers(len(headers))])


def no_http(rng: np.random.Generator) -> Upload:
    heads = {
        "length and chunks": b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "two lengths": b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "negative length": b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        "huge length": b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "bad chunk": b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "no version": b"POST /predict\r\n\r\n",
        "old version": b"POST /predict HTTP/0.9\r\n\r\n",
        "space": b"POST  /predict  HTTP/1.1\r\nHost: a\r\n\r\n",
        "null": b"POST /pre\0dict HTTP/1.1\r\nHost: a\r\n\r\n",
        "folded header": b"POST /predict HTTP/1.1\r\nHost: a\r\n b\r\nContent-Length: 0\r\n\r\n",
        "huge header": b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        "many headers": b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 5_000 + b"\r\n",
        "TLS": bytes.fromhex("160301020001000001fc0303") + bytes(200),
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "noise": rng.bytes(300),
    }
    name, head = pick(rng, heads)
    return Upload(f"no HTTP: {name}", head=head, expected=ANY | {NO_ANSWER, 501, 505})


KINDS: tuple[Callable[[np.random.Generator], Upload], ...] = (
    sound,
    truncated,
    flipped,
    flipped,
    spliced,
    noise,
    wrong_type,
    bomb,
    slow_to_decode,
    broken_json,
    broken_form,
    urlencoded,
    path_from_client,
    query,
    route,
    header,
    no_http,
)
