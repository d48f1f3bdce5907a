"""Set up .venv with everything the project needs; `make install` runs this file.

    python3 tools/setup_env.py

It needs only Python 3.11 or newer. Finished steps are recorded in .venv/setup.json, so that a second run has nothing to
do and a run after an interruption resumes. pip's own configuration (pip.conf, PIP_INDEX_URL, ...) applies. Two
environment variables are read:

    PIP_ARGS              more arguments for every `pip install`, remembered for runs that have no PIP_ARGS at all
    SEAMLESS_MIN_FREE_GB  free disk space to insist on before torch is installed

No package index has detectron2 and panopticapi under their own names. Each comes from the first source that works:
what .venv has already, the official repository at a pinned commit, a repackaging pinned by hash.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
SITE = VENV / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
LOG = VENV / "setup.log"
SEE_LOG = f" (log: {LOG})"
STAMP = VENV / "setup.json"
SCRATCH = VENV / "setup.tmp"

OLDEST_PYTHON = (3, 11)
TORCH_GB = 9 if sys.platform == "linux" else 2  # at the peak; on Linux torch brings the CUDA libraries along
# The steps in their order, and the modules by which one sees that a finished step still holds.
STEPS = {
    "venv": ("pip",),
    "torch": ("torch", "torchvision"),
    "project": ("seamless_d2", "fvcore", "cv2"),
    "detectron2": ("detectron2",),
    "panopticapi": ("panopticapi",),
}
DETECTRON2 = {
    "check": "import detectron2.config, detectron2.modeling, detectron2.engine, detectron2.evaluation",
    "repository": "https://github.com/facebookresearch/detectron2",
    "commit": "02b5c4e295e990042a714712c21dc79b731e8833",
    "wheel": "sal-detectron2==0.7.2",
    "sha256": "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561",
}
PANOPTICAPI = {
    "check": "import panopticapi.evaluation",
    "repository": "https://github.com/cocodataset/panopticapi",
    "commit": "7bb4655548f98f3fedc07bf37e9040a992b054b0",
    "wheel": "panopticapi-lite==0.2.0",
    "sha256": "58d3ffa842a72240162e7fa744c602a0a5320baabbdb3295d770374f4639b486",
}
NETWORK_ERRORS = (
    "NewConnectionError|ConnectTimeoutError|NameResolutionError|ReadTimeoutError|ProxyError|SSLError|IncompleteRead|"
    "RemoteDisconnected|Read timed out|Network is unreachable|Temporary failure in name resolution|"
    "Could not resolve host|Connection (refused|reset|aborted|timed out)"
)


class SetupError(Exception):
    """Something the user has to mend; the message is one sentence that says what and how."""


def python_problem(version: tuple) -> str | None:
    """What is wrong with a Python of this version, None if nothing."""
    if tuple(version[:2]) >= OLDEST_PYTHON:
        return None
    found, needed = (".".join(map(str, v)) for v in (version[:3], OLDEST_PYTHON))
    return f"this is Python {found}, and {needed} or newer is needed: name one as in `make install PYTHON=python3.12`"


def disk_problem(free_gb: float, needed_gb: float) -> str | None:
    """What is wrong with this much free disk space, None if nothing."""
    if free_gb >= needed_gb:
        return None
    return (
        f"torch needs about {needed_gb:g} GB to install and {free_gb:.1f} GB are free on the disk of .venv: free some, "
        "or set SEAMLESS_MIN_FREE_GB to a lower number if yours needs less (a CPU-only torch does)"
    )


def explain(what: str, log: str) -> str:
    """One sentence on why pip could not install `what`, from what it wrote to its log."""
    if "DO NOT MATCH THE HASHES" in log:
        return f"the package index offers another file than the pinned one for {what}: check which index pip uses"
    if re.search("No space left on device|Disk quota exceeded", log):
        return f"the disk is full, so {what} could not be installed: free some space and run this again"
    if re.search(NETWORK_ERRORS, log):
        return f"{what} could not be downloaded: check the network, proxy and package index of pip, then run this again"
    if "No matching distribution found" in log:
        machine = f"Python {platform.python_version()} on {sys.platform} {platform.machine()}"
        return f"the package index of pip lacks {what} for {machine}: try another PYTHON= or an index in PIP_ARGS="
    errors = re.findall(r"ERROR: (?:\[present-rich\] )?(.+)", log)
    return f"pip could not install {what} ({errors[-1] if errors else 'it stopped without an error line'})"


def digest(pip_args: str, python: tuple = sys.version_info[:2], root: Path = ROOT) -> str:
    """Identifies what a set-up is made from; the folder counts because the project is installed in place."""
    parts = [str(root), str(tuple(python)), pip_args]
    parts += [(root / file).read_text("utf-8") for file in ("setup.py", "pyproject.toml", "tools/setup_env.py")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def read_stamp(path: Path) -> dict:
    """The record of finished steps (digest, pip_args, done); empty where there is none or it is damaged."""
    try:
        stamp = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(path: Path, stamp: dict) -> None:
    """Write the record in one go, so that an interruption leaves the old one or the new one."""
    new = path.with_suffix(".new")
    new.touch(mode=0o600)  # PIP_ARGS may hold the password of a private index
    new.write_text(json.dumps(stamp), "utf-8")
    new.replace(path)


def steps_to_do(stamp: dict, wanted: str, found: set[str] | None) -> list[str]:
    """The steps that are not done, were done from other files (`wanted`: the digest), or whose modules are gone."""
    if found is None or stamp.get("digest") != wanted:
        return list(STEPS)
    return [step for step in STEPS if step not in stamp.get("done", []) or not found.issuperset(STEPS[step])]


def modules_found() -> set[str] | None:
    """Which of the modules in STEPS .venv has (none is imported); None without a complete .venv of this Python."""
    code = (
        "import importlib.util as u, sys; print('python%d.%d' % sys.version_info[:2]);"
        "print(*[name for name in sys.argv[1:] if u.find_spec(name)])"
    )
    names = [name for modules in STEPS.values() for name in modules]
    try:
        result = subprocess.run([PYTHON, "-I", "-c", code, *names], capture_output=True, text=True)
    except OSError:
        return None
    version, _, found = result.stdout.partition("\n")
    complete = (VENV / "bin" / "activate").exists()  # the last file that making a venv writes
    return set(found.split()) if complete and version == SITE.parent.name else None


def pip_args() -> str:
    """PIP_ARGS, which may be empty, or where it is not set what pip worked with last time."""
    return os.environ.get("PIP_ARGS", read_stamp(STAMP).get("pip_args", ""))


def log(text: str) -> None:
    """Add a line to the log."""
    with LOG.open("a", encoding="utf-8") as file:
        file.write(text.rstrip() + "\n")


def pip_install(what: str, *args: str, **env: str) -> None:
    """`pip install` in .venv: progress on the terminal, everything in the log, a failure as SetupError."""
    SCRATCH.mkdir(exist_ok=True)  # pip's temporary files: on the disk that was checked, and swept if pip is killed
    for info in SITE.glob("*.dist-info"):
        if not (info / "RECORD").exists():  # pip was killed while it installed this, and would take it for installed
            shutil.rmtree(info)
    env = {"TMPDIR": str(SCRATCH), **os.environ, "PIP_USER": "0", **env}
    command = [PYTHON, "-I", "-m", "pip", "install", "--log", LOG, "--no-input", "--disable-pip-version-check"]
    command += [*args, *shlex.split(pip_args())]
    log(f"# {time.ctime()}: {what}")
    start = LOG.stat().st_size
    # close_fds=False hands the lock down: while a pip outlives this process, no second set-up starts.
    options = {"stderr": subprocess.PIPE, "close_fds": False, "text": True, "errors": "replace"}
    with subprocess.Popen(command, cwd=ROOT, env=env, **options) as process:
        for line in process.stderr:
            if "WARNING: Retrying" in line:  # the log has the rest
                print("  no answer from the package index, trying again", flush=True)
    written = LOG.read_bytes()
    written, new = written[:start], written[start:].decode("utf-8", "replace")
    new = re.sub(r"^\S+ +(Skipping link|Found link|Link requires).*\n", "", new, flags=re.MULTILINE)  # 50,000 lines
    LOG.write_bytes(written + new.encode())
    if process.returncode:
        raise SetupError(explain(what, new) + SEE_LOG)


def imports(code: str) -> bool:
    """Whether .venv can run these imports; the error goes to the log."""
    result = subprocess.run([PYTHON, "-I", "-W", "ignore", "-c", code], capture_output=True, text=True)
    if result.returncode:
        log(f"{code}\n{result.stderr}")
    return result.returncode == 0


def make_venv() -> None:
    """Make .venv; a complete one is kept, whoever made it."""
    found = modules_found()
    command = []
    if found is None:
        if importlib.util.find_spec("ensurepip") is None:
            raise SetupError(
                "this Python has no ensurepip to make environments with: install its venv package, on Debian and "
                f"Ubuntu with `apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv`, and run this again"
            )
        if VENV.exists():
            print("  .venv is incomplete, broken or of another Python, and is made anew", flush=True)
        base = getattr(sys, "_base_executable", None) or sys.executable
        if VENV in Path(base).parents:  # it would clear itself away
            base = os.path.realpath(base)
        command = [base, "-m", "venv", "--clear", str(VENV)]
    elif "pip" not in found:
        command = [str(PYTHON), "-m", "ensurepip", "--default-pip"]
    if command:
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        VENV.mkdir(exist_ok=True)
        log(result.stdout)
        if result.returncode:
            raise SetupError(f"`{shlex.join(command)}` failed: read the log or name another PYTHON={SEE_LOG}")
    log(f"# {time.ctime()}: Python {sys.version} on {platform.platform()}")


def install_torch() -> None:
    """torch and torchvision, from the package index that pip is configured for."""
    if not (modules_found() or set()).issuperset(STEPS["torch"]):
        needed_gb = float(os.environ.get("SEAMLESS_MIN_FREE_GB") or TORCH_GB)
        problem = disk_problem(shutil.disk_usage(VENV).free / 1e9, needed_gb)
        if problem:
            raise SetupError(problem)
    pip_install("torch", "torch", "torchvision")


def install_project() -> None:
    """This package in place, with its dependencies and its developers' tools."""
    pip_install("seamless_d2's dependencies", "--editable", ".[dev]")
    if not imports("import torch, torchvision, cv2"):
        raise SetupError(
            f"torch, torchvision or cv2 does not load: install the system library that the log names{SEE_LOG}"
        )


