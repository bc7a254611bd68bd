"""Writes the tokenizer of this folder (byte-level BPE, a few words, ChatML) and `chats.json`: what
transformers makes of conversations by the templates in `templates/`.

    pip install tokenizers==0.22.2 transformers==5.17.0 jinja2 && python testdata/tokenizer/make.py
"""

import json
import pathlib

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.utils.chat_template_utils import render_jinja_template

TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather's \"mood\" & <more>: größer",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
            "required": ["city"],
        },
    },
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}}

user = lambda content: {"role": "user", "content": content}
assistant = lambda content: {"role": "assistant", "content": content}
TWO = [user("Hi"), assistant("Hello <b>\n"), user(" Größe? "), assistant("2 m")]
CASES = {
    "two turns": {"messages": TWO},
    "prompt": {"messages": TWO[:3], "prompt": True},
    "system": {"messages": [{"role": "system", "content": " Be brief. "}, *TWO[:2]]},
    "two of one role": {"messages": [user("a"), user("b")]},
    "reasoning": {"messages": [user("Hi"), assistant("<think>\nhm\n</think>\n\nHello"), *TWO[2:]]},
    "tools": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            user("Zürich?"),
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "name": "weather", "content": '{"t": 22.0}'},
            assistant("22 °C"),
        ],
        "tools": [TOOL],
    },
}
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>", "date_string": "26 Jul 2024"}


def rendered(template, case):
    try:
        texts, spans = render_jinja_template(
            [case["messages"]],
            tools=case.get("tools"),
            chat_template=template,
            add_generation_prompt=case.get("prompt", False),
            return_assistant_tokens_mask=True,
            **VARIABLES,
        )
    except Exception as error:
        return {"error": str(error)}
    # Counted in characters there.
    return {"text": texts[0], "assistant": [texts[0][a:b] for a, b in spans[0]]}


folder = pathlib.Path(__file__).parent
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
)
tokenizer.train_from_iterator(["hello world user assistant system"] * 4, trainer)
tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": None,
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "chat_template": TEMPLATE,
}
(folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")

templates = sorted((folder / "templates").glob("*.jinja"))
expected = {
    path.name: {name: rendered(path.read_text(), case) for name, case in CASES.items()}
    for path in templates
}
chats = {"variables": VARIABLES, "cases": CASES, "expected": expected}
(folder / "chats.json").write_text(json.dumps(chats, indent=1, ensure_ascii=False) + "\n")
