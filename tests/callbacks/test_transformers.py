"""TransformersCB: the model's own loss and logits, with models of our own and with those of transformers."""

import json
from copy import deepcopy
from functools import partial

import outputs_worker as worker
import pytest
import torch
from outputs import KINDS, PAD, Net, Output, Rows, V, cut, net, tokens
from test_all_resume import differences, n_places
from test_distributed import launch
from toolbox import at, drawn, generator, mentions, same, tensors_of
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from torcheval.metrics import MulticlassAccuracy

from minilearn import (
    EMACB,
    CompileCB,
    DatasetLoader,
    GradientAccumulationCB,
    GradientClippingCB,
    Learner,
    MetricsCB,
    MixedPrecisionCB,
    TransformersCB,
    by_length,
    counting,
)
from minilearn.callbacks.transformers import _by_value as by_value
from minilearn.fitting import mean as mean_module

TASKS = ("token", "next", "sequence")
LR = 0.5


def theirs(of, p=0.0):
    """Make a small model of the package transformers, or skip the test."""
    package = pytest.importorskip("transformers")
    package.logging.set_verbosity_error()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if of == "next":
            drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), p)
            config = {"vocab_size": V, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
            tokens = {"bos_token_id": 0, "eos_token_id": 0}
            return package.GPT2LMHeadModel(package.GPT2Config(**config, **tokens, **drop))
        drop = {"hidden_dropout_prob": p, "attention_probs_dropout_prob": p}
        config = {"vocab_size": V, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = package.BertConfig(**config, intermediate_size=16, num_labels=V, **drop)
        kinds = {"token": "BertForTokenClassification", "sequence": "BertForSequenceClassification"}
        return getattr(package, kinds[of])(config)


MODELS = {f"{name} {of}": (make, of) for name, make in (("our", net), ("their", theirs)) for of in TASKS}
EACH = pytest.mark.parametrize("name", MODELS)


def learner(model, batches, *cbs, cb=None, valid=True, **kwargs):
    kwargs = {"opt_func": SGD, "lr": LR, "default_cbs": False} | kwargs
    dls = {"train": batches, "eval": batches if valid else None}
    return Learner(model, dls, cbs=[cb or TransformersCB(), MetricsCB(), *cbs], **kwargs)


def made(name):
    make, of = MODELS[name]
    return make(of), of


def by_hand(model, batches, n_epochs=1, count=None):
    """Train by a loop, a step for each list of batches, weighted by their tokens; return the last loss."""
    opt = SGD(model.parameters(), LR)
    for _ in range(n_epochs):
        for several in batches:
            losses = [model(**batch).loss for batch in several]
            counts = [(count or len)(batch["labels"]) for batch in several]
            loss = sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts)
            loss.backward()
            opt.step()
            opt.zero_grad()
    return loss.item()


def n_tokens(of):
    def count(labels):
        return int(((labels[:, 1:] if of == "next" else labels) != PAD).sum())

    return len if of == "sequence" else count


def assert_close(model, expected, **bounds):
    mine, expected = tensors_of(model), tensors_of(expected)
    assert mine.keys() == expected.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], expected[name], **(bounds or {"rtol": 1e-5, "atol": 1e-6}))


# A loop by hand ---------------------------------------------------------------------------------------


@EACH
def test_training_is_a_loop_by_hand(name):
    model, of = made(name)
    expected, batches = deepcopy(model), cut(tokens(12, of), 5, 4, 3)
    learner(model, batches).fit(2)
    by_hand(expected, [[batch] for batch in batches], n_epochs=2)
    assert same(tensors_of(model), tensors_of(expected))


@EACH
def test_rows_have_the_mean_over_all_tokens(name):
    model, of = made(name)
    whole = tokens(12, of)
    learn = learner(model, cut(whole, 5, 4, 3), lr=0.0)
    learn.fit()
    expected = model(**whole).loss.item()
    assert [row["loss"] for row in learn.history] == pytest.approx([expected] * 2, rel=1e-6)


