"""Numbers of texts by a transformers tokenizer to which tokens were added.

    python make.py

`ids.json` is of ../tokenizer with the tokens below.
"""

import json
import pathlib

from transformers import AutoTokenizer

HERE = pathlib.Path(__file__).parent
TOKENS = ["<tool>", " hello", "<|im_end|>", "é\"\\"]
SPECIAL = ["<eot>", "<tool>x"]
TEXTS = [
    "hello world",
    "hello<tool>world<eot>",
    "say hello hello<|im_end|>",
    "a <tool>x <tool> é\"\\ <eot><eot>\n",
]


def main():
    tokenizer = AutoTokenizer.from_pretrained(HERE.parent / "tokenizer")
    before = len(tokenizer)
    # `<|im_end|>` is left out: transformers would take from it that it is special.
    tokenizer.add_tokens([token for token in TOKENS if token not in tokenizer.get_vocab()])
    tokenizer.add_tokens(SPECIAL, special_tokens=True)
    texts = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        shown = tokenizer.decode(ids, skip_special_tokens=True)
        texts.append({"text": text, "ids": ids, "shown": shown})
    found = {
        "before": before,
        "tokens": [[token, tokenizer.convert_tokens_to_ids(token)] for token in TOKENS],
        "special": [[token, tokenizer.convert_tokens_to_ids(token)] for token in SPECIAL],
        "texts": texts,
    }
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    (HERE / "ids.json").write_text(text, encoding="utf-8")


main()
