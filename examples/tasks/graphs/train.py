"""Read handwritten digits of which only five of each have a label, with a graph network of torch_geometric.

The 1,797 digits of scikit-learn are one graph, in which each is linked to the eight most like it. The graph
is the batch: `DataLoaders([train], [valid])` are lists of one, and `unpack` says what the model gets. The two
have different targets; the other nodes have the target -100, which the loss, its mean and the accuracy leave
out, all three inferred. A pass is a single step, so `fit(n_steps=300, epoch_steps=25)` validates after every
25. A multilayer perceptron gets the same pixels and labels without the links.
"""

import time
from pathlib import Path

from model import digits, draw
from torch_geometric.nn import GCN, MLP

from minilearn import CheckpointCB, DataLoaders, Learner, set_seed

SMALL = {"n_steps": 6, "epoch_steps": 3}


def learner(seed=42, small=False):
    """Return the learner of the graph network."""
    set_seed(seed)
    dls = DataLoaders(*([graph] for graph in digits(5, seed, n=200 if small else None)))
    model = GCN(64, 64, num_layers=2, out_channels=10, dropout=0.5)
    return Learner(model, dls, lr=1e-2, unpack=lambda graph: ((graph.x, graph.edge_index), graph.y))


def without_links(seed=42, small=False):
    """Return the learner of the perceptron."""
    set_seed(seed)
    dls = DataLoaders(*([graph] for graph in digits(5, seed, n=200 if small else None)))
    model = MLP(in_channels=64, hidden_channels=64, out_channels=10, num_layers=2, dropout=0.5, norm=None)
    return Learner(model, dls, lr=1e-2, unpack=lambda graph: (graph.x, graph.y))


def run(seed=42, folder=Path("runs/graphs"), small=False):
    """Train both, measure and draw."""
    steps = SMALL if small else {"n_steps": 300, "epoch_steps": 25}
    preds, histories, seconds = {}, {}, {}
    for name, make in {"graph": learner, "mlp": without_links}.items():
        learn = make(seed, small)
        start_s = time.perf_counter()
        learn.fit(**steps, cbs=CheckpointCB(folder / name, every_minutes=1), resume=True)
        seconds[name] = time.perf_counter() - start_s
        preds[name] = learn.predict(learn.dls.valid).argmax(1)
        histories[name] = learn.history
    draw(learn.dls.valid[0], preds, histories).savefig(folder / "picture.png")
    accuracies = {name: history[-1]["MulticlassAccuracy"] for name, history in histories.items()}
    return accuracies | {"seconds": seconds["graph"]}


if __name__ == "__main__":
    print(run())