@EACH
def test_validation_before_any_training_counts_the_same_tokens(name):
    model, of = made(name)
    whole = tokens(12, of)
    row = learner(model, cut(whole, 5, 4, 3)).validate()
    assert row["loss"] == pytest.approx(model.eval()(**whole).loss.item(), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_of_any_kind_is_taken(kind):
    batches = cut(tokens(8), 4, 4)
    model, expected = net(kind=KINDS[kind]), net()
    learn = learner(model, batches)
    learn.fit()
    by_hand(expected, [[batch] for batch in batches])
    assert same(tensors_of(model), tensors_of(expected))
    assert learn.predict(batches).shape == (8, 6, V)


@pytest.mark.parametrize("key", ["labels", "label", "target", "targets"])
def test_labels_have_one_of_four_names(key):
    batch = tokens(8)
    batch[key] = batch.pop("labels")
    model, expected = net(), net()
    learner(model, [batch]).fit()
    by_hand(expected, [[tokens(8)]])
    assert same(tensors_of(model), tensors_of(expected))


def test_pairs_are_batches_too():
    batch = tokens(8)
    labels = batch.pop("labels")
    expected = net()
    by_hand(expected, [[tokens(8)]])
    for inputs in (batch, (batch["input_ids"], batch["attention_mask"])):
        learner(model := net(), [(inputs, labels)]).fit()
        assert same(tensors_of(model), tensors_of(expected))


@pytest.mark.slow
def test_a_data_set_of_dicts_is_read_and_collated():
    rows = Rows(tokens(12))
    learn = learner(net(p=0.1), DatasetLoader(rows, bs=5, shuffle=True, seed=3))
    learn.dls.valid = DatasetLoader(rows, bs=5)
    learn.fit()
    assert learn.predict(learn.dls.valid).shape == (12, 6, V)
    assert "bit for bit" in learn.verify_resume()


def test_metrics_see_the_logits_and_the_labels():
    whole = tokens(12, "sequence")
    model = net("sequence")
    cbs = [TransformersCB(), MetricsCB(acc=MulticlassAccuracy())]
    batches = cut(whole, 5, 7)
    learn = Learner(model, {"train": batches, "eval": batches}, lr=0.0, cbs=cbs, default_cbs=False)
    learn.fit()
    expected = (model(**whole).logits.argmax(1) == whole["labels"]).float().mean().item()
    assert [row["acc"] for row in learn.history] == pytest.approx([expected] * 2)


# Token-exact means ------------------------------------------------------------------------------------


@EACH
def test_four_batches_of_8_are_one_of_32(name):
    model, of = made(name)
    whole, expected = tokens(32, of), deepcopy(model)
    learn = learner(model, cut(whole, 8, 8, 8, 8), GradientAccumulationCB(4))
    learn.fit(2)
    assert learn.n_steps == 2
    by_hand(expected, [[whole]], n_epochs=2)
    assert_close(model, expected)


@pytest.mark.parametrize("of", TASKS)
def test_clipped_accumulation_in_bfloat16_is_a_loop_by_hand(of):
    model, expected = net(of), net(of)
    batches = cut(tokens(12, of), 5, 4, 3)
    learn = learner(model, batches, GradientAccumulationCB(2), GradientClippingCB(0.1), MixedPrecisionCB())
    learn.fit()
    opt, count = SGD(expected.parameters(), LR), n_tokens(of)
    for several in (batches[:2], batches[2:]):
        counts = [count(batch["labels"]) for batch in several]
        for n, batch in zip(counts, several, strict=True):
            with torch.autocast("cpu", torch.bfloat16):
                loss = expected(**batch).loss
            (loss * n / sum(counts)).backward()
        nn.utils.clip_grad_norm_(expected.parameters(), 0.1)
        opt.step()
        opt.zero_grad()
    assert_close(model, expected, rtol=0.01, atol=1e-3)  # the gradients of logits have 8 bits


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("of", ["token", "next"])
@pytest.mark.parametrize("at_first", ["plain", "zero"])
def test_the_shift_is_found_in_models_that_are_no_plain_cross_entropy(of, p, at_first):
    # With label smoothing and another term the value says nothing; where all logits are 0, it is log V.
    class Other(Net):
        def forward(self, input_ids, labels, attention_mask=None):
            out = super().forward(input_ids, attention_mask)
            wanted, given = (labels[:, 1:], out.logits[:, :-1]) if of == "next" else (labels, out.logits)
            loss = F.cross_entropy(given.reshape(-1, V), wanted.reshape(-1), label_smoothing=p)
            return Output(loss + 3 * p * self.embed.weight.square().mean(), out.logits)

    whole = tokens(12, of)
    found = []
    for batches, cbs in (([whole], []), (cut(whole, 5, 4, 3), [GradientAccumulationCB(3)])):
        model = drawn(Other(of))
        if at_first == "zero":
            nn.init.zeros_(model.head.weight)
            nn.init.zeros_(model.head.bias)
        learner(model, batches, *cbs).fit(2)
        found.append(model)
    assert_close(*found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["our next", pytest.param("their next", marks=pytest.mark.full)])
@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:The .grad attribute of a Tensor")  # torch's own
def test_compiled_models_are_exact_in_tokens_too(name):
    whole, models = tokens(32, MODELS[name][1]), []
    for batches, cbs in (([whole], []), (cut(whole, 8, 8, 8, 8), [GradientAccumulationCB(4)])):
        models.append(made(name)[0])
        learner(models[-1], batches, *cbs, CompileCB(backend="aot_eager"), valid=False).fit(2)
    assert_close(*models)


@pytest.mark.parametrize("shifts", [True, False])
def test_the_value_of_a_loss_says_nothing_where_all_logits_are_0(shifts):
    labels, logits = tokens(4)["labels"], torch.zeros(4, 6, V)
    assert by_value(F.cross_entropy(logits.mT, labels), logits, labels) is None
    logits = torch.randn(4, 6, V, generator=generator())
    given = (logits[:, :-1], labels[:, 1:]) if shifts else (logits, labels)
    loss = F.cross_entropy(given[0].mT, given[1])
    assert by_value(loss, logits, labels) is shifts
    assert by_value(loss.bfloat16(), logits, labels) is shifts
    assert by_value(1.05 * loss, logits, labels) is None


def test_a_count_that_is_given_is_used():
    class First(Net):  # the loss is over the first two tokens
        def forward(self, input_ids, labels, attention_mask=None):
            out = super().forward(input_ids, attention_mask)
            kept = labels[:, :2]
            return Output(F.cross_entropy(out.logits[:, :2].reshape(-1, V), kept.reshape(-1)), out.logits)

    whole, models = tokens(12), []
    whole["labels"][2:5, :2] = PAD
    for batches, cbs in (([whole], []), (cut(whole, 5, 4, 3), [GradientAccumulationCB(3)])):
        models.append(drawn(First()))
        cb = TransformersCB(count=lambda preds, labels: (labels[:, :2] != PAD).sum())
        learner(models[-1], batches, *cbs, cb=cb).fit()
    assert_close(*models)


def test_a_loss_whose_count_is_not_known_is_warned_of():
    class Odd(Net):
        def forward(self, input_ids, labels, attention_mask=None):
            out = super().forward(input_ids, attention_mask)
            return Output(out.logits.square().mean(), out.logits)

    batches = cut(tokens(8), 4, 4)
    with pytest.warns(UserWarning, match=mentions("Odd ... count=")) as warned:
        learner(drawn(Odd()), batches).fit()
    assert len(warned) == 1
    learner(drawn(Odd()), batches, cb=TransformersCB(count=lambda preds, labels: labels.numel())).fit()


@pytest.mark.parametrize("half", [False, True])
def test_a_batch_without_labels_that_count_changes_nothing(half, monkeypatch):
    whole = tokens(12)
    whole["labels"][:4] = PAD
    model, expected = net(), net()
    cbs = [MixedPrecisionCB()] * half
    learner(model, cut(whole, 4, 8), *cbs, GradientAccumulationCB(2)).fit()
    assert all(t.isfinite().all() for t in tensors_of(model).values())
    bounds = {"rtol": 0.05, "atol": 0.02} if half else {}  # of 8 bits
    by_hand(expected, [[{name: t[4:] for name, t in whole.items()}]])
    assert_close(model, expected, **bounds)


@pytest.mark.parametrize("cbs", [[], [MixedPrecisionCB()]])
def test_a_count_on_a_device_keeps_gradients_of_nothing_at_0(cbs, monkeypatch):
    class Summed(Net):  # whose own mean over nothing has gradients of nan
        def forward(self, input_ids, labels, attention_mask=None):
            out = super().forward(input_ids, attention_mask)
            each = F.cross_entropy(out.logits.reshape(-1, V), labels.reshape(-1), reduction="sum")
            return Output(each / (labels != PAD).sum(), out.logits)

    for place in (counting, mean_module):
        monkeypatch.setattr(place, "on_host", lambda count: count)
    whole = tokens(12)
    whole["labels"][:4] = PAD
    model = drawn(Summed())
    learner(model, cut(whole, 4, 8), *cbs, GradientAccumulationCB(2), lr=0.1).fit()
    assert all(t.isfinite().all() for t in tensors_of(model).values())


# With the rest ----------------------------------------------------------------------------------------


def test_bfloat16_casts_logits_to_float32():
    seen = []
    look = at("after_loss", lambda learn: seen.append((learn.preds.dtype, learn.loss.item())))
    model, batch = net("sequence"), tokens(8, "sequence")
    learner(model, [batch], MixedPrecisionCB(), look, valid=False).fit()
    with torch.autocast("cpu", torch.bfloat16):
        loss = net("sequence")(**batch).loss
    assert seen == [(torch.float32, loss.item())]


@EACH
def test_predict_gives_all_logits_with_labels_and_without(name):
    model, of = made(name)
    whole = tokens(12, of)
    learn = learner(model, cut(whole, 5, 4, 3))
    learn.fit()
    expected = model.eval()(**whole).logits
    torch.testing.assert_close(learn.predict(cut(whole, 5, 4, 3)), expected)
    whole.pop("labels")
    torch.testing.assert_close(learn.predict(cut(whole, 5, 4, 3)), expected)


def test_predict_gives_the_logits_of_the_average():
    whole = tokens(12)
    learn = learner(net(), cut(whole, 5, 7), EMACB(0.5))
    learn.fit(2)  # afterwards the model holds the average
    torch.testing.assert_close(learn.predict([whole]), learn.model.eval()(**whole).logits)
    assert learn.history[-1]["loss"] == pytest.approx(learn.model(**whole).loss.item(), rel=1e-5)


@pytest.mark.parametrize("cbs", [[], [EMACB(0.5)]])
def test_save_pretrained_writes_what_was_trained(tmp_path, cbs):
    model, whole = theirs("next"), tokens(12, "next")
    learn = learner(model, cut(whole, 5, 7), *cbs)
    learn.fit()
    learn.model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(again.eval()(**whole).logits, learn.predict([whole]))
    assert json.loads((tmp_path / "config.json").read_text())["n_embd"] == 8


def test_tokenizers_and_collators_make_its_batches():
    package = pytest.importorskip("transformers")
    rows = [
        {"input_ids": ids[:n], "label": 1}
        for ids, n in zip(tokens(6)["input_ids"].tolist(), (2, 6, 3, 4, 1, 5), strict=True)
    ]

    def collate(rows):
        longest = max(len(row["input_ids"]) for row in rows)
        padded = {"input_ids": [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows]}
        padded |= {"labels": [row["label"] for row in rows]}
        return package.BatchEncoding(padded, tensor_type="pt")

    learn = learner(theirs("sequence"), DatasetLoader(rows, bs=4, collate_fn=collate), default_cbs=True)
    learn.fit()
    assert learn.predict(DatasetLoader(rows, bs=4, collate_fn=collate)).shape == (6, V)


def test_a_models_whole_output_is_predicted_where_it_has_no_logits():
    package = pytest.importorskip("transformers")
    config = theirs("token").config
    config.num_labels = 2
    model = package.BertForQuestionAnswering(config)
    batch = tokens(8)
    batch.pop("labels")
    starts, ends = torch.randint(3, (2, 8), generator=generator())
    batches = cut({**batch, "start_positions": starts, "end_positions": ends}, 4, 4)
    expected = deepcopy(model)
    learn = learner(model, batches)
    learn.fit()
    opt = SGD(expected.parameters(), LR)
    for each in batches:
        expected(**each).loss.backward()
        opt.step()
        opt.zero_grad()
    assert same(tensors_of(model), tensors_of(expected))
    preds = learn.predict(batches)
    assert isinstance(preds, type(model(**batch)))
    assert sorted(preds) == ["end_logits", "start_logits"]
    torch.testing.assert_close(preds.end_logits, model.eval()(**batch).end_logits)


def test_an_encoder_decoder_does_not_shift_its_labels():
    package = pytest.importorskip("transformers")
    size = {"vocab_size": V, "d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 1, "num_heads": 2}
    config = package.T5Config(**size, dropout_rate=0.0, pad_token_id=0, decoder_start_token_id=0)
    torch.manual_seed(0)
    model, whole = package.T5ForConditionalGeneration(config), tokens(12)
    learn = learner(model, cut(whole, 5, 4, 3), lr=0.0)
    assert learn.validate()["loss"] == pytest.approx(model(**whole).loss.item(), rel=1e-6)
    assert learn.predict(cut(whole, 5, 7)).shape == (12, 6, V)


@pytest.mark.slow
def test_a_data_set_of_the_package_datasets_trains_by_length_predicts_and_resumes():
    datasets = pytest.importorskip("datasets")
    rows = [
        {name: row.tolist() for name, row in zip(whole, one, strict=True)}
        for whole in [tokens(12, "sequence")]
        for one in zip(*whole.values(), strict=True)
    ]
    lengths = [sum(row["attention_mask"]) for row in rows]
    table = datasets.table.InMemoryTable.from_pylist(
        [
            {name: value[:n] if name != "labels" else value for name, value in row.items()}
            for row, n in zip(rows, lengths, strict=True)
        ]
    )
    data = datasets.Dataset(table, fingerprint="of a test")

    def collate(items):
        size = max(len(item["input_ids"]) for item in items)
        padded = {name: torch.zeros(len(items), size).long() for name in ("input_ids", "attention_mask")}
        for i, item in enumerate(items):
            for name, part in padded.items():
                part[i, : len(item[name])] = torch.as_tensor(item[name])
        return padded | {"labels": torch.tensor([item["labels"] for item in items])}

    train = DatasetLoader(data, plan=by_length(lengths, tokens=20), collate_fn=collate)
    learn = learner(theirs("sequence", p=0.3), train, EMACB(0.9), MixedPrecisionCB(), valid=False)
    learn.dls = {"train": train, "eval": DatasetLoader(data, bs=4, collate_fn=collate)}
    assert "bit for bit" in learn.verify_resume()
    learn.fit(2)
    preds, target = learn.predict(data, with_targets=True)
    assert preds.shape == (12, V)
    assert target.tolist() == [row["labels"] for row in rows]


def test_another_field_of_the_output_is_predicted():
    package = pytest.importorskip("transformers")
    model = package.BertModel(theirs("token").config)
    batch = tokens(8)
    batch.pop("labels")
    learn = learner(model, cut(batch, 4, 4), cb=TransformersCB("pooler_output"))
    torch.testing.assert_close(learn.predict(cut(batch, 4, 4)), model.eval()(**batch).pooler_output)


def test_a_loss_func_that_is_given_is_used_and_the_model_gets_no_labels():
    asked = []

    class Asked(Net):
        def forward(self, input_ids, attention_mask=None, labels=None):
            asked.append(labels)
            return super().forward(input_ids, attention_mask, labels)

    def loss_func(logits, labels):
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.3)

    whole = tokens(12)
    model, expected = drawn(Asked()), net()
    learner(model, [whole], loss_func=loss_func).fit()
    opt, labels = SGD(expected.parameters(), LR), whole.pop("labels")
    loss_func(expected(**whole).logits, labels).backward()
    opt.step()
    assert same(tensors_of(model), tensors_of(expected))
    assert asked == [None, None]


def test_lr_find_leaves_the_model_as_it_was():
    model = net()
    before = tensors_of(model)
    found = learner(model, cut(tokens(32), 8, 8, 8, 8)).lr_find(n_steps=12)
    assert len(found.losses) == 12
    assert same(before, tensors_of(model))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.full] * (name[:5] == "their" and name != "their next"))
        for name in MODELS
    ],
)
def test_a_run_is_resumed_bit_for_bit_from_each_place(tmp_path, name):
    make, of = MODELS[name]
    batches = cut(tokens(12, of), 4, 3, 3, 2)

    def cbs():
        return [TransformersCB(), MetricsCB(), GradientAccumulationCB(2), MixedPrecisionCB()]

    found = differences(
        cbs,
        tmp_path,
        n_places(3, 2),
        model=partial(make, of, p=0.3),
        dls={"train": batches[:3], "eval": batches[3:] * 2},
    )
    assert [(position, how) for position, how in found if how] == []


