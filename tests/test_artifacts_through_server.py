"""Files of a server whose store its clients cannot reach go through the server, both ways."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
from mlflow_server import wait_until_healthy

from ddpm import tracking

ROOT = Path(__file__).parents[1]

CLIENT = """
import sys
from pathlib import Path
from ddpm import tracking
mlflow = tracking.load_mlflow()
from mlflow.artifacts import download_artifacts
with mlflow.start_run() as run:
    mlflow.log_artifact(sys.argv[1])
print(Path(download_artifacts(f"runs:/{run.info.run_id}/{sys.argv[1]}", dst_path="there")).read_bytes().decode())
"""


def client(tmp_path, address, *arguments):
    """In a process of its own with no variable but the server's address, as a user outside the stack has it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    return subprocess.run(
        [sys.executable, "-c", CLIENT, *arguments],
        cwd=tmp_path, env={**clean, "MLFLOW_TRACKING_URI": address}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


class Advertising(BaseHTTPRequestHandler):
    """As much of MLflow's server as a download meets: it offers its store's own address, and has the file itself."""

    def do_GET(self):
        if "presigned" in self.path:
            answer = json.dumps({"url": "http://store.invalid:7070/file.bin", "headers": {}, "file_size": 5}).encode()
        elif self.path.endswith("/server-info"):
            answer = json.dumps({"multipart_downloads_enabled": True, "multipart_uploads_enabled": True}).encode()
        elif self.path.endswith("/a/file.bin"):
            answer = b"hello"
        else:
            answer = json.dumps({"files": []}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def test_a_download_does_not_go_where_the_server_sends_it(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("MLFLOW")]:
        monkeypatch.delenv(name)
    with ThreadingHTTPServer(("127.0.0.1", 0), Advertising) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        mlflow = tracking.load_mlflow()
        found = mlflow.artifacts.download_artifacts("mlflow-artifacts:/a/file.bin", dst_path=tmp_path)
        server.shutdown()
    assert Path(found).read_bytes() == b"hello"


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("boto3") and find_spec("moto")), reason="needs boto3 and moto[server], not locked")
def test_a_real_servers_store_that_only_the_server_knows(tmp_path):
    """MLflow on an S3 store whose name resolves nowhere but in the server's own process."""
    (tmp_path / "there").mkdir()
    (tmp_path / "file.bin").write_bytes(b"hello")
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    # The name stands in the server's own Python alone, as it does in a compose network.
    (tmp_path / "server").mkdir()
    (tmp_path / "server/sitecustomize.py").write_text(
        "import socket\nreal = socket.getaddrinfo\n"
        "socket.getaddrinfo = lambda host, *a, **k: real('127.0.0.1' if host == 'store' else host, *a, **k)\n"
    )
    store = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    path = os.pathsep.join([str(tmp_path / "server"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, **store, "AWS_ENDPOINT_URL_S3": f"http://store:{ports[0]}", "PYTHONPATH": path}
    env |= {"S3_BUCKET": "mlflow", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    address = f"http://127.0.0.1:{ports[1]}"
    own = ["--backend-store-uri", f"sqlite:///{tmp_path}/own.db", "--artifacts-destination", "s3://mlflow"]
    commands = [
        ["moto.server", "-H", "127.0.0.1", "-p", str(ports[0])],
        ["mlflow", "server", "--host", "127.0.0.1", "--port", str(ports[1]), "--workers", "1", *own],
    ]
    shutil.copy(ROOT / "docker/make_bucket.py", tmp_path)
    running = []
    try:
        running.append(subprocess.Popen([sys.executable, "-m", *commands[0]], start_new_session=True))
        wait_until_healthy(running[-1], f"http://127.0.0.1:{ports[0]}/moto-api/")
        for _ in range(2):  # the second time it is there
            subprocess.run([sys.executable, "make_bucket.py"], env=env, cwd=tmp_path, check=True, timeout=60)
        running.append(
            subprocess.Popen([sys.executable, "-m", *commands[1]], env=env, cwd=tmp_path, start_new_session=True)
        )
        wait_until_healthy(running[-1], f"{address}/health")
        done = client(tmp_path, address, "file.bin")
    finally:
        for process in running:
            process.terminate()
            process.wait(60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "hello"
