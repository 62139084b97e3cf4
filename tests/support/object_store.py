"""An S3 server (moto) in a process of its own, which checks signatures and permissions."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import create_connection, socket
from urllib.parse import quote

import boto3

_READ = [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]
_NUM_SETUP_CALLS = 4
"""Calls that are answered without credentials: those that make the user and the bucket."""


@dataclass(frozen=True)
class ObjectStore:
    """A running server with one bucket and one user, who may do everything."""

    port: int
    key: str
    secret: str
    bucket: str = "clicks"

    @property
    def options(self) -> str:
        """Options of a URI that lead to this server."""
        return f"scheme=http&endpoint_override=127.0.0.1:{self.port}&region=us-east-1"

    @property
    def escaped_secret(self) -> str:
        """The secret as it stands in a URI."""
        return quote(self.secret, safe="")

    def uri(self, path: str = "", user: str | None = None) -> str:
        """Returns the URI of a path in the bucket; by default with key and secret."""
        user = f"{self.key}:{self.escaped_secret}@" if user is None else user
        return f"s3://{user}{self.bucket}/{path}?{self.options}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with key and secret."""
        return {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret}

    def upload(self, folder: Path, path: str) -> None:
        """Copies the files below a local folder to a path in the bucket."""
        for file in folder.rglob("*"):
            if file.is_file():
                name = f"{path}/{file.relative_to(folder)}"
                _client("s3", self.port, self.key, self.secret).upload_file(
                    str(file), self.bucket, name
                )


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Runs a server on a free port until the end of the block."""
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env=os.environ | {"INITIAL_NO_AUTH_ACTION_COUNT": str(_NUM_SETUP_CALLS)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_up(port, server)
        identities = _client("iam", port)
        identities.create_user(UserName="reader")
        policy = json.dumps({"Version": "2012-10-17", "Statement": _READ})
        identities.put_user_policy(UserName="reader", PolicyName="all", PolicyDocument=policy)
        created = identities.create_access_key(UserName="reader")["AccessKey"]
        store = ObjectStore(port, created["AccessKeyId"], created["SecretAccessKey"])
        _client("s3", port).create_bucket(Bucket=store.bucket)
        yield store
    finally:
        server.terminate()
        server.wait()


def _client(service: str, port: int, key: str = "none", secret: str = "none"):  # type: ignore[no-untyped-def]
    return boto3.client(
        service,
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
    )


def _wait_until_up(port: int, server: subprocess.Popen[bytes]) -> None:
    while True:
        assert server.poll() is None, "the server of moto ended before it answered"
        try:
            create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
