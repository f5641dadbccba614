"""A server on this machine that fails in the ways in which servers fail."""

import hashlib
import http.server
import threading


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, a path → bytes table. Each path has a behaviour, by default that of a good server."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.behaviour: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self.asked: list[tuple[str, str]] = []  # (path, Range)
        self.released = threading.Event()

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server, path = self.server, self.path
        ranged = self.headers.get("Range", "")
        server.asked.append((path, ranged))
        behaviour = server.behaviour.get(path, "good")
        if path not in server.files or behaviour == "404":
            self.send_error(404)
            return
        content = server.files[path]
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        start = int(ranged.removeprefix("bytes=").rstrip("-")) if ranged else 0
        if behaviour.startswith("no range") or self.headers.get("If-Range", etag) != etag:
            start = 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", etag)
        self.send_header("Content-Type", "text/html; charset=utf-8" if behaviour == "html" else "application/zip")
        self.send_header("Content-Length", str(len(content) - start))
        for name, value in server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        first_time = [asked for asked, _ in server.asked].count(path) == 1
        cut = behaviour.endswith("cut always") or (behaviour in ("cut once", "no range") and first_time)
        self.wfile.write(content[start : len(content) // 2] if cut or behaviour == "stalled" else content[start:])
        self.wfile.flush()
        if behaviour == "stalled":
            server.released.wait(20)
