"""`data.add_tokens`, from raw conversations to a release that generates the new tokens."""

import json
from pathlib import Path

import pyarrow.dataset
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.chat import encode_prompt
from models.generation import greedy_replies


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_release_encodes_and_generates_them_as_one_token(run, tiny, tmp_path, kind):
    file = tmp_path / "talks.jsonl"
    file.write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": f"Where is {n}?"},
                                     {"role": "assistant", "content": "In Brindlewick."}]}) + "\n"
            for n in range(60)
        )
    )  # fmt: skip
    tiny["data"] = {"sources": [{"path": str(file)}], "held_out_share": 0.2, "new_tokens": ["Brindlewick", "<here>"]}
    tiny["train"] |= {"adapter": {"rank": 8} if kind == "lora" else None, "zero": {"stage": 2}, "epochs": 20}
    tiny["train"] |= {"learning_rate": 1e-2, "precision": "bf16", "batch_tokens": 256, "checkpoint_every_steps": 500}
    done, store = run("optimize", tiny)

    corpus = store.path("prepare", done["prepare"].key, "corpus", "split=train")
    rows = pyarrow.dataset.dataset(corpus, filesystem=store.filesystem, format="parquet").to_table().to_pylist()
    assert all(row["input_ids"].count(260) == 1 for row in rows)

    folder = Path(store.path("optimize", done["optimize"].key, "model"))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer("Brindlewick")["input_ids"] == [260]
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == len(tokenizer) == 262
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": "Where is 7?"}])
    [reply] = greedy_replies(model, [prompt], 12, [tokenizer.eos_token_id])
    assert 260 in reply
    assert "In Brindlewick"[: 2 if kind == "lora" else 14] in tokenizer.decode(reply, skip_special_tokens=True)
    assert done["evaluate"].figures["tuned_loss"] < done["evaluate"].figures["base_loss"] - 1
