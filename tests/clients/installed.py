"""Environments of clients: one for each entry of clients.toml, rebuilt when its versions change."""

import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from models.files import cache_folder

_HERE = Path(__file__).parent
USAGES = _HERE / "usages"
# The npm package that contains Node.js: Debian's is too old for the clients.
_NODE = "node@22.23.3"


@dataclass(frozen=True)
class Client:
    """A client, its packages, and how to run its usages."""

    name: str
    packages: tuple[str, ...]
    is_npm: bool

    @property
    def folder(self) -> Path:
        """Of its environment."""
        return cache_folder() / "clients" / self.name

    @property
    def scripts(self) -> list[Path]:
        """Its usages."""
        return sorted((USAGES / self.name).glob("try_*"))

    def command(self, script: Path, url: str, part: str = "") -> list[str]:
        """The command that runs a script's usages, or those with `part` in their names, against an endpoint."""
        if not self.is_npm:
            return [str(self.folder / "bin" / "python"), str(script), url, part]
        # Node looks for packages in the script's folder.
        for source in (*USAGES.glob(f"{self.name}/*.mjs"), *USAGES.glob("common/*.mjs")):
            (self.folder / source.name).write_text(source.read_text())
        return [str(self.folder / "node_modules" / ".bin" / "node"), str(self.folder / script.name), url, part]

    def install(self) -> None:
        """Install the client; raises CalledProcessError."""
        done = self.folder / "installed"
        packages = (*self.packages, _NODE) if self.is_npm else self.packages
        if done.is_file() and done.read_text() == "\n".join(packages):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.is_npm:
            (self.folder / "package.json").write_text('{"private": true}')
            quiet = ["--no-audit", "--no-fund", "--loglevel=error", "--save-exact"]
            _run("npm", "install", *quiet, *packages, folder=self.folder)
        else:
            _run(sys.executable, "-m", "venv", "--clear", ".", folder=self.folder)
            pip = [str(self.folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
            _run(*pip, "install", "-q", *packages, folder=self.folder)
        done.write_text("\n".join(packages))


def clients() -> list[Client]:
    """All clients of clients.toml, in its order."""
    found = tomllib.loads((_HERE / "clients.toml").read_text())
    return [Client(name, tuple(each.get("npm") or each["pip"]), "npm" in each) for name, each in found.items()]


def _run(*command: str, folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True)
