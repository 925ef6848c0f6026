"""Functions of Python's standard library, a tokenizer trained on them, and a BERT."""

import ast
import sysconfig
from functools import cache
from pathlib import Path
from textwrap import dedent

from datasets import Dataset
from datasets.table import InMemoryTable
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
)

from minilearn import DataLoaders, DatasetLoader, by_length

PACKAGES = [
    *("asyncio", "email", "encodings", "http", "importlib"),
    *("logging", "multiprocessing", "unittest", "urllib", "xml"),
]
MOST_TOKENS = 96  # of a function; the rest is cut off


@cache
def functions():
    """Return the source of each function, without copies, and the number of its package, in two lists."""
    found = {}
    for label, package in enumerate(PACKAGES):
        folder = Path(sysconfig.get_path("stdlib")) / package
        for path in sorted(folder.rglob("*.py")):
            if "test" in path.parts:
                continue
            text = path.read_text(encoding="utf-8")
            lines = text.splitlines()
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    found.setdefault(dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])), label)
    return list(found), list(found.values())


def splits(small=False):
    """Return the functions to train on, and every fifth, which is held out: (sources, labels) of each."""
    sources, labels = (found[:: 20 if small else 1] for found in functions())
    is_fifth = [i % 5 == 0 for i in range(len(labels))]
    train = [[x for x, held in zip(found, is_fifth, strict=True) if not held] for found in (sources, labels)]
    return train, [sources[::5], labels[::5]]


def tokenizer_of(sources):
    """Return a byte-pair tokenizer that is trained on these functions."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["[PAD]", "[CLS]", "[SEP]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(sources, trainer)
    bpe.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=MOST_TOKENS, **names)


def data(seed, small=False):
    """Return loaders of dicts, padded to the longest of a batch, and the tokenizer."""
    train, held_out = splits(small)
    tokenizer = tokenizer_of(train[0])
    collate = DataCollatorWithPadding(tokenizer)

    def loader(name, sources, labels, tokens, shuffle):
        columns = dict(tokenizer(sources, truncation=True))
        dataset = Dataset(InMemoryTable.from_pydict({**columns, "label": labels}), fingerprint=name)
        plan = by_length([len(ids) for ids in columns["input_ids"]], tokens=tokens, shuffle=shuffle)
        return DatasetLoader(dataset, plan=plan, collate_fn=collate, seed=seed)

    dls = DataLoaders(
        loader("train", *train, tokens=2048, shuffle=True),
        loader("held_out", *held_out, tokens=8192, shuffle=False),
        classes=PACKAGES,
        source="functions of the standard library",
    )
    return dls, tokenizer


def bert(tokenizer):
    """Return a small BERT with a head for the packages, not pretrained."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=MOST_TOKENS,
        num_labels=len(PACKAGES),
        id2label=dict(enumerate(PACKAGES)),
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",  # in 16 bits faster on a CPU than torch's own
    )
    return BertForSequenceClassification(config)


def bag_of_words_accuracy(small=False):
    """Return the held-out accuracy of a logistic regression on counts of words."""
    (sources, labels), (held_out, held_out_labels) = splits(small)
    words = CountVectorizer(token_pattern=r"\w+", lowercase=False)
    regression = LogisticRegression(max_iter=1000).fit(words.fit_transform(sources), labels)
    return float(regression.score(words.transform(held_out), held_out_labels))
