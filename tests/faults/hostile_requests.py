"""Requests as bytes that nobody decent sends, in tables: framing that two programs would read in two ways, paths that
lead out of a folder, names that are not the server's, what a page of another origin can send, sizes beyond limits."""

from collections.abc import Callable

from loopback import request

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


def _post(*headers: str, body: bytes) -> bytes:
    return "\r\n".join(["POST /healthz HTTP/1.1", *headers, "", ""]).encode("latin-1") + body


HOST = "Host: localhost"
CHUNKED = "Transfer-Encoding: chunked"
EMPTY = b"0\r\n\r\n"
# Each holds a second request for whoever reads it leniently: it must never be answered.
FRAMINGS: dict[str, bytes] = {
    "a length and chunks": _post(HOST, "Content-Length: 5", CHUNKED, body=EMPTY + SMUGGLED),
    "chunks and a length": _post(HOST, CHUNKED, "Content-Length: 5", body=EMPTY + SMUGGLED),
    "a length of all and chunks": _post(HOST, f"Content-Length: {5 + len(SMUGGLED)}", CHUNKED, body=EMPTY + SMUGGLED),
    "two lengths": _post(HOST, "Content-Length: 0", f"Content-Length: {len(SMUGGLED)}", body=SMUGGLED),
    "two lengths in one": _post(HOST, f"Content-Length: 0, {len(SMUGGLED)}", body=SMUGGLED),
    "the same length twice": _post(HOST, "Content-Length: 0", "Content-Length: 0", body=SMUGGLED),
    "a length with a sign": _post(HOST, "Content-Length: +0", body=SMUGGLED),
    "a negative length": _post(HOST, "Content-Length: -1", body=SMUGGLED),
    "a length in hexadecimal": _post(HOST, "Content-Length: 0x0", body=SMUGGLED),
    "a length of two numbers": _post(HOST, "Content-Length: 0 0", body=SMUGGLED),
    "a length beyond 64 bits": _post(HOST, "Content-Length: 18446744073709551616", body=SMUGGLED),
    "no length": _post(HOST, "Content-Length: ", body=SMUGGLED),
    "other chunks": _post(HOST, "Transfer-Encoding: xchunked", body=EMPTY + SMUGGLED),
    "chunks twice": _post(HOST, CHUNKED, CHUNKED, body=EMPTY + SMUGGLED),
    "chunks, then something": _post(HOST, "Transfer-Encoding: chunked, identity", body=EMPTY + SMUGGLED),
    "something, then chunks": _post(HOST, CHUNKED, "Transfer-Encoding: x", body=EMPTY + SMUGGLED),
    "a blank before the colon": _post(HOST, "Transfer-Encoding : chunked", body=EMPTY + SMUGGLED),
    "a vertical tab": _post(HOST, "Transfer-Encoding:\x0bchunked", body=EMPTY + SMUGGLED),
    "chunks behind a line feed": _post(HOST, "X: y\nTransfer-Encoding: chunked", body=EMPTY + SMUGGLED),
    "chunks behind a return": _post(HOST, "X: y\rTransfer-Encoding: chunked", body=EMPTY + SMUGGLED),
    "a folded line": _post(HOST, "Transfer-Encoding:\r\n chunked", body=EMPTY + SMUGGLED),
    "a header in quotes": _post(HOST, '"Transfer-Encoding": chunked', body=EMPTY + SMUGGLED),
    "a null in a header": _post(HOST, "Transfer-Encoding: chunked\0", body=EMPTY + SMUGGLED),
    "a header without a name": _post(HOST, ": chunked", body=EMPTY + SMUGGLED),
    "a header without a colon": _post(HOST, "Transfer-Encoding", body=EMPTY + SMUGGLED),
    "a negative chunk": _post(HOST, CHUNKED, body=b"-1\r\n" + SMUGGLED),
    "a chunk of 0x0": _post(HOST, CHUNKED, body=b"0x0\r\n\r\n" + SMUGGLED),
    "a chunk beyond 64 bits": _post(HOST, CHUNKED, body=b"10000000000000000\r\n" + SMUGGLED),
    "a chunk that goes on": _post(HOST, CHUNKED, body=b"1\r\naa\r\n0\r\n\r\n" + SMUGGLED),
    "a chunk's line ended by a feed": _post(HOST, CHUNKED, body=b"1;a\nx\r\n0\r\n\r\n" + SMUGGLED),
    "a chunk with a blank": _post(HOST, CHUNKED, body=b"1 1\r\nx\r\n0\r\n\r\n" + SMUGGLED),
    "no chunk size": _post(HOST, CHUNKED, body=b"\r\n" + SMUGGLED),
    "no host": _post("Content-Length: 0", body=SMUGGLED),
    "two hosts": _post(HOST, "Host: evil.example", "Content-Length: 0", body=SMUGGLED),
    "two hosts the other way": _post("Host: evil.example", HOST, "Content-Length: 0", body=SMUGGLED),
    "a request in a body": _post(HOST, f"Content-Length: {len(SMUGGLED)}", "Connection: close", body=SMUGGLED),
    "a request in a body of GET": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: "
    + b"%d\r\n\r\n%s" % (len(SMUGGLED), SMUGGLED),
    "a path with a request": b"GET /x HTTP/1.1\r\nHost: localhost\r\nX: y HTTP/1.1\nGET /smuggled HTTP/1.1\r\n\r\n",
    "HTTP 9.9": b"GET /healthz HTTP/9.9\r\nHost: localhost\r\n\r\n" + SMUGGLED,
    "HTTP 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED,
    "HTTP 0.9": b"GET /healthz\r\n" + SMUGGLED,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32) + SMUGGLED,
    "a null in the path": b"GET /heal\0thz HTTP/1.1\r\nHost: localhost\r\n\r\n" + SMUGGLED,
    "an unknown method": b"SMUGGLE / HTTP/1.1\r\nHost: localhost\r\n\r\n" + SMUGGLED,
}  # fmt: skip

