"""Build the wheel and the source distribution, install each into a fresh environment, and run the command there.

    python scripts/dist.py [--out dist]

Libraries come from the environment that runs this, so that nothing is downloaded but the build backend. A tag at the
current commit has to be the version: v0.1.0 for 0.1.0.
"""

import argparse
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = ("report/templates/page.html.j2", "report/templates/report.css", "py.typed", "cli/app.py")


def main() -> None:
    """Build, install, try."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    out = parser.parse_args().out.resolve()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    check_tag(version)
    run(sys.executable, "-m", "build", "--outdir", str(out), str(ROOT))
    for name in (f"shoal-{version}-py3-none-any.whl", f"shoal-{version}.tar.gz"):
        try_out(out / name, version)
        print(f"{name}: installs and runs")


def check_tag(version: str) -> None:
    """Refuse a tag of another version at this commit; a tree without a repository has none."""
    if shutil.which("git") is None:
        return
    tags = subprocess.run(["git", "tag", "--points-at", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    wrong = [tag for tag in tags.stdout.split() if tag.startswith("v") and tag != f"v{version}"]
    if wrong:
        raise SystemExit(f"the tag {wrong[0]} is at this commit, the version is {version}")


def try_out(archive: Path, version: str) -> None:
    """Install an archive into an environment of its own, and run what needs the files it must hold."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "venv", folder)
        place = Path(folder) / ("Scripts" if sys.platform == "win32" else "bin")
        libraries = sysconfig.get_paths()["purelib"]
        packages = output(place / "python", "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])")
        run(place / "python", "-m", "pip", "install", "--quiet", "--no-deps", archive)
        # Behind the own packages: only what the archive does not bring comes from there.
        (Path(packages) / "libraries.pth").write_text(f"{libraries}\n", encoding="utf-8")
        found = Path(output(place / "python", "-c", "import shoal; print(shoal.__file__)", cwd=folder)).parent
        if not found.is_relative_to(Path(packages).resolve()):
            raise SystemExit(f"{archive.name} was installed, but {found} was imported")
        missing = [name for name in FILES if not (found / name).is_file()]
        if missing:
            raise SystemExit(f"{archive.name} lacks {', '.join(missing)}")
        if output(place / "shoal", "--version", cwd=folder) != f"shoal {version}":
            raise SystemExit(f"{archive.name} is of another version")
        run(place / "shoal", "trace", "digits-resnet", cwd=folder)


def run(*command: object, **more: object) -> None:
    """Run a command; stop where it fails."""
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, **more)  # type: ignore[call-overload]


def output(*command: object, cwd: object = None) -> str:
    """What a command prints."""
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True, cwd=cwd)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
