"""Build the sdist and the wheel, and try both away from the source tree.

    .venv/bin/python .ci/package.py               # in a temporary folder
    .venv/bin/python .ci/package.py --out dist    # and copy both to dist/, from where they are uploaded
    .venv/bin/python .ci/package.py --tests       # also run the tests that are in the sdist

The environment that runs it has what minilearn needs and the extra `dev`. The new environment, in which the
wheel is installed, finds these packages too, by their folder, so that torch is not installed twice.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path
from subprocess import PIPE, STDOUT

ROOT = Path(__file__).parent.parent
NOT_IN_SDIST = {".gitignore"}

# What a user does first; `mypy --strict` checks it too.
SCRIPT = """
import sys
from pathlib import Path

import torch

import minilearn
from minilearn import Learner, StridedCNN, shapes

assert Path(minilearn.__file__).is_relative_to(sys.prefix), minilearn.__file__
assert Path(minilearn.__file__).with_name("py.typed").is_file()
torch.set_num_threads(1)
learn = Learner(StridedCNN(), shapes(n_train=256, n_valid=128), lr=1e-2)
learn.fit(2)
assert len(learn.history) == 4
preds = learn.predict(learn.dls.valid)
print(f"minilearn {minilearn.__version__} of the wheel trained; predictions: {tuple(preds.shape)}")
"""


def call(*command: str | Path, **kwargs: object) -> None:
    """Run a command, and end with its status if it fails."""
    print("+", *command, flush=True)
    done = subprocess.run([str(part) for part in command], **kwargs)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"{done.stdout or ''}\nstatus {done.returncode} of {' '.join(map(str, command))}")


def check_sdist(sdist: Path) -> None:
    """Check that the sdist has each file that git has, and nothing else but metadata."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    names = {name for name in names if ".egg-info/" not in name} - {"PKG-INFO", "setup.cfg"}
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    expected = set(listed.stdout.split("\0")) - {""} - NOT_IN_SDIST
    if missing := sorted(expected - names):
        sys.exit(f"{sdist.name} lacks {missing[:5]}: expected each file of git in it; see MANIFEST.in")
    if unknown := sorted(names - expected):
        sys.exit(f"{sdist.name} has {unknown[:5]}, which git has not: expected them added to git or removed")


def check_wheel(wheel: Path) -> None:
    """Check that the wheel has the package as it is in the tree, and nothing else but metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = [path for path in (ROOT / "minilearn").rglob("*") if path.is_file()]
    expected = {str(path.relative_to(ROOT)) for path in package if "__pycache__" not in path.parts}
    if names != expected:
        differing = sorted(names ^ expected)[:5]
        sys.exit(f"{wheel.name} and minilearn/ differ by {differing}: expected the same files")


def environment(folder: Path) -> Path:
    """Return the Python of a new environment that has the packages of this one, but not its minilearn.

    Only their folder is named: a link in it, such as that of `pip install -e`, is not followed.
    """
    call(sys.executable, "-m", "venv", folder)
    own = sysconfig.get_path("purelib", "venv", {"base": str(folder)})
    others = [path for path in sys.path if Path(path).name == "site-packages"]
    (Path(own) / "others.pth").write_text("".join(f"{path}\n" for path in others))
    return folder / "bin" / "python"


def main() -> None:
    """Build, check and try."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the sdist and the wheel")
    parser.add_argument("--tests", action="store_true", help="also run the tests of the sdist")
    args = parser.parse_args()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        built = work / "built"
        call(sys.executable, "-m", "build", "--outdir", built, ROOT, stdout=PIPE, stderr=STDOUT, text=True)
        (sdist,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
        call(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
        check_sdist(sdist)
        check_wheel(wheel)

        python = environment(work / "env")
        call(python, "-m", "pip", "install", "-q", "--no-deps", "--ignore-installed", wheel, env=env)
        (work / "script.py").write_text(SCRIPT)
        call(python, "-W", "error", "-c", "import minilearn", cwd=work, env=env)
        call(python, "-W", "error", "script.py", cwd=work, env=env)
        call(python, "-m", "mypy", "--strict", "script.py", cwd=work, env=env)

        if args.tests:
            with tarfile.open(sdist) as archive:
                archive.extractall(work, filter="data")
            (tree,) = work.glob("minilearn-*")
            call(environment(work / "other"), "-m", "pytest", cwd=tree, env=env | {"PYTHONPATH": str(tree)})
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            for path in (sdist, wheel):
                shutil.copy(path, args.out)
                print(args.out / path.name)


if __name__ == "__main__":
    main()
