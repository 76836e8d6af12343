"""A study's files in a storage that all machines reach, such as `s3://bucket/study`, where they share no disk.

    study.json, tokenizer/      put there before the first cell is started
    cells/NAME/                 what a cell has saved, as it goes: so another machine can continue it; result.json last

A cell works in a folder of its own machine. When it has ended, its files are copied into the study's directory.
"""

from pathlib import Path

from rhapsode.sources.remote import file_system, reaching

LAST = "result.json"  # by which a cell counts as finished


def put_study(study: Path, storage: str) -> None:
    """Copies what every cell needs into the storage."""
    _put(study / "tokenizer", f"{storage}/tokenizer")
    system, root = file_system(storage)
    with reaching(storage):
        system.put_file(str(study / "study.json"), f"{root}/study.json")


def get_study(storage: str, folder: Path) -> None:
    """Copies what every cell needs into a folder of this machine."""
    _get(f"{storage}/tokenizer", folder / "tokenizer")
    system, root = file_system(storage)
    with reaching(storage):
        system.get_file(f"{root}/study.json", str(folder / "study.json"))


def put_cell(cell: Path, storage: str) -> None:
    """Copies a cell's files into the storage; those that are there already are replaced."""
    _put(cell, f"{storage}/cells/{cell.name}")


def get_cell(storage: str, cell: Path) -> None:
    """Copies what the storage has of a cell into its folder."""
    _get(f"{storage}/cells/{cell.name}", cell)


def _put(folder: Path, address: str) -> None:
    system, root = file_system(address)
    with reaching(address):
        system.makedirs(root, exist_ok=True)
        for file in sorted(folder.rglob("*"), key=lambda file: file.name == LAST):
            inside = file.relative_to(folder)
            if any(part.startswith(".") for part in inside.parts):
                continue
            if file.is_dir():
                system.makedirs(f"{root}/{inside.as_posix()}", exist_ok=True)
            else:
                system.put_file(str(file), f"{root}/{inside.as_posix()}")


def _get(address: str, folder: Path) -> None:
    system, root = file_system(address)
    with reaching(address):
        if not system.exists(root):
            return
        for name in system.find(root):
            target = folder / Path(name).relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(name, str(target))