# Without it -------------------------------------------------------------------------------------------


def test_an_output_of_transformers_keeps_its_class_without_it_too():
    def loss_func(out, labels):
        kinds.add((type(out).__name__, out.logits.dtype))
        return F.cross_entropy(out.logits, labels)

    kinds, whole = set(), tokens(12, "sequence")
    cbs = [MixedPrecisionCB(), EMACB(0.5), MetricsCB()]
    dls = {"train": cut(whole, 5, 7), "eval": cut(whole, 5, 7)}
    learn = Learner(theirs("sequence"), dls, loss_func, cbs=cbs)
    learn.fit()
    assert kinds == {("SequenceClassifierOutput", torch.float32)}
    preds = learn.predict(dls["eval"])
    assert type(preds).__name__ == "SequenceClassifierOutput"
    assert preds.logits.shape == (12, V)
    assert preds.loss is None


# Two processes ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_two(tmp_path_factory):
    """What two processes and one come to."""
    folder = tmp_path_factory.mktemp("two")
    codes, said = launch(2, "two", folder, worker.__file__)
    assert codes == [0, 0], said
    alone = worker.results(folder / "alone")
    return torch.load(folder / "two.pt"), alone


@pytest.mark.full
@pytest.mark.parametrize(
    "case", [*TASKS, "loss_func", "shards without labels", "detection", "unfreezing", "straight"]
)
def test_two_processes_are_one(in_two, case):
    two, alone = (found[case] for found in in_two)
    for row, expected in zip(two["rows"], alone["rows"], strict=True):
        assert row == pytest.approx(expected, abs=1e-5)
    for part in ("weights", "preds"):
        torch.testing.assert_close(two[part], alone[part], rtol=1e-4, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("of", TASKS)
def test_accumulated_batches_in_two_processes_are_one_of_32(in_two, of):
    expected = net(of)
    by_hand(expected, [[tokens(worker.N, of)]], n_epochs=2)
    weights = in_two[0][of]["weights"]
    torch.testing.assert_close(weights, dict(expected.state_dict()), rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_two_processes_resume_bit_for_bit(in_two):
    straight, resumed = in_two[0]["straight"], in_two[0]["resumed"]
    assert same(straight["weights"], resumed["weights"])
    assert straight["rows"] == resumed["rows"]
    assert torch.equal(straight["preds"], resumed["preds"])


# Errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["fit", "validate"])
def test_a_batch_without_labels_is_refused(run):
    batch = tokens(8)
    batch.pop("labels")
    with pytest.raises(
        ValueError, match=mentions("Net ... no loss ... 'input_ids', 'attention_mask' ... 'labels'")
    ):
        getattr(learner(net(), [batch]), run)()


@pytest.mark.parametrize("kind", ["tensor", "tuple"])
def test_an_output_without_a_loss_is_refused(kind):
    class Bare(Net):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            return out.logits if kind == "tensor" else (out.loss, out.logits)

    with pytest.raises(TypeError, match=mentions("Bare ... .loss and .logits ... return_dict=True")):
        learner(drawn(Bare()), [tokens(8)]).fit()


def test_a_loss_for_each_sample_is_refused():
    class Each(Net):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            return Output(out.loss.expand(8), out.logits)

    with pytest.raises(ValueError, match=mentions("'Each' ... shape (8,) ... one number")):
        learner(drawn(Each()), [tokens(8)]).fit()


def test_a_field_that_the_output_has_not_is_refused_with_what_it_has():
    with pytest.raises(ValueError, match=mentions("Net has no 'logit' ... loss, logits")):
        learner(net(), [tokens(8)], cb=TransformersCB("logit")).fit()