def repository_problem(repository: str, compiler: bool) -> str | None:
    """Why an official repository cannot be built here, None if it can; it has 15 seconds to answer."""
    if not shutil.which("git"):
        return "git is missing"
    if compiler and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return "a C++ compiler is missing"
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    env = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        result = subprocess.run(["git", "ls-remote", repository, "HEAD"], env=env, timeout=15, **quiet)
    except subprocess.TimeoutExpired:
        return "its host does not answer"
    return "it cannot be reached" if result.returncode else None


def install_from_repository(name: str, source: dict[str, str]) -> None:
    """Build an official repository at its pinned commit.

    Detectron2 is built without its CUDA kernels: nothing here uses them, and so no nvcc of a certain version is needed.
    """
    pip_install("build tools", "setuptools", "wheel", "ninja")
    url = f"{name} @ git+{source['repository']}@{source['commit']}"
    no_waiting = {"GIT_TERMINAL_PROMPT": "0", "GIT_HTTP_LOW_SPEED_LIMIT": "1000", "GIT_HTTP_LOW_SPEED_TIME": "30"}
    how = ("--no-deps", "--no-build-isolation", "--force-reinstall", "--no-cache-dir")  # a cached one is of some torch
    pip_install(name, *how, url, CUDA_VISIBLE_DEVICES="", FORCE_CUDA="0", **no_waiting)


