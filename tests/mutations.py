"""What the scripts share that break rules on purpose: a small crate of a few rooms, one mistake in it
at a time, and whether a test notices. See gate_mutations.py and sim_mutations.py.
"""

import argparse
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent

CARGO = """\
[workspace]
[package]
name = "presnap"
version = "0.0.0"
edition = "2024"
[dependencies]
{dependencies}
[dev-dependencies]
proptest
[target.'cfg(loom)'.dependencies]
loom
[lints.rust]
unexpected_cfgs = {{ level = "allow" }}
[profile.release]
debug = "line-tables-only"
codegen-units = 16
incremental = true
opt-level = {opt_level}
[profile.release.package."*"]
opt-level = 3
"""


@dataclasses.dataclass
class Bench:
    """A few rooms of the house in a crate of their own, so that a round compiles in seconds."""

    name: str
    # The text of src/lib.rs.
    rooms: str
    # Files and folders of the project to copy.
    sources: list
    dependencies: list
    # From the name of a test to cargo's arguments: to build it, and to run it after that.
    command: callable
    # Tests that must pass while nothing is broken.
    tests: list
    # A mutant that livelocks counts as noticed.
    timeout_s: int
    # Of the crate itself: 0 where compiling would take longer than running.
    opt_level: int = 3

    def make_crate(self, folder):
        """The crate, with the versions of the dependencies that the project has."""
        toml = (ROOT / "Cargo.toml").read_text()
        text = CARGO.format(dependencies="\n".join(self.dependencies),
                            opt_level=self.opt_level)
        # A line with nothing but a name stands for that of the project's.
        text = re.sub(r"^[a-z0-9_]+$",
                      lambda name: re.search(rf"^{name.group()} = .*$", toml, re.M).group(),
                      text, flags=re.M)
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "src").mkdir(parents=True)
        (folder / "Cargo.toml").write_text(text)
        # What is not needed drops out.
        shutil.copyfile(ROOT / "Cargo.lock", folder / "Cargo.lock")
        (folder / "src/lib.rs").write_text(self.rooms)
        for source in self.sources:
            target = folder / source
            target.parent.mkdir(parents=True, exist_ok=True)
            # Not `copy`: with the old time of modification, cargo would take them for built.
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, target, copy_function=shutil.copyfile)
            else:
                shutil.copyfile(ROOT / source, target)

    def run(self, crate, target, test):
        """'passed', 'failed', 'hung', or a compiler's complaint."""
        build, run, flags = self.command(test)
        env = dict(os.environ, CARGO_TARGET_DIR=str(target / ("loom" if flags else "std")))
        if flags:
            env["RUSTFLAGS"] = flags
        built = subprocess.run(["cargo", *build], cwd=crate, env=env, capture_output=True,
                               text=True, check=False)
        if built.returncode != 0:
            return "does not compile: " + built.stderr[-1500:]
        # A session of its own, so that a hanging test ends together with cargo.
        running = subprocess.Popen(["cargo", *run], cwd=crate, env=env, start_new_session=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return "passed" if running.wait(self.timeout_s) == 0 else "failed"
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            return "hung"


def break_rule(crate, name, file, changes):
    """Replaces each of `changes`, (text, replacement), whose text must be there once."""
    path = crate / "src" / file
    source = path.read_text()
    for old, new in changes:
        assert source.count(old) == 1, f"{name}: {source.count(old)} times in {file}: {old}"
        source = source.replace(old, new)
    path.write_text(source)


def main(bench, mutations, about):
    """`mutations` are (name, file in src, text, replacement, tests of which at least one must fail,
    more texts and replacements by turns). Exit status 1 if a mutation survives."""
    parser = argparse.ArgumentParser(description=about,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", metavar="DIR", help="just make the small crate there")
    parser.add_argument("part", nargs="*",
                        help="only mutations with this in their name; 'unchanged': just the tests")
    options = parser.parse_args()
    if options.make:
        bench.make_crate(pathlib.Path(options.make))
        return 0
    base = os.environ.get("CARGO_TARGET_DIR") or tempfile.mkdtemp()
    scratch = pathlib.Path(base).resolve() / bench.name
    crate, target = scratch / "crate", scratch / "target"
    survivors = 0
    bench.make_crate(crate)
    if options.part in ([], ["unchanged"]):
        for test in bench.tests:
            outcome = bench.run(crate, target, test)
            print(f"{outcome:8} unchanged, {test}", flush=True)
            survivors += outcome != "passed"
    for name, file, text, replacement, tests, *more in mutations:
        if options.part and not any(part in name for part in options.part):
            continue
        bench.make_crate(crate)
        break_rule(crate, name, file, [(text, replacement), *zip(more[::2], more[1::2])])
        outcomes = {test: bench.run(crate, target, test) for test in tests.split()}
        noticed = [test for test, outcome in outcomes.items() if outcome in ("failed", "hung")]
        survivors += not noticed
        print(f"{'noticed' if noticed else 'SURVIVED':8} {name}: {outcomes}", flush=True)
    return 1 if survivors else 0
