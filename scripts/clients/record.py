"""A proxy that keeps what passes through it: one JSON object a request and answer."""

import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Recorder:
    """Listens on `port` and passes everything on to `to` (host, port). `records` holds what passed
    since the last `take()`."""

    def __init__(self, to):
        self.to = to
        self.records = []
        self.lock = threading.Lock()
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_any(self):
                size = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(size)
                upstream = http.client.HTTPConnection(*recorder.to, timeout=600)
                headers = {k: v for k, v in self.headers.items()
                           if k.lower() not in ("host", "connection", "accept-encoding")}
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                        self.send_header(name, value)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                whole = b""
                try:
                    while part := answer.read1(65536):
                        whole += part
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                        self.wfile.flush()
                    self.wfile.write(b"0\r\n\r\n")
                except OSError:
                    # The client left in the middle; so does this side.
                    self.close_connection = True
                    return
                finally:
                    upstream.close()
                record = {
                    "method": self.command,
                    "path": self.path,
                    "body": body.decode(),
                    "status": answer.status,
                    "content_type": answer.getheader("Content-Type"),
                    "answer": whole.decode(),
                }
                with recorder.lock:
                    recorder.records.append(record)

            do_GET = do_POST = do_OPTIONS = do_DELETE = do_PUT = do_any

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self):
        with self.lock:
            records, self.records = self.records, []
        return records


def kind(record):
    """What a request is, its numbers and texts aside."""
    if not record["body"]:
        return record["path"], record["status"]
    body = json.loads(record["body"])
    shape = lambda value: (type(value).__name__, type(value[0]).__name__ if value and isinstance(value, list) else "")
    prompt = body.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and isinstance(prompt[0], list) else 1
    return (record["path"], record["status"], bool(body.get("stream")), body.get("n"), prompts,
            tuple(sorted((key, shape(value)) for key, value in body.items())))


def pick(records, each=2, longest=30_000):
    """Few requests of each kind, the smallest: enough to see whether answers change."""
    kept, seen = [], {}
    for record in sorted(records, key=lambda record: len(record["body"]) + len(record["answer"])):
        of_kind = seen.setdefault(kind(record), [])
        same = any(other["body"] == record["body"] for other in of_kind)
        if not same and len(of_kind) < each and len(record["answer"]) + len(record["body"]) < longest:
            of_kind.append(record)
            kept.append(record)
    return kept


def save(path, records):
    with open(path, "w") as file:
        for record in pick(records):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