_UP = ["..", "%2e%2e", "%2E.", "..%00", ".%00.", "..;", "%252e%252e", "..%c0%af", "\u2025", "%u002e%u002e", "....//"]
_SLASHES = ["/", "%2f", "%5c", "\\", "//", "%252f", "/./"]
PATHS: list[str] = [
    f"{root}{slash.join([up] * deep + [file])}"
    for root in ("/page/", "/", "/v1/models/", "/api/runs/", "/page/index.html/")
    for up in _UP
    for slash in _SLASHES
    for deep, file in ((1, "http.py"), (8, "etc/passwd"))
]
PATHS += [
    "/page//etc/passwd",
    "/page/C:%5cwindows",
    "//etc/passwd",
    "/page/%2fetc%2fpasswd",
    "/page/" + "a" * 5000 + ".js",
]
PATHS += [
    "/page/.",
    "/page/",
    "/page/index.html%00.js",
    "/page/\udcff.js",
    "/page/%ff.js",
    "/page/__init__.py",
    "http://x/page/a",
]

OWN_NAMES = ["localhost", "127.0.0.1", "LOCALHOST:1", "[::1]:80", "app.localhost", "10.1.2.3"]
OTHER_NAMES = [
    *("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "evil-localhost"),
    *("localhost@evil.example", "evil.example#localhost", "0x7f.1", "2130706433", "localhost evil.example", "", "."),
    *("[::1", "[evil.example]", "xn--localhost-", "127.0.0.1, evil.example", "localhost%00.evil.example", "*"),
]

_PARTS = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--b--\r\n'
_ASKED = b'{"prompt": "Once", "max_tokens": 8}'
ELSEWHERE = ("Origin: http://evil.example", "Sec-Fetch-Site: cross-site", "Referer: http://evil.example/")


def _sent(path: str, kind: str | None, body: bytes, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", HOST, *ELSEWHERE, f"Content-Length: {len(body)}"]
    lines += [f"Content-Type: {kind}"] if kind is not None else []
    return "\r\n".join([*lines, "", ""]).encode() + body


# What a browser sends for a page of another origin without asking first: no answer may be readable, no text written.
FOREIGN: dict[str, bytes] = {
    f"{what}, {path}": _sent(path, kind, body)
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/api/inspect")
    for what, kind, body in (
        ("text", "text/plain;charset=UTF-8", _ASKED),
        ("a blob without a type", None, _ASKED),
        ("an empty type", "", _ASKED),
        ("a form", "application/x-www-form-urlencoded", b"prompt=Once&max_tokens=8"),
        ("JSON in a form", "application/x-www-form-urlencoded", _ASKED),
        ("parts", "multipart/form-data; boundary=b", _PARTS),
        ("text that says JSON", "text/plain; application/json", _ASKED),
        ("nothing", "text/plain", b""),
    )
}  # fmt: skip
FOREIGN |= {
    f"preflight, {path}": "\r\n".join(
        [f"OPTIONS {path} HTTP/1.1", HOST, *ELSEWHERE, "Access-Control-Request-Method: POST",
         "Access-Control-Request-Headers: content-type", "Access-Control-Request-Private-Network: true", "", ""]
    ).encode()
    for path in ("/v1/completions", "/api/inspect", "/v1/models")
}  # fmt: skip
FOREIGN |= {
    f"read {path}": _sent(path, None, b"", "GET") for path in ("/v1/models", "/api/runs", "/metrics", "/", "/healthz")
}


def _json(path: str, body: bytes) -> Callable[[], bytes]:
    return lambda: request("POST", path, body)


def _many(field: bytes) -> bytes:
    return b",".join(field % number for number in range(300_000))


_COMPLETIONS, _CHAT, _MANY = "/v1/completions", "/v1/chat/completions", 1_250_000
# What is asked, and with which status it must be answered. 4 MB is the largest body.
SIZES: dict[str, tuple[Callable[[], bytes], int]] = {
    "a body of 10 MB": (_json("/tokenize", b'{"prompt": "' + b"a" * 10_000_000 + b'"}'), 413),
    "a body that says 100 MB": (lambda: request("POST", "/tokenize", b"", "Content-Length: 100000000"), 413),
    "chunks of 10 MB": (
        lambda: request("POST", "/tokenize", b"", CHUNKED, "Content-Type: application/json")
        + (b"10000\r\n" + b" " * 65_536 + b"\r\n") * 160 + EMPTY, 413),
    "a header of 10 MB": (lambda: b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 10_000_000, 431),
    "a million headers": (lambda: b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 1_000_000 + b"\r\n", 431),
    "a path of 10 MB": (lambda: b"GET /" + b"a" * 10_000_000, 431),
    "a method of 10 MB": (lambda: b"G" * 10_000_000, 400),
    "an integer of 5,000 digits": (_json(_COMPLETIONS, b'{"prompt": "a", "seed": %s}' % (b"9" * 5000)), 400),
    "a bias of 5,000 digits": (_json(_COMPLETIONS, b'{"prompt": "a", "logit_bias": {"%s": 1}}' % (b"9" * 5000)), 400),
    "lists 100,000 deep": (_json(_COMPLETIONS, b'{"prompt": ' + b"[" * 100_000), 400),
    "objects 100,000 deep": (_json(_CHAT, b'{"messages": ' + b'{"a":' * 100_000), 400),
    "lists 900 deep in a number": (_json(_COMPLETIONS, b'{"n": ' + b"[" * 900 + b"]" * 900 + b"}"), 400),
    "a million wrong tokens": (_json("/detokenize", b'{"tokens": [' + b"[]," * _MANY + b"0]}"), 400),
    "a million wrong biases": (
        lambda: request("POST", _COMPLETIONS, b'{"logit_bias": {%s}}' % _many(b'"%d": ""')), 400),
    "a million messages": (_json(_CHAT, b'{"messages": [' + b"{}," * _MANY + b"{}]}"), 400),
    "a million prompts": (_json(_COMPLETIONS, b'{"prompt": [' + b'"",' * _MANY + b'""]}'), 400),
    "prompts times n": (_json(_COMPLETIONS, b'{"n": 128, "prompt": [' + b'"",' * 20_000 + b'""]}'), 400),
    "a million fields": (
        lambda: request("POST", _COMPLETIONS, b'{"max_tokens": 1, %s}' % _many(b'"x%d": 0')), 200),
    "a prompt of 4 MB": (_json(_COMPLETIONS, b'{"prompt": "' + b"a" * 3_900_000 + b'"}'), 400),
    "a prompt of a million ids": (_json(_COMPLETIONS, b'{"prompt": [' + b"1," * _MANY + b"1]}"), 400),
    "a message of 4 MB": (_json(_CHAT, b'{"messages": [{"content": "' + b"a" * 3_900_000 + b'"}]}'), 400),
    "a text of 4 MB to look at": (_json("/api/inspect", b'{"text": "' + b"a" * 3_900_000 + b'"}'), 400),
    "a text of 4 MB to tokenize": (_json("/tokenize", b'{"prompt": "' + b"a" * 3_900_000 + b'"}'), 400),
    "a stop text of 4 MB": (
        _json(_COMPLETIONS, b'{"prompt": "a", "max_tokens": 40, "stop": ["' + b"a" * 3_900_000 + b'"]}'), 200),
    "a model's name of 4 MB": (_json(_COMPLETIONS, b'{"model": "' + b"a" * 3_900_000 + b'"}'), 404),
    "a role of 4 MB": (_json(_CHAT, b'{"max_tokens": 1, "messages": [{"role": "' + b"a" * 3_900_000 + b'"}]}'), 200),
    "more tokens than fit": (_json(_COMPLETIONS, b'{"prompt": "a", "max_tokens": 2147483647}'), 400),
    "more texts than fit": (_json(_COMPLETIONS, b'{"prompt": ["a", "b", "c"], "n": 128}'), 400),
    "more positions than fit": (_json("/api/inspect", b'{"text": "a", "positions": [' + b"0," * _MANY + b"0]}"), 400),
    "all next tokens at each place": (_json("/api/inspect", b'{"text": "ab", "top": 0, "positions": [0, 1, 2]}'), 200),
}  # fmt: skip
