"""What CHANGELOG.md names is there."""

import re
from pathlib import Path

import pytest
from toolbox import make_learner

import minilearn
from minilearn import callbacks, data, optim, schedules

REPO = Path(__file__).parents[1]
NEWEST = (REPO / "CHANGELOG.md").read_text().split("\n## ")[1]
GONE = ("steps_per_epoch",)
PLACES = (minilearn, data, optim, schedules, callbacks)


def code():
    return re.findall(r"`([^`]+)`", NEWEST)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\b[A-Z]\w*CB\b", NEWEST))))
def test_callback_is_public(name):
    assert hasattr(minilearn, name)


@pytest.mark.parametrize(
    "name", sorted({name for text in code() for name in re.findall(r"^learn\.(\w+)", text)})
)
def test_name_of_a_learner_is_there(name):
    assert hasattr(make_learner(), name) is (name not in GONE)


@pytest.mark.parametrize(
    "text", [text for text in code() if re.fullmatch(r"(?:Callback\.)?[a-z]\w*|\w+Loader", text)]
)
def test_other_name_is_there(text):
    name = text.removeprefix("Callback.")
    public = [getattr(minilearn, other) for other in minilearn.__all__]  # whose methods count too
    owners = (*public, minilearn.ProgressCB(), make_learner(), *PLACES)
    names = {*minilearn.events.events(), "forward"}  # a scope
    assert name in names or any(hasattr(owner, name) for owner in owners)
