"""A client of a running endpoint, for programs and the terminal; needs only httpx.

for piece in stream_reply("http://127.0.0.1:8000", [{"role": "user", "content": "Hello"}]):
    print(piece, end="")
"""

import contextlib
import json
import ssl
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx

from models.errors import RayconteurError

# A reply may wait in the endpoint's queue before its first token.
TIMEOUT = httpx.Timeout(connect=10, read=300, write=60, pool=10)

# Below the API's default: small models are incoherent at temperature 1.
TERMINAL_SAMPLING = {"temperature": 0.7, "top_p": 0.9}

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


class EndpointError(RayconteurError):
    """The endpoint could not be reached, or refused or failed; `status` is the HTTP status, if there is one."""

    def __init__(self, words: str, status: int | None = None) -> None:
        super().__init__(words)
        self.status = status


def model_names(base_url: str, key: str | None = None, verify: ssl.SSLContext | bool = True) -> list[str]:
    """The models that the endpoint serves. Raises EndpointError."""
    root = _root(base_url)
    with _connection(root, key, verify) as client:
        response = client.get(f"{root}/v1/models")
        _raise_for_error(response)
        try:
            return [str(model["id"]) for model in response.json()["data"]]
        except (ValueError, KeyError, TypeError) as error:
            raise EndpointError(f"{root} answers, but it is not a chat endpoint.") from error


def stream_reply(
    base_url: str,
    messages: list[dict[str, str]],
    model: str | None = None,
    key: str | None = None,
    verify: ssl.SSLContext | bool = True,
    **params: Any,
) -> Iterator[str]:
    """The reply to `messages` in pieces as they arrive; `model` None takes the endpoint's first model.

    `key` is an API key, if the endpoint needs one; `verify` is httpx's, for certificates; `params` are other
    fields of the request (temperature, max_tokens, ...). Raises EndpointError.
    """
    root = _root(base_url)
    body = {**params, "model": model or _first_model(root, key, verify), "messages": messages, "stream": True}
    with (
        _connection(root, key, verify) as client,
        client.stream("POST", f"{root}/v1/chat/completions", json=body) as response,
    ):
        if response.is_error:
            response.read()
        _raise_for_error(response)
        yield from _pieces(response)


def chat_in_terminal(base_url: str, model: str | None = None, key: str | None = None, **params: Any) -> None:
    """A conversation on standard input and output until /quit or the end of the input. Raises EndpointError.

    /new starts over; Ctrl-C stops the current reply.
    """
    model = model or _first_model(_root(base_url), key)
    print(f"Talking with {model}. /new starts over, /quit ends, Ctrl-C stops a reply.")
    settings = {**TERMINAL_SAMPLING, **params}
    messages: list[dict[str, str]] = []
    while (line := _read_line()) is not None:
        if line == "/quit":
            return
        if line == "/new":
            messages = []
            print("A new conversation.")
        elif line.startswith("/"):
            print(f"Unknown command {line.split()[0]}; the commands are /new and /quit.")
        elif line:
            messages.append({"role": "user", "content": line})
            reply = _print_reply(stream_reply(base_url, messages, model, key, **settings))
            if reply.strip():
                messages.append({"role": "assistant", "content": reply})
            else:  # the endpoint would refuse two consecutive user turns
                messages.pop()


def _read_line() -> str | None:
    """The next line, "" for Ctrl-C, None at the end of the input."""
    try:
        return input("you> ").strip()
    except EOFError:
        print()
        return None
    except KeyboardInterrupt:
        print()
        return ""


def _print_reply(pieces: Iterator[str]) -> str:
    """Print the reply as it arrives; returns the text up to its end, an error or Ctrl-C."""
    reply = ""
    try:
        for piece in pieces:
            reply += piece
            print(piece, end="", flush=True)
        print()
    except KeyboardInterrupt:
        print(" [stopped]")
    except EndpointError as error:
        if reply:
            print()
        print(f"error: {error}", file=sys.stderr)
    return reply


def _root(base_url: str) -> str:
    """The endpoint's address without a trailing slash or /v1."""
    root = base_url.rstrip("/").removesuffix("/v1")
    if urlsplit(root).scheme not in ("http", "https") or not urlsplit(root).hostname:
        raise EndpointError(f"{base_url!r} is not an address; give one like http://127.0.0.1:8000.")
    return root


def _first_model(root: str, key: str | None, verify: ssl.SSLContext | bool = True) -> str:
    names = model_names(root, key, verify)
    if not names:
        raise EndpointError(f"{root} serves no model.")
    return names[0]


@contextlib.contextmanager
def _connection(root: str, key: str | None, verify: ssl.SSLContext | bool) -> Iterator[httpx.Client]:
    """A client that raises EndpointError if it cannot reach the endpoint."""
    # A proxy from the environment cannot reach this machine's loopback addresses.
    trust_env = urlsplit(root).hostname not in LOOPBACK_HOSTS
    headers = {b"Authorization": f"Bearer {key.strip()}".encode()} if key else {}
    try:
        with httpx.Client(timeout=TIMEOUT, trust_env=trust_env, headers=headers, verify=verify) as client:
            yield client
    except httpx.ConnectError as error:
        raise EndpointError(f"Nothing answers at {root}; is the endpoint deployed? ({error})") from error
    except httpx.TimeoutException as error:
        raise EndpointError(f"{root} did not answer in time ({type(error).__name__}).") from error
    except httpx.HTTPError as error:
        raise EndpointError(f"The connection to {root} broke: {error}.") from error


def _raise_for_error(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = response.text.strip()[:300] or response.reason_phrase
    if response.status_code == 401:
        message += " `rayconteur chat` takes the key from RAYCONTEUR_API_KEY or --key."
    raise EndpointError(f"The endpoint answered {response.status_code}: {message}", response.status_code)


def _pieces(response: httpx.Response) -> Iterator[str]:
    """The text in a stream of chat completion chunks."""
    for line in response.iter_lines():
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:"):
            continue
        if data == "[DONE]":
            return
        try:
            chunk = json.loads(data)
            if "error" in chunk:
                raise EndpointError(str(chunk["error"]["message"]))
            texts = [choice["delta"].get("content") for choice in chunk["choices"]]
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise EndpointError(f"The endpoint streamed what is not a chat chunk: {data[:200]}") from error
        yield from (text for text in texts if text)
    raise EndpointError("The endpoint ended the reply before it was complete.")
