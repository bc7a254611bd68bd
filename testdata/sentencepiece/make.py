"""Models of SentencePiece, and the ids that it gives to texts: python make.py

Made with sentencepiece 0.2.3.
"""

import json
import pathlib
import shutil

import sentencepiece

HERE = pathlib.Path(__file__).parent
BOOK = HERE.parent.parent / "docs"

TEXTS = [
    "",
    " ",
    "a",
    "hello world",
    "  two spaces  before,  between and after  ",
    "Hello, World! The adapter's rank is 16; alpha is 32.",
    "one\ntwo\n\nthree\t\tfour",
    "naïve café, Zürich — “quoted” … № 5 ﬁne ①②",
    "Straße ÄÖÜ äöü ß",
    "日本語のテキスト。全角ＡＢＣ　と空白",
    "Привет, мир",
    "emoji 🙂🙃 👩‍👩‍👧 end",
    "x = [1.5, -2e-7]; y += {'a': 0b11}",
    "▁ is the mark of a space",
    "zero\u200bwidth \u00a0no-break",
    "[INST] What is <0x41>? [/INST] A.\n\nB",
    "the the the thethethe",
    "llllllllllllllllllllllll",
    "A" * 60,
    "combining: e\u0301 o\u0308",
    "\u0000 control \u0007",
    "training_loss=0.1234 lr=2e-4 step=10/200",
]


def train(name, **options):
    out = HERE / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    lines = [line for file in sorted(BOOK.glob("*.md")) for line in file.read_text().splitlines()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for line in lines if line.strip()),
        model_prefix=str(out / "tokenizer"),
        num_threads=1,
        minloglevel=2,
        **options,
    )
    (out / "tokenizer.vocab").unlink()
    processor = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    ids = [[text, processor.encode(text), processor.decode(processor.encode(text))] for text in TEXTS]
    (out / "ids.json").write_text(json.dumps(ids, ensure_ascii=False, indent=1))
    return out


# As Llama 2's.
train(
    "llama",
    model_type="bpe",
    vocab_size=700,
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    split_digits=True,
    allow_whitespace_only_pieces=True,
)
# As Gemma's: other numbers of special tokens, tokens of a user, no space before a text.
train(
    "gemma",
    model_type="bpe",
    vocab_size=700,
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    add_dummy_prefix=False,
    split_digits=True,
    allow_whitespace_only_pieces=True,
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    user_defined_symbols=["[INST]", "\n\n", "[/INST]"],
)
# As many Japanese models': Unigram, normalized.
train("unigram", model_type="unigram", vocab_size=500, normalization_rule_name="nmt_nfkc")
# With bytes for unknown characters.
train(
    "unigram_bytes",
    model_type="unigram",
    vocab_size=700,
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    add_dummy_prefix=False,
)
