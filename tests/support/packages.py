"""Packages as pip leaves them, for the entry points that they have."""

from pathlib import Path


def install(folder: Path, module: str, code: str, entry_points: str) -> dict[str, str]:
    """A package of one module; the environment variables of processes that find it."""
    information = folder / f"{module}-1.0.dist-info"
    information.mkdir(parents=True)
    (folder / f"{module}.py").write_text(code, encoding="utf-8")
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
    (information / "entry_points.txt").write_text(entry_points, encoding="utf-8")
    return {"PYTHONPATH": str(folder)}
