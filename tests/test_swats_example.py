import json
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from matplotlib.image import imread
from toolbox import StopCB, StoppedError

from minilearn import ResNet, densenet121, resnet18, set_seed
from minilearn.optim import SWATS
from minilearn.optim.swats import _lr_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cache")]


@pytest.fixture
def script(example):
    return example("swats")


@pytest.fixture
def short(script, monkeypatch):
    """Make presets of 4 epochs on 40 images; all tensors are settled at once."""
    for name, preset in script.PRESETS.items():
        changed = replace(preset, n_epochs=4, n_images=40, bs=16, threshold=1e3)
        monkeypatch.setitem(script.PRESETS, name, changed)


@pytest.fixture
def main(call_main, tmp_path, write_cifar):
    data = write_cifar(tmp_path / "data", n_train=40, n_valid=10)
    return partial(call_main, "swats", "--data", data, "--work", tmp_path / "work")


@pytest.mark.full
def test_document_004_is_run_network_for_network_and_optimizer_for_optimizer(
    script, main, short, tmp_path, capsys
):
    main("--runs", "2")
    result = json.loads((tmp_path / "out" / "swats_small.json").read_text())
    assert list(result["rows"]) == script.NAMES
    assert len(script.NAMES) == 2 * 6
    assert (result["n"], result["data"], result["threshold"]) == (2, "CIFAR-10, JPEG-coded (cifar10)", 1e3)
    for name, row in result["rows"].items():
        assert len(row["eval accuracy"]["each"]) == len(result["histories"][name]) == 2
        assert ("n_switched" in row) is ("SWATS" in name) is (name in result["switches"])
    for name, runs in result["switches"].items():
        assert result["rows"][name]["n_switched"] == [len(run["points"]) for run in runs]
        assert {step for run in runs for _, step, _ in run["points"]} == {2}
    for picture in ("accuracy", "switches_resnet", "switches_densenet"):
        assert imread(tmp_path / "out" / f"swats_small_{picture}.png").ndim == 3
    assert "tensors have switched" in capsys.readouterr().out


