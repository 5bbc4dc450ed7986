"""Servers for tests: `transformers serve` in a process of its own; what stands between, slow, broken or scripted."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import pytest

SLOW = 5.0  # seconds


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def storyteller(folder: Path, data: Path) -> Path:
    """The small model of stories as a server wants it: with a chat template, and sampling."""
    shutil.copytree(data, folder)
    for name, more in (
        ("tokenizer_config.json", {"chat_template": "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"}),
        ("generation_config.json", {"do_sample": True}),
    ):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | more))
    return folder


@contextlib.contextmanager
def serving(log: Path) -> Iterator[str]:
    """The URL of `transformers serve`; it loads what it is asked for."""
    if missing := [name for name in ("fastapi", "openai", "uvicorn") if find_spec(name) is None]:
        if os.environ.get("ACCORD_CI"):
            pytest.fail(f"`transformers serve` needs {', '.join(missing)}: make setup installs them")
        pytest.skip(f"`transformers serve` needs {', '.join(missing)}: pip install 'accord-align[dev]'")
    port = free_port()
    words = [str(Path(sys.executable).parent / "transformers"), "serve", "--port", str(port), "--device", "cpu"]
    with log.open("w") as out:
        run = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    url = f"http://localhost:{port}"
    try:
        for _ in range(600):
            if run.poll() is not None:
                pytest.fail(f"`transformers serve` ended: {log.read_text()[-2000:]}")
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(f"{url}/health").status_code == 200:
                    break
            time.sleep(0.1)
        else:
            pytest.fail(f"`transformers serve` does not answer: {log.read_text()[-2000:]}")
        yield url
    finally:
        run.terminate()
        try:
            run.wait(20)
        except subprocess.TimeoutExpired:
            run.kill()


class Between:
    """A server before another one, or before a function.

    Args:
        behind: a URL that everything is handed on to, or a function of the request's body that gives the text of the
            answer (or status, headers and body).
        faults: what is done wrong at the first, second, ... time that the same request comes: slow, drop, cut (half an
            answer), malformed, none (an answer without choices), a status.
    """

    def __init__(self, behind: str | Callable[[dict[str, Any]], Any], faults: Callable[[int, int], Any] | None = None):
        self.behind, self.faults = behind, faults or (lambda request, time: None)
        self.asked: list[dict[str, Any]] = []  # bodies in the order in which they came
        self.answered: Counter[str] = Counter()  # bodies that were answered in full
        self.numbers: dict[str, int] = {}
        self.times: Counter[str] = Counter()
        self.most, self.now, self.lock = 0, 0, threading.Lock()

    def __enter__(self) -> Between:
        between = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                between.hand_on(self, None)

            def do_POST(self) -> None:
                between.hand_on(self, self.rfile.read(int(self.headers["content-length"])))

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def __exit__(self, *error: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def hand_on(self, handler: BaseHTTPRequestHandler, sent: bytes | None) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._hand_on(handler, sent)
        finally:
            with self.lock:
                self.now -= 1

    def _hand_on(self, handler: BaseHTTPRequestHandler, sent: bytes | None) -> None:
        fault = None
        key = (sent or b"").decode()
        if handler.path.endswith("/chat/completions") and sent is not None:
            with self.lock:
                self.asked.append(json.loads(sent))
                number = self.numbers.setdefault(key, len(self.numbers))
                fault = self.faults(number, self.times[key])
                self.times[key] += 1
        if fault == "slow":
            time.sleep(SLOW)
        if fault == "drop":
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        if isinstance(fault, int):
            headers = {"retry-after": "0.1"} if fault == 429 else {}
            self.send(handler, fault, json.dumps({"error": {"message": f"fault {fault}"}}).encode(), headers)
            return
        status, headers, body = self._behind(handler, sent)
        if fault == "malformed":
            body = b'{"choices": [{"mess'
        elif fault == "none":
            body = b'{"error": {"message": "no room"}}'
        elif fault == "cut":
            handler.send_response(200)
            handler.send_header("content-length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body[: len(body) // 2])
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        elif fault is None and status == 200 and sent is not None:
            with self.lock:
                self.answered[key] += 1
        self.send(handler, status, body, headers)

    def _behind(self, handler: BaseHTTPRequestHandler, sent: bytes | None) -> tuple[int, dict[str, str], bytes]:
        if isinstance(self.behind, str):
            headers = {"content-type": "application/json"}
            made = httpx2.request(
                handler.command, self.behind + handler.path, content=sent, headers=headers, timeout=120
            )
            return made.status_code, {}, made.content
        if sent is None:
            return 404, {}, b'{"detail": "Not Found"}'
        made = self.behind(json.loads(sent))
        if isinstance(made, tuple):
            return made
        choice = {"message": {"role": "assistant", "content": made}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        return 200, {}, json.dumps({"choices": [choice], "usage": usage}).encode()

    @staticmethod
    def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
        handler.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
