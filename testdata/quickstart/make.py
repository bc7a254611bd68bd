"""Makes train.jsonl and test.jsonl: rows of plotnine's diamonds (MIT) in words.

    pip download --no-deps plotnine==0.15.9 && python3 -m zipfile -e plotnine-*.whl plotnine
    python3 make.py plotnine/plotnine/data/diamonds.csv
"""

import csv
import json
import pathlib
import random
import sys

TRAIN, TEST = 6000, 500


def example(row):
    carat, cut, color, clarity = float(row["carat"]), row["cut"].lower(), row["color"], row["clarity"]
    return {
        "prompt": f"A {carat:.2f} carat diamond, {cut} cut, color {color}, clarity {clarity}.\nPrice is $",
        "completion": f"{int(row['price']):,}",
    }


def main():
    with open(sys.argv[1], newline="") as file:
        rows = list(csv.DictReader(file))
    random.seed(0)
    random.shuffle(rows)
    examples = [example(row) for row in rows]
    train = examples[:TRAIN]
    # Many diamonds are alike in words: those held out have words that are not trained on.
    known = {example["prompt"] for example in train}
    test = [example for example in examples[TRAIN:] if example["prompt"] not in known][:TEST]
    folder = pathlib.Path(__file__).parent
    for name, part in [("train", train), ("test", test)]:
        lines = [json.dumps(example) + "\n" for example in part]
        (folder / f"{name}.jsonl").write_text("".join(lines))


main()