def test_quarter_preset_has_the_document_s_tensors_and_trains_as_long_as_its_table(script, document):
    quarter, full = script.PRESETS["quarter"], script.PRESETS["full"]
    (resnet,) = quarter.models.values()
    ours, theirs = (dict(make(n_channels=3).named_parameters()) for make in (resnet, resnet18))
    assert ours.keys() == theirs.keys()
    assert len(ours) == 62
    assert all(4 * len(ours[name]) == len(theirs[name]) for name in ours if "head" not in name)
    same = ("threshold", "bs", "n_images", "wd")
    assert [getattr(quarter, name) for name in same] == [getattr(full, name) for name in same]
    last = max(step for step, _ in script.PUBLISHED_SWITCHES.values())
    assert quarter.n_epochs * -(-50_000 // quarter.bs) >= last
    assert quarter.names == [f"ResNet, {name}" for name in script.OPTIMIZERS if name != "AdamW"]


def test_published_switches_are_those_of_the_text(script, document):
    text = document("004").split("DenseNet-121\n\nLayer")[0]
    rows = re.findall(r"^([a-z]\S+) (\d+) (\d\.\d+)$", text, re.MULTILINE)
    assert {layer: (int(step), float(lr)) for layer, step, lr in rows} == script.PUBLISHED_SWITCHES
    assert len(rows) == 20
    names = [script.published_name(name) for name, _ in resnet18(n_channels=3).named_parameters()]
    assert len({*names}) == 62
    assert {*script.PUBLISHED_SWITCHES} <= {*names}


@pytest.mark.full
def test_some_optimizers_are_run_with_the_first_seed_only(script, main, short, monkeypatch, tmp_path, capsys):
    preset, names = script.PRESETS["small"], (script.GLOBAL, script.LOCAL, "Adam")
    models = {"ResNet": preset.models["ResNet"]}
    preset = replace(preset, models=models, optimizers=names, once=("Adam",))
    monkeypatch.setitem(script.PRESETS, "small", preset)
    main("--runs", "2")
    result = json.loads((tmp_path / "out" / "swats_small.json").read_text())
    assert [len(row["eval loss"]["each"]) for row in result["rows"].values()] == [2, 2, 1]
    family = {(d.name, d.measure): d for d in script.compared(result["rows"])}
    local, adam = (result["rows"][f"ResNet, {name}"]["eval loss"]["each"] for name in (script.LOCAL, "Adam"))
    assert family["ResNet, local - Adam", "eval loss"].each == (local[0] - adam[0],)
    assert family["ResNet, local - global", "eval loss"].p is not None
    legend = script.plot_accuracy(result["histories"]).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [
        *(script.GLOBAL, script.LOCAL),
        "Adam (n = 1)",
    ]


def test_experiment_that_a_preset_lacks_is_refused(main):
    with pytest.raises(SystemExit, match=r"'DenseNet, Adam'.*'ResNet, SGD'"):
        main("--preset", "quarter", "--only", "DenseNet, Adam")


def test_full_preset_is_the_document_s(script):
    full = script.PRESETS["full"]
    assert (full.models, full.n_epochs) == ({"ResNet": resnet18, "DenseNet": densenet121}, 200)
    assert (full.threshold, full.bs, full.n_images, full.wd) == (1e-5, 128, None, 0.0)
    assert {name: lr for name, (lr, _) in script.OPTIMIZERS.items() if name != "SGD"} == dict.fromkeys(
        [name for name in script.OPTIMIZERS if name != "SGD"], 1e-3
    )


@pytest.mark.parametrize(
    ("name", "at"),
    [
        *[(f"ResNet, {optimizer}", 100) for optimizer in ("SWATS, global", "AdaBound", "Adam", "SGD")],
        *[(f"DenseNet, {optimizer}", 150) for optimizer in ("SWATS, global", "AdaBound", "AdamW")],
        ("DenseNet, SWATS, local", 100),
    ],
)
def test_lr_is_decayed_where_the_document_says(script, make_learner, name, at):
    scheduler = script.schedules_of(name, 200)[0]
    learn = make_learner(n_batches=1, lr=0.5, opt_func=torch.optim.SGD)
    lrs = scheduler.preview(learn, 200)
    assert [lrs[0], lrs[at - 1], lrs[at], lrs[199]] == pytest.approx([0.5, 0.5, 0.05, 0.05])


def test_layers_in_sgd_s_phase_are_decayed_by_themselves(script, make_learner, at):
    scales = []

    def look(learn):
        p = learn.model.weight
        state, group = learn.opt.state[p], learn.opt.param_groups[0]
        scales.append((_lr_of(state, group) / state["sgd_lr"].item(), group["lr"]))

    cbs = [*script.schedules_of("ResNet, SWATS, local", 16), at("after_train", look)]
    opt_func = script.OPTIMIZERS["SWATS, local"][1](1e3, 5e-4)
    make_learner(n_batches=2, n_valid=0, lr=1e-3, opt_func=opt_func, cbs=cbs).fit(16)
    # Of 200 epochs 75, 100 and 150; of 16 these are 6, 8 and 12.
    assert [scale for scale, _ in scales] == pytest.approx([1.0] * 6 + [0.1] * 6 + [0.01] * 4)
    assert [lr for _, lr in scales] == pytest.approx([1e-3] * 8 + [1e-4] * 8)


def test_run_that_broke_off_goes_on(script, short, tmp_path, write_cifar):
    preset = replace(script.PRESETS["small"], threshold=0.05)
    dls = script.cifar10(root=write_cifar(tmp_path / "data", 40, 10), bs=16, seed=0)

    def trained(folder, *cbs):
        set_seed(0)
        learn, switches = script.train("ResNet, SWATS, local", preset, dls, folder, cbs)
        return [row["loss"] for row in learn.history], switches.points

    straight = trained(tmp_path / "straight")
    with pytest.raises(StoppedError):
        trained(tmp_path / "stopped", StopCB(7))
    assert trained(tmp_path / "stopped") == straight
    assert straight[1]


@pytest.mark.full
@pytest.mark.slow
def test_full_preset_runs(script, main, short, monkeypatch, tmp_path):
    fewer = replace(script.PRESETS["full"], n_images=8, bs=4)
    monkeypatch.setitem(script.PRESETS, "full", fewer)
    for name in ("ResNet, SWATS, local", "DenseNet, SWATS, global"):
        main("--preset", "full", "--only", name)
        result = json.loads((tmp_path / "out" / "swats_full.json").read_text())
        assert list(result["rows"]) == [name]


def test_bfloat16_and_channels_last_leave_the_estimates_whole(script, short, tmp_path, write_cifar):
    dls = script.cifar10(root=write_cifar(tmp_path / "data", 40, 10), bs=16, seed=0)
    set_seed(0)
    preset = replace(script.PRESETS["small"], models={"ResNet": partial(ResNet, (1,), (8,))})
    learn, switches = script.train("ResNet, SWATS, global", preset, dls, tmp_path / "run")
    assert isinstance(learn.opt, SWATS)
    assert len({point.lr for point in switches.points}) == 1
    assert all(point.step == 2 for point in switches.points)


def test_committed_result_shows_both_kinds_of_switch(example, script):
    found = example("tables").result("swats_cpu")
    assert list(found["rows"]) == script.NAMES
    assert found["n"] == 3
    for model in ("ResNet", "DenseNet"):
        together, by_itself = (found["rows"][f"{model}, {name}"] for name in (script.GLOBAL, script.LOCAL))
        assert together["n_switched"] == [together["n_tensors"]] * 3
        assert together["n_moments"] == [1] * 3
        assert all(moments > 1 for moments in by_itself["n_moments"])
        assert all(n < by_itself["n_tensors"] for n in by_itself["n_switched"])


def test_committed_result_of_quarter_has_two_seeds_of_each_switch(example, script):
    found, names = example("tables").result("swats_quarter"), script.PRESETS["quarter"].names
    assert list(found["rows"]) == names
    n_runs = [len(found["histories"][name]) for name in names]
    assert n_runs == [2, 2, 1, 1, 1]
    (together, by_itself) = (found["rows"][f"ResNet, {name}"] for name in (script.GLOBAL, script.LOCAL))
    assert (together["n_tensors"], together["n_switched"], together["n_moments"]) == (62, [62] * 2, [1] * 2)
    assert all(moments > 1 for moments in by_itself["n_moments"])


def test_biases_with_equal_gradients_switch_together_as_in_the_document(example, script):
    twins = ("layer2.0.bn2.bias", "layer2.0.shortcut.1.bias")  # both are added to the same sum
    assert len({script.PUBLISHED_SWITCHES[name] for name in twins}) == 1
    runs = example("tables").result("swats_quarter")["switches"][f"ResNet, {script.LOCAL}"]
    for run in runs:
        points = {script.published_name(layer): (step, lr) for layer, step, lr in run["points"]}
        assert len({points[name] for name in twins}) == 1


@pytest.mark.parametrize("wd", [0.0, 5e-4])
def test_weight_decay_of_a_preset_is_that_of_all_but_adamw(script, wd):
    for name, (lr, make) in script.OPTIMIZERS.items():
        group = make(1e-5, wd)([torch.nn.Parameter(torch.zeros(1))], lr=lr).param_groups[0]
        assert group["weight_decay"] == (0.01 if name == "AdamW" else wd)


def tables_of(text):
    """Return the tables of document 004: network -> optimizer -> accuracy in per cent."""
    found = {"ResNet": {}, "DenseNet": {}}
    for line in text.splitlines():
        if match := re.fullmatch(r"(ResNet-18|DenseNet-121) (.+?) (?:NA )?(\d\d\.\d+)", line):
            found[match[1].partition("-")[0]][match[2]] = float(match[3])
    return found


def test_published_accuracies_are_those_of_the_text(script, document):
    names = {"SWATS Global (Vanilla)": script.GLOBAL, "SWATS Local": script.LOCAL, "AdaBound": "AdaBound"}
    tables = tables_of(document("004"))
    assert [len(of) for of in tables.values()] == [3, 3]
    for model, of in tables.items():
        figures = {names[name]: value for name, value in of.items()}
        assert {name: 100 * float(said) for name, said in script.PUBLISHED[model].items()} == pytest.approx(
            figures
        )


def test_settings_are_those_of_the_text(script, document):
    text = document("004")
    assert "reduced ϵ value from 10^-9 to 10^-5" in text
    assert "batch-size = 128" in text
    assert "epochs = 200" in text
    resnet, densenet = text.split("DenseNet - 121")[:2]
    for model, part in (("ResNet", resnet), ("DenseNet", densenet)):
        assert f"decay by a factor of 10 at {script.DECAYED[model]} epochs." in part
        assert "decay by a factor of 10 at 75,150 epochs for layers which are in SGD Phase" in part
        assert "decay by a factor of 10 at 100 epochs for layers which are in Adam" in part
    assert (script.LOCAL_SGD, script.LOCAL_ADAM, script.OF_EPOCHS) == ((75, 150), 100, 200)


@pytest.fixture
def told(example, script):
    """Return what is concluded where local - global is `mean` on both networks."""

    def tell(mean, corrected, preset="cpu"):
        family = [
            example("differences").Difference(name, "eval accuracy", (mean,), 1.0, -0.5, 0.5, 0.5, corrected)
            for name in script.PAIRS
        ]
        switches = {f"ResNet, {script.LOCAL}": [{"n_steps": 948}]}
        return script.conclusion(family, {"preset": preset, "threshold": 1e-4, "switches": switches})

    return tell


def test_conclusion_begins_with_what_a_small_run_cannot_show(told):
    assert told(0.1, 1.0).startswith(
        "This run cannot settle the document's claim that switching locally is better"
    )
    assert "948 steps, small networks, and a threshold 10 times as large" in told(0.1, 1.0)
    assert "cannot settle" not in told(0.1, 1.0, "full")


def test_conclusion_names_only_what_differs(example, script):
    switches = {f"ResNet, {script.LOCAL}": [{"n_steps": 11730}]}
    said = script.conclusion([], {"preset": "quarter", "threshold": 1e-5, "switches": switches})
    assert said.endswith("it has 11,730 steps and a network of a quarter of the channels.")


def test_conclusion_of_one_pair_settles_nothing(example, script):
    pair = example("differences").Difference("ResNet, local - global", "eval accuracy", (0.1,), 1.0)
    said = script.conclusion([pair], {"preset": "full"})
    assert said == "On the ResNet, local - global is +0.100: one pair settles nothing."


@pytest.mark.parametrize(
    ("mean", "corrected", "said"),
    [
        (0.1, 1.0, "not shown to differ from global: +0.100 (-0.500 to +0.500); by seed +0.100."),
        (0.1, 0.01, "ahead of global"),
        (-0.1, 0.01, "behind global"),
    ],
)
def test_conclusion_on_local_and_global_follows_the_difference(told, mean, corrected, said):
    assert told(mean, corrected).count(said) == 2
