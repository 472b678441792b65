"""The client and the terminal chat against a real endpoint."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from models.base.load import load_tokenizer
from serve.access.api_keys import KeyRing, make_key
from serve.api.routes import create_app
from serve.api.settings import ApiSettings
from serve.client import EndpointError, chat_in_terminal, model_names, stream_reply
from serve.engines.torch import TorchEngine
from workflows.cli.commands import command

HELLO = [{"role": "user", "content": "Hello"}]
SHORT = ApiSettings(max_new_tokens=12)


@pytest.fixture(scope="module")
def url(serving: Callable[[Any], AbstractContextManager[str]], tiny_llama: Path) -> Iterator[str]:
    engine = TorchEngine(tiny_llama, precision="fp32", num_threads=1)
    with serving(create_app(engine, load_tokenizer(tiny_llama), "tiny", settings=SHORT)) as url:
        yield url
    engine.close()


def test_a_reply_comes_in_pieces(url: str) -> None:
    pieces = list(stream_reply(url, HELLO, temperature=2, seed=1, max_tokens=30))
    assert len(pieces) > 5
    assert "".join(pieces) == "".join(stream_reply(f"{url}/v1/", HELLO, "tiny", temperature=2, seed=1, max_tokens=30))
    assert model_names(url) == ["tiny"]


def test_a_refusal_shows_the_endpoints_message(url: str) -> None:
    with pytest.raises(EndpointError, match="400: Unrecognized or unsupported request argument: function"):
        list(stream_reply(url, HELLO, function=[]))
    with pytest.raises(EndpointError, match="'other' does not exist"):
        list(stream_reply(url, HELLO, "other"))


def test_an_endpoint_with_keys(
    serving: Callable[[Any], AbstractContextManager[str]],
    tiny_llama: Path,
) -> None:
    secret, key = make_key("alice")
    ring = KeyRing(lambda: [key])
    engine = TorchEngine(tiny_llama, precision="fp32", num_threads=1)
    with serving(create_app(engine, load_tokenizer(tiny_llama), "tiny", settings=SHORT, keys=ring)) as url:
        assert model_names(url, secret) == ["tiny"]
        assert "".join(stream_reply(url, HELLO, key=secret, max_tokens=5, seed=1))
        with pytest.raises(EndpointError, match=r"401: This endpoint needs an API key") as raised:
            model_names(url)
        assert raised.value.status == 401
        for arguments, environment in (
            (["chat", url, "--key", secret], {}),
            (["chat", url], {"RAYCONTEUR_API_KEY": f"{secret}\n"}),
        ):
            talk = CliRunner().invoke(command, arguments, input="Hello\n/quit\n", env=environment)
            assert (talk.exit_code, talk.stderr) == (0, "")
            assert talk.stdout.startswith("Talking with tiny.")
        # The client must not send a key for another service to this server.
        silent = CliRunner().invoke(command, ["chat", url], env={"OPENAI_API_KEY": secret})
        assert silent.exit_code == 1
        assert "RAYCONTEUR_API_KEY" in silent.stderr
    engine.close()
    ring.close()


def test_an_unreachable_endpoint_is_reported() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(EndpointError, match=f"Nothing answers at {address}"):
        list(stream_reply(address, HELLO))
    with pytest.raises(EndpointError, match="not an address"):
        model_names("localhost:8000")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ('data: {"choices": [{"delta": {"content": "a"}}]}\n\n', "before it was complete"),
        ('data: {"error": {"message": "The engine failed."}}\n\n', "The engine failed."),
        ("data: nonsense\n\n", "not a chat chunk: nonsense"),
        ("<html>", "before it was complete"),
    ],
)
def test_a_broken_stream_is_an_error(answer: str, message: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(EndpointError, match=message):
            list(stream_reply(f"http://127.0.0.1:{server.server_port}", HELLO, "any"))
        thread.join()


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make input() return these lines and raise those that are exceptions; after the last, input ends."""

    def type_lines(*lines: str | BaseException) -> None:
        remaining = iter([*lines, EOFError()])

        def read(prompt: str) -> str:
            assert prompt == "you> "
            line = next(remaining)
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)

    return type_lines


def test_the_terminal_keeps_the_conversation(
    url: str, typed: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[dict[str, str]]] = []

    def reply(base_url: str, messages: list[dict[str, str]], *args: Any, **params: Any) -> Iterator[str]:
        asked.append(list(messages))
        yield from ["an ", "answer"]
        if messages[-1]["content"] == "stop me":
            raise KeyboardInterrupt
        if messages[-1]["content"] == "fail":
            raise EndpointError("It broke.")

    monkeypatch.setattr("serve.client.stream_reply", reply)
    typed("one", "", "stop me", KeyboardInterrupt(), "two", "/new", "/what", "fail", "/quit", "never")
    chat_in_terminal(url)

    def turns(*texts: str) -> list[tuple[str, str]]:
        return [("assistant" if index % 2 else "user", text) for index, text in enumerate(texts)]

    assert [[(message["role"], message["content"]) for message in messages] for messages in asked] == [
        turns("one"),
        turns("one", "an answer", "stop me"),
        turns("one", "an answer", "stop me", "an answer", "two"),
        turns("fail"),
    ]
    output = capsys.readouterr()
    assert "Talking with tiny." in output.out
    assert "an answer [stopped]" in output.out
    assert "Unknown command /what" in output.out
    assert output.err == "error: It broke.\n"


def test_the_terminal_chats_with_the_endpoint(
    url: str, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    typed("Hello", "Again")
    chat_in_terminal(url, temperature=2, seed=1)
    output = capsys.readouterr()
    assert len(output.out.splitlines()) > 2
    assert output.err == ""