def install_wheel(name: str, source: dict[str, str]) -> None:
    """Install the folder `name` of a wheel that is pinned by hash, whichever Python the wheel is tagged for.

    Left out are compiled files (they are for one Python and one torch), other top-level folders and the list of
    dependencies (it asks for old versions; setup.py has what is needed).
    """
    target, requirements = SCRATCH / name, SCRATCH / f"{name}.txt"
    shutil.rmtree(target, ignore_errors=True)
    SCRATCH.mkdir(exist_ok=True)
    requirements.write_text(f"{source['wheel']} --hash=sha256:{source['sha256']}\n", "utf-8")
    any_python = ("--no-deps", "--only-binary=:all:", "--python-version=3.10", f"--target={target}")
    pip_install(source["wheel"], *any_python, "--require-hashes", f"--requirement={requirements}")
    for compiled in (target / name).glob("*.so"):
        compiled.unlink()
    (info,) = target.glob("*.dist-info")
    metadata = (info / "METADATA").read_text("utf-8")
    (info / "METADATA").write_text(re.sub("^Requires-Dist:.*\n", "", metadata, flags=re.MULTILINE), "utf-8")
    record = (info / "RECORD").read_text("utf-8").splitlines(keepends=True)
    kept = [f for f in record if f.startswith((f"{name}/", f"{info.name}/")) and (target / f.split(",")[0]).exists()]
    (info / "RECORD").write_text("".join(kept), "utf-8")
    for folder in (info.name, name):  # the module last: it is what a resumed run looks for
        shutil.rmtree(SITE / folder, ignore_errors=True)
        (target / folder).rename(SITE / folder)


