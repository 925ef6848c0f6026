"""A stand-in for wandb with a service that can be asked what it got."""

import math
from types import SimpleNamespace


class Config(dict):
    def update(self, config, allow_val_change):
        assert allow_val_change
        super().update(config)


class FakeRun:
    """A run of the service: what it got, in order, and its summary, which a process that resumes it sees."""

    def __init__(self, id, init):
        self.id, self.inits, self.entries, self.summary, self.axes = id, [init], [], {}, {}
        self.config, self.ends = Config(), []

    def log(self, entry):
        assert all(math.isfinite(entry[name]) for name in entry)
        self.entries.append(entry)
        self.summary.update(entry)

    def define_metric(self, name, step_metric=None, hidden=None):
        self.axes[name] = step_metric

    def mark_preempting(self):
        self.ends.append("preempting")

    def finish(self, exit_code):
        self.ends.append(exit_code)


class FakeWandb:
    def __init__(self, mode="online"):
        self.runs, self.run = {}, None
        self.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode=mode))

    def init(
        self, project=None, name=None, id=None, group=None, resume=None, mode=None, tags=None, config=None
    ):
        init = {"project": project, "name": name, "group": group, "resume": resume, "tags": tags}
        if id in self.runs:
            assert resume == "allow"
            self.runs[id].inits.append(init)
        else:
            self.runs[id] = FakeRun(id, init)
        return self.runs[id]


def of(run, name):
    return [(entry["step"], entry[name]) for entry in run.entries if name in entry]
