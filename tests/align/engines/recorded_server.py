"""Records what a real vLLM server is asked and answers, and answers the same again where there is none.

What differs between two runs of the same requests, the folder that weights are written to, is left out of a recording.
"""

import http.client
import json
import re
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

RECORDINGS = Path(__file__).with_name("recordings")
FOLDER = re.compile(r'"/[^"]*/weights-0"')


class Reply(NamedTuple):
    status: int
    text: str


Answer = Callable[[str, str, str], Reply]  # of method, path and body


@contextmanager
def serve(answer: Answer) -> Iterator[str]:
    """Serves on a free loopback port inside a `with` block and gives the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply("GET")

        def do_POST(self) -> None:
            self.reply("POST")

        def reply(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            said = answer(method, self.path, body)
            content = said.text.encode()
            self.send_response(said.status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def record(url: str, name: str) -> Iterator[str]:
    """Gives the address of a server that passes all requests on to a real one, and writes both sides to a recording."""
    exchanges: list[dict[str, Any]] = []
    lock = threading.Lock()

    def answer(method: str, path: str, body: str) -> Reply:
        place = urlsplit(url)
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=300)
        connection.request(method, path, body or None, {"Content-Type": "application/json"})
        response = connection.getresponse()
        reply = Reply(response.status, response.read().decode())
        connection.close()
        with lock:
            asked = json.loads(FOLDER.sub('"FOLDER"', body)) if body else None
            exchanges.append(
                {"method": method, "path": path, "body": asked, "status": reply.status, "reply": json.loads(reply.text)}
            )
        return reply

    with serve(answer) as address:
        yield address
    (RECORDINGS / name).write_text(json.dumps(exchanges, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def replay(name: str, change: Callable[[str, Any], Any] = lambda path, reply: reply) -> Iterator[str]:
    """Gives the address of a server that answers as the recorded one did; what was not asked then is an error.

    `change`: makes another reply of a path's.
    """
    replies: dict[str, deque[dict[str, Any]]] = defaultdict(deque)
    for exchange in json.loads((RECORDINGS / name).read_text(encoding="utf-8")):
        replies[_name(exchange["method"], exchange["path"], exchange["body"])].append(exchange)
    lock = threading.Lock()

    def answer(method: str, path: str, body: str) -> Reply:
        asked = json.loads(FOLDER.sub('"FOLDER"', body)) if body else None
        with lock:
            known = replies.get(_name(method, path, asked))
            if not known:
                return Reply(500, f"never recorded: {method} {path} {json.dumps(asked, sort_keys=True)}")
            exchange = known.popleft() if len(known) > 1 else known[0]
        return Reply(exchange["status"], json.dumps(change(path, json.loads(json.dumps(exchange["reply"])))))

    with serve(answer) as address:
        yield address


def _name(method: str, path: str, body: Any) -> str:
    return f"{method} {path} {json.dumps(body, sort_keys=True)}"