def install_from_best_source(name: str, source: dict[str, str]) -> None:
    """Take what .venv has, else the official repository, else the repackaging; say which it was."""
    if name in (modules_found() or set()) and imports(source["check"]):
        return print(f"  taken: the {name} that .venv has already", flush=True)
    problem = repository_problem(source["repository"], compiler=name == "detectron2")
    if problem is None:
        try:
            install_from_repository(name, source)
            problem = None if imports(source["check"]) else "it does not import"
        except SetupError as error:
            problem = str(error)
    if problem is None:
        return print(f"  taken: {source['repository']} at commit {source['commit'][:8]}", flush=True)
    install_wheel(name, source)
    if not imports(source["check"]):
        raise SetupError(f"{source['wheel']} was installed but does not import: read the reason in the log{SEE_LOG}")
    print(f"  taken: {source['wheel']}, a repackaging (the official repository: {problem})", flush=True)


def set_up() -> None:
    """Do the steps that are not done."""
    actions = {
        "venv": (f".venv with Python {platform.python_version()}", make_venv),
        "torch": ("torch, torchvision (5.5 GB on Linux)", install_torch),
        "project": ("seamless_d2 and its dependencies", install_project),
        "detectron2": ("detectron2", lambda: install_from_best_source("detectron2", DETECTRON2)),
        "panopticapi": ("panopticapi", lambda: install_from_best_source("panopticapi", PANOPTICAPI)),
    }
    args = pip_args()
    wanted = digest(args)
    shutil.rmtree(SCRATCH, ignore_errors=True)
    for number, (step, (title, action)) in enumerate(actions.items(), 1):
        stamp = read_stamp(STAMP)
        if step not in steps_to_do(stamp, wanted, modules_found()):
            continue
        print(f"[{number}/{len(actions)}] {title}", flush=True)
        action()
        done = [*(stamp.get("done", []) if stamp.get("digest") == wanted else []), step]
        # what has not yet brought the dependencies in may be wrong, and a later run should not repeat it
        worked = args if "project" in done else read_stamp(STAMP).get("pip_args", "")
        write_stamp(STAMP, {"digest": wanted, "pip_args": worked, "done": done})
    shutil.rmtree(SCRATCH, ignore_errors=True)


def wait_for_others() -> None:
    """Lock this checkout until the process ends, and pip with it; wait if another set-up has it locked."""
    folder = os.open(ROOT, os.O_RDONLY)
    os.set_inheritable(folder, True)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("waiting for another set-up of this folder …", flush=True)
        fcntl.flock(folder, fcntl.LOCK_EX)
    except OSError:
        pass  # a file system without locks


def main() -> int:
    """Set .venv up; the exit status is 0 when it is ready."""
    try:
        problem = python_problem(sys.version_info)
        if problem:
            raise SetupError(problem)
        if steps_to_do(read_stamp(STAMP), digest(pip_args()), modules_found()):
            wait_for_others()
            set_up()
            print("setup: .venv is ready")
        return 0
    except SetupError as error:
        message = str(error)
    except ValueError as error:
        message = f"PIP_ARGS or SEAMLESS_MIN_FREE_GB cannot be read ({error}): mend its quotes or its number"
    except OSError as error:
        message = f"{error.strerror or error} ({error.filename}): mend that and run this again"
    except KeyboardInterrupt:
        message = "interrupted: run the same command again to resume"
    print(f"setup: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
