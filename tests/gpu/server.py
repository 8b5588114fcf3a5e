"""`volley serve` and other servers of the API: started, asked, watched, measured with `volley bench`."""

import http.client
import json
import os
import re
import socket
import subprocess
import time

from stage import BUNDLE

BINARY = BUNDLE / "volley"
START = 400  # seconds that a server may take until it is ready


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A process that answers HTTP on a port of its own; `ready` is the path that says so."""

    def __init__(self, stage, name, command, port, ready="/ready", env=None):
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self.log = stage.logs / f"{stage.name}-{name}.log"
        started = time.monotonic()
        with open(self.log, "ab") as log:
            self.begin = log.tell()
            self.process = subprocess.Popen(
                [str(part) for part in command],
                env=os.environ | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait(ready)
            self.ready_seconds = time.monotonic() - started
            self.model = self.ask("GET", "/v1/models")["data"][0]["id"]
            self.complete("Hi", 1)
            self.first_token_seconds = time.monotonic() - started
        except BaseException:
            self.end()
            raise

    def _wait(self, path):
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise Ended(self.output())
            try:
                if self.request("GET", path)[0] == 200:
                    return
            except OSError:
                pass  # nobody listens yet
            time.sleep(0.05)
        raise TimeoutError(f"not ready after {START} s:\n{self.output()[-2000:]}")

    def output(self):
        """What this process has said."""
        return self.log.read_bytes()[self.begin :].decode(errors="replace")

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)

    def request(self, method, path, body=None):
        """(status, the answer's bytes)"""
        connection = self.connect()
        try:
            data = json.dumps(body) if body is not None else None
            connection.request(method, path, data, {"content-type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def ask(self, method, path, body=None):
        """An answer of JSON; an error raises."""
        status, answer = self.request(method, path, body)
        if status != 200:
            raise RuntimeError(f"{method} {path}: {status} {answer[:500]!r}")
        return json.loads(answer)

    def complete(self, prompt, tokens, **fields):
        """A greedy completion of just so many tokens."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        return self.ask("POST", "/v1/completions", body | fields)

    def stream(self, prompt, tokens, heard=lambda: None, **fields):
        """The text of a greedy completion that is streamed; `heard` is called at each of its events."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        connection, text = self.connect(), []
        try:
            body = json.dumps(body | {"stream": True} | fields)
            connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            for line in answer:
                line = line.decode().strip()
                if line == "data: [DONE]":
                    return "".join(text)
                if line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise RuntimeError(str(event["error"]))
                    text += [choice["text"] for choice in event["choices"]]
                    heard()
            raise RuntimeError(f"the stream broke off with status {answer.status}: {''.join(text)[-100:]!r}")
        finally:
            connection.close()

    def metrics(self):
        """Prometheus figures by name, summed over labels."""
        figures = {}
        for line in self.request("GET", "/metrics")[1].decode().splitlines():
            if found := re.fullmatch(r"(\w+)(?:\{.*\})? (\S+)", line):
                figures[found[1]] = figures.get(found[1], 0.0) + float(found[2])
        return figures

    def bench(self, streams, prompt, output, requests=None):
        """One load of `volley bench`; its row."""
        command = [
            BINARY, "bench", self.url, "--model", self.model, "--mode", "long", "--prompt-tokens", prompt,
            "--max-tokens", output, "--concurrency", streams, "--requests", requests or streams, "--json", "-",
        ]  # fmt: skip
        done = subprocess.run([str(part) for part in command], text=True, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"volley bench: {done.stderr[-1000:]}\n{self.output()[-2000:]}")
        [row] = json.loads(done.stdout)
        if row["errors"]:
            raise RuntimeError(f"{row['errors']} of {row['requests']} requests failed: {row['first_error']}")
        return row

    def end(self):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


class Ended(Exception):
    """The server ended before it was ready; what it said."""


def volley(stage, model, *flags):
    """`volley serve` on the stage's device, with its caches in the scratch folder."""
    port = free_port()
    command = [BINARY, "serve", "--model", model, "--device", stage.device, "--listen", f"127.0.0.1:{port}"]
    command += ["--log", "info", *flags]
    return Server(stage, "volley", command, port, env={"VOLLEY_HOME": str(stage.scratch / "home")})
