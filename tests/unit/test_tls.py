"""The endpoint over TLS: certificates that are served, renewed or wrong; and the fields that name them."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from serve.front.server import Front, Lease
from serve.front.tls import Certificate, trust_of
from serve.protocol.errors import ApiError
from workflows.cli.commands import command
from workflows.endpoint.status import url_of
from workflows.spec import ServeSpec
from workflows.spec.errors import SpecError
from workflows.spec.read import read_spec

PIPELINE = "name: shop\nbase_model: random:tiny-llama\ndata:\n  sources:\n    - path: talk.jsonl\nserve:\n"


def make_certificate(folder: Path, name: str) -> tuple[str, str]:
    """A self-signed certificate for `name`, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / f"{name}.pem", folder / f"{name}.key"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    pem = serialization.PrivateFormat.PKCS8
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, pem, plain))
    return str(files[0]), str(files[1])


def test_it_answers_over_tls_alone_and_takes_renewed_files_up(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "shop.example")
    shown = Certificate(certificate, key)
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    @asynccontextmanager
    async def lease(seconds: float) -> AsyncIterator[Lease]:
        raise ApiError(503, "none")
        yield

    front = Front(lease, 5)

    def run(work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result(10)

    run(front.listen("127.0.0.1", 0, shown.context))
    following = asyncio.run_coroutine_threadsafe(shown.follow(look_s=0.05), loop)
    address = f"127.0.0.1:{front.port}"
    assert httpx.get(f"https://{address}/-/healthz", verify=trust_of(certificate)).text == "success"
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.get(f"https://{address}/-/healthz")
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://{address}/-/healthz")
    Path(key).write_text("half of it")
    other, other_key = make_certificate(tmp_path, "other.example")
    _until(lambda: shown._changed() != shown._loaded)
    assert httpx.get(f"https://{address}/-/healthz", verify=trust_of(certificate)).text == "success"
    Path(certificate).write_bytes(Path(other).read_bytes())
    Path(key).write_bytes(Path(other_key).read_bytes())
    _until(lambda: shown._changed() == shown._loaded)
    assert httpx.get(f"https://{address}/-/healthz", verify=trust_of(other)).text == "success"
    following.cancel()
    run(front.close())
    loop.call_soon_threadsafe(loop.stop)


def _until(is_so: Callable[[], bool]) -> None:
    async def poll() -> None:
        async with asyncio.timeout(10):
            while not is_so():
                await asyncio.sleep(0.02)

    asyncio.run(poll())


@pytest.mark.parametrize("verb", ["plan", "run", "deploy"])
@pytest.mark.parametrize(("fault", "field"), [
    ("no certificate", "certificate"), ("no key", "key"), ("not PEM", "certificate"), ("another's key", "key"),
    ("a password", "key"),
])  # fmt: skip
def test_unusable_files_are_reported_at_once(tmp_path: Path, verb: str, fault: str, field: str) -> None:
    certificate, key = make_certificate(tmp_path, "shop.example")
    if fault == "no certificate":
        Path(certificate).unlink()
    elif fault == "no key":
        Path(key).unlink()
    elif fault == "not PEM":
        Path(certificate).write_text("hello")
    elif fault == "another's key":
        _, key = make_certificate(tmp_path, "other.example")
    else:
        made: Any = serialization.load_pem_private_key(Path(key).read_bytes(), None)
        secret = serialization.BestAvailableEncryption(b"secret")
        pem = serialization.PrivateFormat.PKCS8
        Path(key).write_bytes(made.private_bytes(serialization.Encoding.PEM, pem, secret))
    file = tmp_path / "pipeline.yaml"
    file.write_text(f"{PIPELINE}  tls: {{certificate: {Path(certificate).name}, key: {Path(key).name}}}\n")
    done = CliRunner().invoke(command, [verb, str(file), "--set", f"store={tmp_path / 'store'}"])
    assert done.exit_code != 0
    assert f"serve.tls.{field}: " in done.stderr
    assert str(tmp_path) in done.stderr


def test_valid_files_are_accepted_and_not_uploaded(tmp_path: Path) -> None:
    make_certificate(tmp_path, "shop.example")
    file = tmp_path / "pipeline.yaml"
    file.write_text(f"{PIPELINE}  tls: {{certificate: shop.example.pem, key: shop.example.key}}\n")
    done = CliRunner().invoke(command, ["plan", str(file), "--set", f"store={tmp_path / 'store'}"])
    assert "data.sources.0.path: nothing found" in done.stderr, "it comes to the next mistake"
    serve = read_spec(file).serve
    assert serve.tls is not None
    assert serve.tls.key == str(tmp_path / "shop.example.key")
    assert url_of(serve) == "https://127.0.0.1:8000"
    with pytest.raises(SpecError, match=r"serve\.tls\.certificate: got 'shop.example.pem'; a job does not upload"):
        read_spec(file, ["store=/shared"], for_job=True)


@pytest.mark.parametrize(("origin", "is_one"), [
    ("https://shop.example", True), ("http://localhost:3000", True), ("*", True), ("http://[::1]:80", True),
    ("shop.example", False), ("https://shop.example/", False), ("https://", False), ("ftp://a", False),
])  # fmt: skip
def test_origins_are_as_browsers_send_them(origin: str, is_one: bool) -> None:
    if is_one:
        assert ServeSpec(cors_origins=[origin]).cors_origins == [origin]
        return
    with pytest.raises(ValidationError, match="cors_origins"):
        ServeSpec(cors_origins=[origin])
